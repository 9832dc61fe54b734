import { itemSize } from "../../../src/layout/index.ts";
import type { Bucket, Chunk, PlanInput, Stage } from "../../../src/plan/input/types.ts";
import { type NaiveHolding, type NaiveSide, naiveSide } from "./naive-holdings.ts";

export interface NaiveTensor {
  readonly source: NaiveSide;
  readonly target: NaiveSide;
}

/** Elements that any right plan moves, by kind. */
export interface NaiveTotals {
  readonly copy: bigint;
  readonly send: bigint;
  readonly reduce: bigint;
}

export interface NaivePlan {
  readonly tensors: readonly NaiveTensor[];
  readonly chunks: Chunk[];
  readonly buckets: Bucket[];
}

/** A chunk of one element before it is in a bucket. */
interface Move {
  readonly stage: Stage;
  readonly kind: Chunk["kind"];
  readonly srcRank: number;
  readonly dstRank: number;
  readonly tensor: number;
  readonly from: Chunk["from"];
  readonly to: Chunk["to"];
  readonly src: number;
  readonly dst: number;
  readonly srcShape: readonly number[];
  readonly dstShape: readonly number[];
  /** What it waits for: moves that write what it reads. */
  readonly after: readonly Move[];
}

export function naiveTensors(input: PlanInput): NaiveTensor[] {
  return input.tensors.map((tensor) => {
    const pair = input.pairs[tensor.pair]!;
    return {
      source: naiveSide(pair.source, tensor.source, tensor.shape),
      target: naiveSide(pair.target, tensor.target, tensor.shape),
    };
  });
}

/**
 * A plan with one chunk an element, straight from the rules. `relay` sends every element to one target replica only,
 * which hands it on in stage 2.
 */
export function naivePlan(input: PlanInput, options: { readonly relay?: boolean } = {}): NaivePlan {
  const tensors = naiveTensors(input);
  const moves = tensors.flatMap((sides, tensor) => movesOf(sides, tensor, options.relay ?? false));
  return { tensors, ...pack(input, moves) };
}

/**
 * What any right plan moves: a target copies what it holds itself; a reduced element is copied once if some rank
 * that could own it wants it; every member of one group contributes each element once.
 */
export function naiveTotals(tensors: readonly NaiveTensor[]): NaiveTotals {
  let copy = 0n;
  let send = 0n;
  let reduce = 0n;
  for (const { source, target } of tensors) {
    const holders = new Map<number, Set<number>>();
    for (const { rank, ids } of source.byRank.values()) {
      for (const id of ids) holders.set(id, (holders.get(id) ?? new Set()).add(rank));
    }
    const copied = new Set<number>();
    for (const { rank, ids } of target.byRank.values()) {
      for (const id of ids) {
        const own = holders.get(id)!.has(rank) && (source.op === undefined || !copied.has(id));
        if (own) copied.add(id);
        if (own) copy++;
        else send++;
      }
    }
    const { group } = source.byRank.values().next().value!;
    if (source.op !== undefined) reduce += BigInt(holders.size * group.length);
  }
  return { copy, send, reduce };
}

/** The topology's host of a rank; without one every rank has its own. */
function hostIn(input: PlanInput, rank: number): number {
  const { topology } = input;
  return topology?.hosts?.[rank] ?? Math.floor(rank / (topology?.ranksPerHost ?? 1));
}

/**
 * Elements that cross to the target in stage 1 of a tensor that is not Partial: to every replica that does not hold them
 * (`none`); or to one replica of a group, which is all replicas of an element or those of one host, but to all of a group
 * in which one holds it.
 */
export function naiveCrossings(
  input: PlanInput,
  { source, target }: NaiveTensor,
  groups: "none" | "all" | "host",
): bigint {
  const holders = holdersById(source);
  const members = new Map<string, { wanting: number; holding: number }>();
  for (const { rank, ids } of target.byRank.values()) {
    const group = { none: rank, all: 0, host: hostIn(input, rank) }[groups];
    for (const id of ids) {
      const counts = members.get(`${group}:${id}`) ?? { wanting: 0, holding: 0 };
      members.set(`${group}:${id}`, counts);
      if (holders.get(id)!.some((holding) => holding.rank === rank)) counts.holding++;
      else counts.wanting++;
    }
  }
  return [...members.values()].reduce(
    (sum, { wanting, holding }) => sum + BigInt(holding === 0 ? 1 : wanting),
    0n,
  );
}

