import { bytesOf, itemSize } from "../../layout/index.ts";
import type { NormalInput, Pattern } from "./normalize.ts";
import type { NormalSide } from "./sides.ts";
import { subMeshBase } from "./sides.ts";
import { hostOf, type NormalTopology, slowestOf } from "./topology.ts";

/** The ranks that exchange stripes: none, all replicas of a part, or the replicas on one host. */
export const groupings = ["none", "all", "host"] as const;
type Grouping = (typeof groupings)[number];

export const reasons = ["asked for", "no topology", "no replicas", "lowest cost"] as const;
type Reason = (typeof reasons)[number];

/** What each way is expected to take, in nanoseconds for all tensors of the pattern; `undefined` if it is no way. */
interface Costs {
  readonly direct: bigint;
  readonly all: bigint | undefined;
  readonly host: bigint | undefined;
}

/** How a pattern's pieces travel, and why. */
export interface Routing {
  readonly strategy: "direct" | "striped";
  readonly groups: Grouping;
  readonly reason: Reason;
  readonly costs: Costs | undefined;
}

/** How stages follow each other: at once one after the other, or overlapping, as stripes are handed on when they come. */
type Stages = "in turn" | "overlapping";

/** Decides how the tensors of a pattern travel. Integers only, and a function of the plan's input. */
export function route(input: NormalInput, pattern: Pattern, stages: Stages): Routing {
  const { strategy, topology } = input;
  const direct = { strategy: "direct", groups: "none", costs: undefined } as const;
  if (strategy === "direct") return { ...direct, reason: "asked for" };
  if (replicasOf(pattern.target) === 1) return { ...direct, reason: "no replicas" };
  if (topology === undefined) {
    if (strategy === "auto") return { ...direct, reason: "no topology" };
    return { strategy: "striped", groups: "all", reason: "asked for", costs: undefined };
  }
  const costs = costsOf(input, pattern, topology, stages);
  const striped =
    costs.host !== undefined && (costs.all === undefined || costs.host <= costs.all) ? "host" : "all";
  const cost = costs[striped]!;
  if (strategy === "auto" && costs.direct <= cost) return { ...direct, reason: "lowest cost", costs };
  return {
    strategy: "striped",
    groups: striped,
    reason: strategy === "auto" ? "lowest cost" : "asked for",
    costs,
  };
}

/** How long the busiest ends of links are busy, in nanoseconds: with what sources send, and with what targets receive. */
interface Load {
  readonly outHost: bigint;
  readonly outNetwork: bigint;
  readonly inHost: bigint;
  readonly inNetwork: bigint;
}

const nothing: Load = { outHost: 0n, outNetwork: 0n, inHost: 0n, inNetwork: 0n };

/**
 * The cost model. Every rank has one link to its own host and one to the network, each both ways at once; a stage takes as
 * long as its busiest rank, and a latency. Sources share what they send evenly, as the rotation does, and what a source
 * finds on its own host does not use the network. If links between hosts differ, the slowest that a stage may use
 * counts.
 */
function costsOf(input: NormalInput, pattern: Pattern, topology: NormalTopology, stages: Stages): Costs {
  const spread = spreadOf(input, pattern, topology);
  const count = BigInt(pattern.count);
  const elements = pattern.shape.reduce((product, size) => product * BigInt(size), 1n) * count;
  const { dtype, targetDtype } = pattern;
  const wireType = itemSize(dtype) < itemSize(targetDtype) ? dtype : targetDtype;
  const wire = (count: bigint) => bytesOf(wireType, count);
  const item = (count: bigint) => bytesOf(targetDtype, count);
  // The part of a target rank, evenly cut.
  const part = ceilDiv(elements, BigInt(spread.targetGroups));
  const latency = BigInt(topology.latencyUs) * 1000n;
  const { sourceHosts, targetHosts, isNear } = spread;
  const speeds = {
    host: slowestOf(topology, targetHosts, targetHosts, true),
    across: slowestOf(topology, targetHosts, targetHosts, false),
    cross: slowestOf(topology, sourceHosts, targetHosts, isNear),
  };
  const inHost = (bytes: bigint) => nanoseconds(bytes, speeds.host);
  const across = (bytes: bigint) => nanoseconds(bytes, speeds.across);
  const cross = (bytes: bigint) => nanoseconds(bytes, speeds.cross);
  /** Stage 0: all contributions to a value but the owner's own. The planner before stages overlapped did not count it. */
  const reducing = (): Load => {
    const others = elements * BigInt(contributionsOf(pattern.source) - 1);
    if (stages === "in turn" || others === 0n) return nothing;
    const sent = bytesOf(dtype, ceilDiv(others, BigInt(spread.sources)));
    const isTogether = sourceHosts.size === 1;
    const time = nanoseconds(sent, slowestOf(topology, sourceHosts, sourceHosts, isTogether));
    return { ...nothing, [isTogether ? "outHost" : "outNetwork"]: time };
  };
  /** The stages up to the first, if each part goes to `copies` ranks and a rank receives one of `shares` shares of it. */
  const crossing = (copies: number, shares: number): Load => {
    const sent = cross(wire(ceilDiv(elements * BigInt(copies), BigInt(spread.sources))));
    const share = cross(wire(ceilDiv(part, BigInt(shares))));
    const load = isNear
      ? { ...nothing, outHost: sent, inHost: share }
      : { ...nothing, outNetwork: sent, inNetwork: share };
    return sumOf(reducing(), load);
  };
  /** Both stages, if a rank receives one of `shares` shares and hands on what `fanout` says. */
  const striped = (first: Load, shares: number, fanout: Load): bigint => {
    const inTurn = timeOf(first) + timeOf(fanout) + 2n * latency;
    if (stages === "in turn") return inTurn;
    // As long as the busiest end of a link is busy with both, and what the shorter one takes for the last bucket.
    const share = wire(ceilDiv(part, BigInt(shares)));
    const bucket = min(BigInt(input.bucketBytes), share);
    const shorter = min(timeOf(first), timeOf(fanout));
    const last = share === 0n ? 0n : ceilDiv(shorter * bucket, share);
    return min(inTurn, timeOf(sumOf(first, fanout)) + last + 2n * latency);
  };
  const { replicas, hosts, most, fewest } = spread;
  const fanAll: Load = {
    ...nothing,
    inHost: inHost(item(ceilDiv(part * BigInt(most - 1), BigInt(replicas)))),
    inNetwork: across(item(ceilDiv(part * BigInt(replicas - fewest), BigInt(replicas)))),
  };
  const fanHost: Load = {
    ...nothing,
    inHost: inHost(item(ceilDiv(part * BigInt(most - 1), BigInt(most)))),
  };
  return {
    direct: timeOf(crossing(replicas, 1)) + latency,
    all: hosts === 1 && most > 1 ? undefined : striped(crossing(1, replicas), replicas, fanAll),
    host: most === 1 ? undefined : striped(crossing(hosts, fewest), fewest, fanHost),
  };
}

