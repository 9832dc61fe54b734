import { itemSize } from "../../layout/index.ts";
import type { Arrival, Departure, PairInput, Part, Stage, TensorInput } from "../../plan/index.ts";
import { formatRanks } from "../ui/format.ts";

/** Parts of which the same can be said, and what differs between them. */
export interface PartGroup {
  readonly title: string;
  /** Which end of the parts is the rank that is spoken of. */
  readonly here: "from" | "to";
  readonly parts: readonly ShownPart[];
  readonly columns: readonly PartColumn[];
}

/** What a group says of each of its parts. */
export type PartColumn =
  | { readonly kind: "peer" }
  | { readonly kind: "there" }
  /** Ranks that are named otherwise. */
  | { readonly kind: "ranks"; readonly head: string; readonly of: (part: ShownPart) => string };

export type ShownPart = Arrival & Partial<Departure>;

const peer: PartColumn = { kind: "peer" };
const there: PartColumn = { kind: "there" };
const thenTo: PartColumn = {
  kind: "ranks",
  head: "then to",
  of: ({ after = [] }) => ranksOf(after.map(({ to }) => to.rank)),
};
const before = (head: string): PartColumn => ({
  kind: "ranks",
  head,
  of: (part) => ranksOf(part.before.map(({ from }) => from.rank)),
});

function ranksOf(ranks: readonly number[]): string {
  return formatRanks([...new Set(ranks)].sort((a, b) => a - b));
}

/** Says where a rank's part of the target comes from, by how it comes. */
export function arrivalGroups(
  tensor: TensorInput,
  pair: PairInput,
  arrivals: readonly Arrival[],
): PartGroup[] {
  const cast = describeCast(tensor);
  const contributions = before(`${foldOf(pair)} of ranks`);
  const cross = (reduced: boolean, own: boolean) => select(arrivals, 1, reduced, own);
  const groups: Omit<PartGroup, "here">[] = [
    {
      title: `Copied from its own part of the source${cast.copied}`,
      parts: cross(false, true),
      columns: [there],
    },
    {
      title: `Reduced here (stage reduce), then copied${cast.copied}`,
      parts: cross(true, true),
      columns: [contributions],
    },
    {
      title: `Stage cross, from ranks of the source${cast.sent}`,
      parts: cross(false, false),
      columns: [peer, there],
    },
    {
      title: `Stage cross, from ranks that reduced it (stage reduce)${cast.sent}`,
      parts: cross(true, false),
      columns: [peer, there, contributions],
    },
    {
      title: "Stage fanout, from replicas that got it before",
      parts: arrivals.filter(({ stage }) => stage === 2),
      columns: [peer, before("had from")],
    },
  ];
  return groups.filter(({ parts }) => parts.length > 0).map((group) => ({ ...group, here: "to" }));
}

/** Says where a rank's part of the source goes, by how it goes. */
export function departureGroups(
  tensor: TensorInput,
  pair: PairInput,
  departures: readonly ShownPart[],
): PartGroup[] {
  const cast = describeCast(tensor);
  const contributions = before(`${foldOf(pair)} of ranks`);
  const of = (stage: Stage, reduced: boolean, own: boolean) => select(departures, stage, reduced, own);
  const groups: Omit<PartGroup, "here">[] = [
    { title: "Stage reduce, into what is reduced here", parts: of(0, false, true), columns: [thenTo] },
    { title: "Stage reduce, to ranks that reduce it", parts: of(0, false, false), columns: [peer, thenTo] },
    {
      title: `Copied to its own part of the target${cast.copied}`,
      parts: of(1, false, true),
      columns: [there, thenTo],
    },
    {
      title: `Reduced here, then copied to its own part of the target${cast.copied}`,
      parts: of(1, true, true),
      columns: [there, contributions, thenTo],
    },
    {
      title: `Stage cross, to ranks of the target${cast.sent}`,
      parts: of(1, false, false),
      columns: [peer, there, thenTo],
    },
    {
      title: `Stage cross, reduced here, to ranks of the target${cast.sent}`,
      parts: of(1, true, false),
      columns: [peer, there, contributions, thenTo],
    },
  ];
  return groups.filter(({ parts }) => parts.length > 0).map((group) => ({ ...group, here: "from" }));
}

/** What a rank of the target passes on to others. */
export function passedOnGroups(departures: readonly ShownPart[]): PartGroup[] {
  const parts = departures.filter(({ stage }) => stage === 2);
  if (parts.length === 0) return [];
  return [{ title: "Stage fanout, to replicas that want the same", here: "from", parts, columns: [peer] }];
}

function select<P extends Part>(parts: readonly P[], stage: Stage, reduced: boolean, own: boolean): P[] {
  return parts.filter(
    (part) =>
      part.stage === stage &&
      (part.from.buffer === "reduced") === reduced &&
      (part.from.rank === part.to.rank) === own,
  );
}

/** There is one cast, in stage cross: the wire carries the narrower type, at equal width the target's. */
function describeCast({ dtype, targetDtype = dtype }: TensorInput): { copied: string; sent: string } {
  if (dtype === targetDtype) return { copied: "", sent: "" };
  const when = itemSize(dtype) < itemSize(targetDtype) ? "as it arrives" : "before it travels";
  return { copied: `, cast to ${targetDtype}`, sent: `, cast to ${targetDtype} ${when}` };
}

function foldOf({ source }: PairInput): string {
  const ops = source.placements.flatMap((one) => (one.kind === "partial" ? [one.op] : []));
  return [...new Set(ops)].join(", ");
}