function movesOf({ source, target }: NaiveTensor, tensor: number, relay: boolean): Move[] {
  const holders = holdersById(source);
  const owners = new Map<number, { owner: NaiveHolding; folds: Move[] }>();
  const first = new Map<number, Move>();
  const moves: Move[] = [];
  for (const to of target.byRank.values()) {
    to.ids.forEach((id, dst) => {
      const relayed = first.get(id);
      const place = { tensor, to: "target" as const, dst, dstRank: to.rank, dstShape: to.localShape };
      let move: Move;
      if (relay && relayed !== undefined) {
        move = {
          ...place,
          stage: 2,
          kind: "send",
          from: "target",
          srcRank: relayed.dstRank,
          src: relayed.dst,
          srcShape: relayed.dstShape,
          after: [relayed],
        };
      } else {
        const held = holders.get(id)!;
        const reduced = source.op === undefined ? undefined : owners.get(id);
        let from = reduced?.owner ?? held.find((holding) => holding.rank === to.rank) ?? held[0]!;
        let after = reduced?.folds ?? [];
        if (source.op !== undefined && reduced === undefined) {
          // Owners rotate with the element, so that every member owns some.
          from = held[id % held.length]!;
          after = foldsOf(source, from, id, tensor);
          owners.set(id, { owner: from, folds: after as Move[] });
          moves.push(...after);
        }
        move = {
          ...place,
          stage: 1,
          kind: from.rank === to.rank ? "copy" : "send",
          from: source.op === undefined ? "source" : "reduced",
          srcRank: from.rank,
          src: from.ids.indexOf(id),
          srcShape: from.localShape,
          after,
        };
        first.set(id, move);
      }
      moves.push(move);
    });
  }
  return moves;
}

function holdersById(source: NaiveSide): Map<number, NaiveHolding[]> {
  const holders = new Map<number, NaiveHolding[]>();
  for (const holding of source.byRank.values()) {
    for (const id of holding.ids) {
      const list = holders.get(id) ?? [];
      holders.set(id, list);
      list.push(holding);
    }
  }
  return holders;
}

function foldsOf(source: NaiveSide, owner: NaiveHolding, id: number, tensor: number): Move[] {
  return owner.group.map((srcRank) => {
    const member = source.byRank.get(srcRank)!;
    return {
      stage: 0,
      kind: "reduce",
      tensor,
      from: "source",
      to: "reduced",
      srcRank,
      dstRank: owner.rank,
      src: member.ids.indexOf(id),
      dst: owner.ids.indexOf(id),
      srcShape: member.localShape,
      dstShape: owner.localShape,
      after: [],
    };
  });
}

function place(shape: readonly number[], index: number): bigint[] {
  let rest = index;
  return shape
    .toReversed()
    .map((size) => {
      const at = rest % size;
      rest = (rest - at) / size;
      return BigInt(at);
    })
    .reverse();
}

/** Fills buckets channel by channel; every channel has a wave of its own, and no bucket spans two tensors. */
function pack(input: PlanInput, moves: readonly Move[]): { chunks: Chunk[]; buckets: Bucket[] } {
  const most = BigInt(input.bucketBytes ?? 8 * 2 ** 20);
  const channels = new Map<string, Move[]>();
  for (const move of moves) {
    const channel = `${move.stage}:${move.srcRank}:${move.dstRank}`;
    const list = channels.get(channel) ?? [];
    channels.set(channel, list);
    list.push(move);
  }
  const ordered = [...channels].sort(([a], [b]) => Number(a[0]) - Number(b[0]));
  const bucketOf = new Map<Move, string>();
  const chunks: Chunk[] = [];
  const buckets: Bucket[] = [];
  ordered.forEach(([channel, list], wave) => {
    let sequence = -1;
    let index = 0;
    let end = 0n;
    let waits = new Set<string>();
    list.forEach((move, at) => {
      const { dtype, targetDtype = dtype } = input.tensors[move.tensor]!;
      const sizes = [
        itemSize(dtype),
        Math.min(itemSize(dtype), itemSize(targetDtype)),
        itemSize(targetDtype),
      ];
      const bytes = BigInt(sizes[move.stage]!);
      const begin = ((end + 15n) / 16n) * 16n;
      if (sequence < 0 || begin + bytes > most || list[at - 1]!.tensor !== move.tensor) {
        sequence++;
        index = 0;
        end = 0n;
        waits = new Set();
      }
      end = ((end + 15n) / 16n) * 16n + bytes;
      for (const earlier of move.after) waits.add(bucketOf.get(earlier)!);
      const { stage, kind, srcRank, dstRank, tensor, from, to } = move;
      const id = `${channel}:${sequence}`;
      bucketOf.set(move, id);
      const bucket = { id, stage, wave, srcRank, dstRank, bytes: end, waitsFor: [...waits] };
      if (index === 0) buckets.push(bucket);
      else buckets[buckets.length - 1] = bucket;
      chunks.push({
        id: `${id}:${index++}`,
        stage,
        kind,
        srcRank,
        dstRank,
        tensor,
        from,
        to,
        srcOffsets: place(move.srcShape, move.src),
        dstOffsets: place(move.dstShape, move.dst),
        lengths: move.srcShape.map(() => 1n),
        bytes,
        bucket: id,
        wave,
      });
    });
  });
  return { chunks, buckets };
}
