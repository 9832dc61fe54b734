import type { PlanInput, TopologyInput } from "../input/types.ts";
import type { Plan } from "../plan.ts";
import type { Channels } from "../planner/channels.ts";
import type { PlanStats, RankStats } from "../planner/stats.ts";
import { type Change, diffTensors, isSame, type TensorChanges } from "./diff-tensors.ts";

const rankKeys = ["sent", "received", "copied", "reduced", "stagingBytes"] as const;

/** What a rank has to do in either plan: nothing in one that it is not in. */
export type RankChange = { readonly rank: number } & {
  readonly [K in (typeof rankKeys)[number]]: Change<bigint>;
};

/** Bytes from a rank to another, or from the ranks of a host to those of another, in all stages together. */
export interface LinkChange {
  readonly from: number;
  readonly to: number;
  readonly bytes: Change<bigint>;
}

export interface OptionChange extends Change<unknown> {
  readonly option: string;
}

/** How two plans differ. */
export interface PlanDiff extends TensorChanges {
  /** True if they are one plan, byte for byte. */
  readonly equal: boolean;
  readonly digest: Change<string>;
  /** What is not of a tensor: sizes of buckets, the topology, pairs that have no tensors. */
  readonly options: readonly OptionChange[];
  /** Ranks of which something changed, ascending. */
  readonly ranks: readonly RankChange[];
  /** Pairs of ranks between which other bytes go, those that changed most first. */
  readonly links: readonly LinkChange[];
  /** The same for hosts; `undefined` if one of the plans has no topology. */
  readonly hosts: readonly LinkChange[] | undefined;
}

/** Compares two plans, by patterns and channels, never chunk by chunk. */
export function diffPlans(before: Plan, after: Plan): PlanDiff {
  const digest = { before: before.digest, after: after.digest };
  const equal = before.digest === after.digest;
  const [old, now] = [before.input, after.input];
  const hasHosts = old.topology !== undefined && now.topology !== undefined;
  if (equal) {
    return {
      equal,
      digest,
      options: [],
      tensors: [],
      unchangedTensors: old.tensors.length,
      reordered: false,
      ranks: [],
      links: [],
      hosts: hasHosts ? [] : undefined,
    };
  }
  return {
    equal,
    digest,
    options: diffOptions(old, now),
    ...diffTensors(before, after),
    ranks: diffRanks(before.stats().ranks, after.stats().ranks),
    links: diffLinks(rankLinks(before.channels()), rankLinks(after.channels())),
    hosts: hasHosts ? diffHosts(before.stats(), after.stats()) : undefined,
  };
}

const options = ["bucketBytes", "bucketsInFlight", "peersInFlight", "maxChunks", "strategy"] as const;

function diffOptions(before: PlanInput, after: PlanInput): OptionChange[] {
  const values: OptionChange[] = [
    ...options.map((option) => ({ option, before: before[option], after: after[option] })),
    ...diffTopologies(before, after),
    { option: "pairs without tensors", before: unusedPairs(before), after: unusedPairs(after) },
  ];
  return values.filter((change) => !isSame(change.before, change.after));
}

/** Key by key, if both have one. */
function diffTopologies({ topology: before }: PlanInput, { topology: after }: PlanInput): OptionChange[] {
  if (before === undefined || after === undefined) return [{ option: "topology", before, after }];
  const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])] as (keyof TopologyInput)[];
  return keys.map((key) => ({ option: `topology.${key}`, before: before[key], after: after[key] }));
}

/** They change the bytes of a plan, though nothing that it does. */
function unusedPairs({ pairs, tensors }: PlanInput): PlanInput["pairs"] {
  const used = new Set(tensors.map(({ pair }) => pair));
  return Object.fromEntries(Object.entries(pairs).filter(([name]) => !used.has(name)));
}

function diffRanks(before: readonly RankStats[], after: readonly RankStats[]): RankChange[] {
  const [old, now] = [before, after].map((ranks) => new Map(ranks.map((entry) => [entry.rank, entry])));
  const ranks = [...new Set([...old!.keys(), ...now!.keys()])].sort((a, b) => a - b);
  return ranks.flatMap((rank) => {
    const changes = rankKeys.map((key) => {
      const change = { before: old!.get(rank)?.[key] ?? 0n, after: now!.get(rank)?.[key] ?? 0n };
      return [key, change] as const;
    });
    if (changes.every(([, change]) => change.before === change.after)) return [];
    return [{ rank, ...Object.fromEntries(changes) } as RankChange];
  });
}

/** Bytes by both ends, as one number: there are at most 2^20 ranks, and so hosts. */
type Links = Map<number, number>;
const endWeight = 2 ** 20;

function rankLinks({ count, srcRank, dstRank, bytes }: Channels): Links {
  const links: Links = new Map();
  for (let row = 0; row < count; row++) {
    if (srcRank[row] === dstRank[row]) continue;
    const key = srcRank[row]! * endWeight + dstRank[row]!;
    links.set(key, (links.get(key) ?? 0) + bytes[row]!);
  }
  return links;
}

/** Hosts may have any numbers: links are between their places in the list of all of them. */
function diffHosts(before: PlanStats, after: PlanStats): LinkChange[] {
  const all = [before, after].flatMap(({ hosts }) =>
    hosts.flatMap(({ srcHost, dstHost }) => [srcHost, dstHost]),
  );
  const hosts = [...new Set(all)].sort((a, b) => a - b);
  const places = new Map(hosts.map((host, place) => [host, place]));
  const linksOf = (stats: PlanStats): Links =>
    new Map(
      stats.hosts.map(({ srcHost, dstHost, bytes }) => [
        places.get(srcHost)! * endWeight + places.get(dstHost)!,
        Number(bytes),
      ]),
    );
  return diffLinks(linksOf(before), linksOf(after)).map(({ from, to, bytes }) => ({
    from: hosts[from]!,
    to: hosts[to]!,
    bytes,
  }));
}

function diffLinks(before: Links, after: Links): LinkChange[] {
  const changed: { key: number; old: number; now: number }[] = [];
  for (const [key, old] of before) {
    const now = after.get(key) ?? 0;
    if (now !== old) changed.push({ key, old, now });
  }
  for (const [key, now] of after) if (!before.has(key) && now !== 0) changed.push({ key, old: 0, now });
  return changed
    .sort((a, b) => Math.abs(b.now - b.old) - Math.abs(a.now - a.old) || a.key - b.key)
    .map(({ key, old, now }) => ({
      from: Math.floor(key / endWeight),
      to: key % endWeight,
      bytes: { before: BigInt(old), after: BigInt(now) },
    }));
}
