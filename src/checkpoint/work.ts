/**
 * The work of a mover, cut into items: boxes of tensors, each small enough for a buffer. Whatever an item covers is read once,
 * from the files that hold it, and written to every file that wants it. Items are slabs of a tensor's outermost dimension,
 * which lie in one piece both in a row-sharded and in a column-sharded file; of a tensor that is turned they are tiles.
 */
import { itemSize } from "../layout/index.ts";
import { type Cut, countOf, cutRows, cutTiles } from "./cut.ts";
import type { MovedTensor, TensorKind } from "./kinds.ts";

export interface WorkItem extends Cut {
  /** Index in the moved tensors. */
  readonly tensor: number;
}

/** Bytes of an item: enough for reads and writes to be long, few enough for threads to end together. */
const itemBytes = 8 * 2 ** 20;
/**
 * Bytes of a buffer, however large the tensors: an item that is turned on its way is read into one and packed in another. The
 * larger they are, the longer are the runs that are read and written.
 */
export const bufferBytes = 8 * 2 ** 20;

/** In the order of the source's files, so that they are read in sequence. Tensors of one kind are cut alike, by the same lists. */
export function cutWork(tensors: readonly MovedTensor[]): WorkItem[] {
  const firsts = tensors.map(({ kind, from }) => ({
    file: kind.boxes[0]?.file ?? 0,
    position: from[0] ?? 0,
  }));
  const order = [...tensors.keys()].sort((a, b) => {
    const [one, other] = [firsts[a]!, firsts[b]!];
    return one.file - other.file || one.position - other.position;
  });
  const known = new Map<TensorKind, readonly Cut[]>();
  const items: WorkItem[] = [];
  for (const tensor of order) {
    const { kind } = tensors[tensor]!;
    const cuts = known.get(kind) ?? [...cutTensor(kind)];
    if (known.size < mostCuts) known.set(kind, cuts);
    for (const { offsets, lengths } of cuts) items.push({ tensor, offsets, lengths });
  }
  return items;
}

const mostCuts = 2 ** 12;

export function itemSizeOf({ lengths }: Cut, { dtype }: TensorKind): number {
  return countOf(lengths) * itemSize(dtype);
}

function cutTensor(kind: TensorKind): Generator<Cut> {
  const { shape } = kind;
  const inner = turnedDimension(kind);
  if (inner !== undefined) return cutTiles(shape, inner, elementsIn(bufferBytes, kind));
  return cutRows({ offsets: shape.map(() => 0), lengths: shape }, elementsIn(itemBytes, kind));
}

/** As many elements as fit there in the widest of the types that a tensor has on its way. */
export function elementsIn(bytes: number, { dtype, destinations }: TensorKind): number {
  const widest = destinations.reduce((most, place) => Math.max(most, itemSize(place.dtype)), itemSize(dtype));
  return Math.max(1, Math.floor(bytes / widest));
}

/** The dimension other than the last whose elements lie side by side in a file of either end; `undefined` if there is none. */
export function turnedDimension({ shape, boxes, destinations }: TensorKind): number | undefined {
  for (const { axes } of destinations) if (isPermuting(axes)) return axes.findLast((axis) => axis >= 0);
  for (const { length, strides } of boxes) {
    const dim = strides.findIndex((stride, at) => stride === 1 && length[at]! > 1);
    if (dim >= 0 && dim < shape.length - 1 && length.some((extent, at) => at > dim && extent > 1)) return dim;
  }
  return undefined;
}

export function isPermuting(axes: readonly number[]): boolean {
  const used = axes.filter((axis) => axis >= 0);
  return used.some((axis, index) => index > 0 && axis < used[index - 1]!);
}
