import type { Layout, PartialOp, Placement } from "../../../src/layout/index.ts";
import type { TensorSideInput } from "../../../src/plan/input/types.ts";

/** What one rank holds of one tensor, element by element. */
export interface NaiveHolding {
  readonly rank: number;
  readonly localShape: readonly number[];
  /** The global row-major id of every local element, row-major. */
  readonly ids: readonly number[];
  /** Ranks that share this value, in ascending row-major order over the Partial dimensions; itself alone if none. */
  readonly group: readonly number[];
}

export interface NaiveSide {
  readonly byRank: ReadonlyMap<number, NaiveHolding>;
  readonly op: PartialOp | undefined;
  /** Product of the sizes of the avg dimensions. */
  readonly divisor: number;
}

/** Why a side has no meaning. */
export class UnreadableShard extends Error {}

/** Sizes do not add up to what they cut. */
export class MisfitSizes extends Error {}

const ceil = (a: number, b: number): number => Math.floor((a + b - 1) / b);

function chunk<T>(list: readonly T[], count: number, index: number): T[] {
  const size = ceil(list.length, count);
  return list.slice(index * size, (index + 1) * size);
}

function strided<T>(list: readonly T[], pieces: number, count: number, index: number): T[] {
  return Array.from({ length: pieces }, (_, piece) => chunk(chunk(list, pieces, piece), count, index)).flat();
}

/** Hands out the list from its beginning, to each coordinate as many as its size says. */
function sized<T>(list: readonly T[], sizes: readonly number[], index: number): T[] {
  if (sizes.reduce((a, b) => a + b, 0) !== list.length) throw new MisfitSizes("sizes");
  const rest = list.slice();
  const hands = sizes.map((size) => rest.splice(0, size));
  return hands[index]!;
}

function cutBy<T>(
  placement: Placement,
  list: readonly T[],
  pieces: number,
  count: number,
  index: number,
): T[] {
  if (placement.kind === "shard" && placement.sizes !== undefined) return sized(list, placement.sizes, index);
  return strided(list, pieces, count, index);
}

/** The coordinate that owns thing `index`. */
function ownerOf({ index, of, sizes }: NonNullable<TensorSideInput["select"]>, count: number): number {
  if (sizes === undefined) return Math.floor(index / ceil(of, count));
  return sizes.flatMap((size, coordinate) => Array.from({ length: size }, () => coordinate))[index]!;
}

function dimOf(placement: Placement, ndim: number): number | undefined {
  if (placement.kind !== "shard" && placement.kind !== "stridedShard") return undefined;
  return placement.dim < 0 ? placement.dim + ndim : placement.dim;
}

/** Mesh dimensions of each tensor dimension in shard order; `undefined` if some split factor has no place. */
function shardOrder(
  sizes: readonly number[],
  placements: readonly Placement[],
  ndim: number,
): number[][] | undefined {
  const orders: number[][] = Array.from({ length: ndim }, () => []);
  for (let m = placements.length - 1; m >= 0; m--) {
    const placement = placements[m]!;
    const dim = dimOf(placement, ndim);
    if (dim === undefined) continue;
    const factor = placement.kind === "stridedShard" ? placement.splitFactor : 1;
    const order = orders[dim]!;
    const places = Array.from({ length: order.length + 1 }, (_, place) => place);
    const place = places.find((at) => order.slice(0, at).reduce((p, d) => p * sizes[d]!, 1) === factor);
    if (place === undefined) return undefined;
    order.splice(place, 0, m);
  }
  return orders;
}

function coordinates(shape: readonly number[], position: number): number[] {
  let rest = position;
  return shape
    .toReversed()
    .map((size) => {
      const coordinate = rest % size;
      rest = (rest - coordinate) / size;
      return coordinate;
    })
    .reverse();
}

function product(values: readonly number[]): number {
  return values.reduce((a, b) => a * b, 1);
}

/** Global ids of the outer product of index lists. */
export function outerIds(shape: readonly number[], lists: readonly (readonly number[])[]): number[] {
  let ids = [0];
  lists.forEach((list, dim) => {
    ids = ids.flatMap((id) => list.map((index) => id * shape[dim]! + index));
  });
  return ids;
}

/** The holdings of a side, from the written rules alone. */
export function naiveSide(
  layout: Layout,
  side: TensorSideInput | undefined,
  shape: readonly number[],
): NaiveSide {
  const { mesh } = layout;
  const select = side?.select;
  const kept = select && ownerOf(select, mesh.shape[select.dim]!);
  const placements = layout.placements.map(
    (placement, dim): Placement =>
      dim === select?.dim && placement.kind === "shard" ? { kind: "shard", dim: placement.dim } : placement,
  );
  const sizes = mesh.shape.map((size, dim) => (dim === select?.dim ? 1 : size));
  const reading = side?.stridedShard ?? layout.stridedShard;
  const orders = shardOrder(sizes, placements, shape.length);
  const hasStrided = placements.some((placement) => placement.kind === "stridedShard");
  if (orders === undefined && reading !== "split") throw new UnreadableShard("undecodable");

  const members = Array.from(mesh.ranks, (rank, position) => ({
    rank,
    at: coordinates(mesh.shape, position),
  }))
    .filter(({ at }) => select === undefined || at[select.dim] === kept)
    .map(({ rank, at }) => ({ rank, at: at.map((c, dim) => (dim === select?.dim ? 0 : c)) }));
  const whole = shape.map((extent) => Array.from({ length: extent }, (_, index) => index));
  const bySplit = (at: readonly number[]): number[][] => {
    const lists = whole.slice();
    placements.forEach((placement, m) => {
      const dim = dimOf(placement, shape.length);
      if (dim === undefined) return;
      const pieces = placement.kind === "stridedShard" ? placement.splitFactor : 1;
      lists[dim] = cutBy(placement, lists[dim]!, pieces, sizes[m]!, at[m]!);
    });
    return lists;
  };
  const byOrder = (at: readonly number[]): number[][] =>
    whole.map((list, dim) =>
      orders![dim]!.reduce((rest, m) => cutBy(placements[m]!, rest, 1, sizes[m]!, at[m]!), list),
    );
  if (hasStrided && reading === undefined) {
    for (const { at } of members) {
      if (JSON.stringify(bySplit(at)) !== JSON.stringify(byOrder(at))) throw new UnreadableShard("differs");
    }
  }

  const partial = placements.flatMap((p, m) => (p.kind === "partial" && sizes[m]! > 1 ? [m] : []));
  const ops = placements.flatMap((p, m) => (p.kind === "partial" && sizes[m]! > 1 ? [{ op: p.op, m }] : []));
  const byRank = new Map<number, NaiveHolding>();
  for (const { rank, at } of members) {
    const lists = reading === "order" ? byOrder(at) : bySplit(at);
    const group = members.filter((other) => other.at.every((c, m) => partial.includes(m) || c === at[m]));
    byRank.set(rank, {
      rank,
      localShape: lists.map((list) => list.length),
      ids: outerIds(shape, lists),
      group: group.map((other) => other.rank),
    });
  }
  return {
    byRank,
    op: ops.find(({ op }) => op !== "avg")?.op ?? (ops.length > 0 ? "sum" : undefined),
    divisor: product(ops.filter(({ op }) => op === "avg").map(({ m }) => sizes[m]!)),
  };
}