function contributionsOf(side: NormalSide): number {
  return side.placements.reduce(
    (product, { kind }, dim) => (kind === "partial" ? product * side.subShape[dim]! : product),
    1,
  );
}

function sumOf(one: Load, other: Load): Load {
  return {
    outHost: one.outHost + other.outHost,
    outNetwork: one.outNetwork + other.outNetwork,
    inHost: one.inHost + other.inHost,
    inNetwork: one.inNetwork + other.inNetwork,
  };
}

function timeOf({ outHost, outNetwork, inHost, inNetwork }: Load): bigint {
  return max(max(outHost, outNetwork), max(inHost, inNetwork));
}

/** Says where the ranks of a pattern's first tensor stand. */
interface Spread {
  /** Ranks that send, and the parts that the target is sharded into. */
  readonly sources: number;
  readonly targetGroups: number;
  readonly replicas: number;
  /** The most hosts of the replicas of a part; the most and the fewest replicas of a part on one host. */
  readonly hosts: number;
  readonly most: number;
  readonly fewest: number;
  readonly sourceHosts: ReadonlySet<number>;
  readonly targetHosts: ReadonlySet<number>;
  /** True if all of the source can be had on every host of the target. */
  readonly isNear: boolean;
}

function spreadOf(input: NormalInput, pattern: Pattern, topology: NormalTopology): Spread {
  const source = [...positions(pattern.source, input.sourceIndices[pattern.first]!)];
  const target = [...positions(pattern.target, input.targetIndices[pattern.first]!)];
  const perPart = new Map<number, Map<number, number>>();
  for (const { rank, part } of target) {
    const host = hostOf(topology, rank);
    const counts = perPart.get(part) ?? new Map<number, number>();
    perPart.set(part, counts);
    counts.set(host, (counts.get(host) ?? 0) + 1);
  }
  const partsOf = new Map<number, Set<number>>();
  for (const { rank, part } of source) {
    const host = hostOf(topology, rank);
    const parts = partsOf.get(host) ?? new Set<number>();
    partsOf.set(host, parts.add(part));
  }
  const allParts = new Set(source.map(({ part }) => part)).size;
  const counts = [...perPart.values()];
  const sizes = counts.flatMap((hosts) => [...hosts.values()]);
  const isWhole = ({ rank }: Position) => partsOf.get(hostOf(topology, rank))?.size === allParts;
  return {
    sources: source.length,
    targetGroups: perPart.size,
    replicas: replicasOf(pattern.target),
    hosts: counts.reduce((most, { size }) => Math.max(most, size), 0),
    most: sizes.reduce((a, b) => Math.max(a, b)),
    fewest: sizes.reduce((a, b) => Math.min(a, b)),
    sourceHosts: new Set(partsOf.keys()),
    targetHosts: new Set(counts.flatMap((hosts) => [...hosts.keys()])),
    isNear: target.every(isWhole),
  };
}

interface Position {
  readonly rank: number;
  /** Equal for ranks that hold the same indices of every tensor. */
  readonly part: number;
}

/** The ranks of a side's sub-mesh. */
function* positions(side: NormalSide, index: number): Generator<Position, void, undefined> {
  const { mesh } = side.layout;
  const base = subMeshBase(side, index);
  const size = side.subShape.reduce((product, extent) => product * extent, 1);
  for (let number = 0; number < size; number++) {
    let rest = number;
    let stride = 1;
    let weight = 1;
    let at = base;
    let part = 0;
    for (let dim = mesh.ndim - 1; dim >= 0; dim--) {
      const extent = side.subShape[dim]!;
      const coordinate = rest % extent;
      rest = Math.floor(rest / extent);
      at += coordinate * stride;
      stride *= mesh.shape[dim]!;
      const { kind } = side.placements[dim]!;
      if (kind === "replicate" || kind === "partial") continue;
      part += coordinate * weight;
      weight *= extent;
    }
    yield { rank: mesh.ranks[at]!, part };
  }
}

function replicasOf(side: NormalSide): number {
  return side.placements.reduce(
    (product, { kind }, dim) => (kind === "replicate" ? product * side.subShape[dim]! : product),
    1,
  );
}

/** A megabyte a second is a byte a microsecond. */
function nanoseconds(bytes: bigint, megabytesPerSecond: number): bigint {
  return ceilDiv(bytes * 1000n, BigInt(megabytesPerSecond));
}

function ceilDiv(a: bigint, b: bigint): bigint {
  return (a + b - 1n) / b;
}

function max(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}

function min(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}
