import type { Holding } from "../../layout/index.ts";

/** In each dimension of a tensor the indices from the first up to, but not with, the second. */
export type Box = readonly (readonly [start: bigint, end: bigint])[];

export function boxAt(offsets: readonly bigint[], lengths: readonly bigint[]): Box {
  return offsets.map((offset, dim) => [offset, offset + lengths[dim]!]);
}

/** The elements of a box; of a scalar's, which has no dimensions, 1. */
export function volume(box: Box): bigint {
  return box.reduce((product, [start, end]) => product * (end - start), 1n);
}

/** What two boxes of a tensor have in common, if that is anything. */
export function intersection(a: Box, b: Box): Box | undefined {
  const common: [bigint, bigint][] = [];
  for (const [dim, [start, end]] of a.entries()) {
    const [otherStart, otherEnd] = b[dim]!;
    const low = start > otherStart ? start : otherStart;
    const high = end < otherEnd ? end : otherEnd;
    if (low >= high) return undefined;
    common.push([low, high]);
  }
  return common;
}

/** The box of the same place in a box that lies elsewhere: `box` is a part of `whole`, which lies at `at`. */
export function moved(box: Box, whole: Box, at: Box): Box {
  return box.map(([start, end], dim) => {
    const shift = at[dim]![0] - whole[dim]![0];
    return [start + shift, end + shift];
  });
}

/**
 * Finds a box of a local tensor in the whole tensor: several boxes if it goes over the ends of runs, each with the
 * part of the local box that it is of.
 */
export function globalBoxes(local: Box, { runs }: Holding): { readonly local: Box; readonly global: Box }[] {
  let boxes: { readonly local: Box; readonly global: Box }[] = [{ local: [], global: [] }];
  for (const [dim, range] of local.entries()) {
    const pieces = piecesIn(range, runs[dim]!);
    boxes = boxes.flatMap((box) =>
      pieces.map((piece) => ({
        local: [...box.local, piece.local],
        global: [...box.global, piece.global],
      })),
    );
  }
  return boxes;
}

/** A range of local indices, cut where the runs that it goes over end. */
function piecesIn([start, end]: Box[number], runs: Holding["runs"][number]) {
  const pieces: { readonly local: Box[number]; readonly global: Box[number] }[] = [];
  let position = 0n;
  for (const run of runs) {
    const next = position + BigInt(run.length);
    const [low, high] = [start > position ? start : position, end < next ? end : next];
    const shift = BigInt(run.start) - position;
    if (low < high) pieces.push({ local: [low, high], global: [low + shift, high + shift] });
    position = next;
  }
  if (end > position) throw new RangeError(`index ${end - 1n} is beyond the elements that are held`);
  return pieces;
}

/**
 * Joins things whose boxes are neighbours into one with a larger box, dimension by dimension, as long as all of their
 * boxes join. `boxesOf` names the boxes of a thing; the first is that by which things are compared.
 */
export function joinNeighbours<T>(
  things: readonly T[],
  boxesOf: (thing: T) => readonly Box[],
  join: (one: T, other: T, boxes: readonly Box[]) => T,
): T[] {
  let joined = [...things];
  const ndim = joined.length === 0 ? 0 : boxesOf(joined[0]!)[0]!.length;
  for (let dim = ndim - 1; dim >= 0; dim--) {
    // Those that could join stand beside each other: equal in all other dimensions, ascending in this one.
    joined.sort((a, b) => compareBoxes(boxesOf(a)[0]!, boxesOf(b)[0]!, dim));
    const next: T[] = [];
    for (const thing of joined) {
      const last = next.at(-1);
      const boxes = last === undefined ? undefined : joinedBoxes(boxesOf(last), boxesOf(thing), dim);
      if (boxes === undefined) next.push(thing);
      else next[next.length - 1] = join(last!, thing, boxes);
    }
    joined = next;
  }
  return joined;
}

/** The boxes of two things as one, if each continues the other along one dimension and is like it in all else. */
function joinedBoxes(first: readonly Box[], second: readonly Box[], along: number): Box[] | undefined {
  const boxes: Box[] = [];
  for (const [index, box] of first.entries()) {
    const other = second[index]!;
    const fits = box.every(([start, end], dim) =>
      dim === along ? end === other[dim]![0] : start === other[dim]![0] && end === other[dim]![1],
    );
    if (!fits) return undefined;
    boxes.push(box.map(([start, end], dim) => [start, dim === along ? other[dim]![1] : end]));
  }
  return boxes;
}

/** By starts and ends of all dimensions in order, with dimension `last` after all others. */
export function compareBoxes(a: Box, b: Box, last?: number): number {
  for (let dim = 0; dim < a.length; dim++) {
    if (dim === last) continue;
    const difference = a[dim]![0] - b[dim]![0] || a[dim]![1] - b[dim]![1];
    if (difference !== 0n) return difference < 0n ? -1 : 1;
  }
  if (last === undefined) return 0;
  return Number(a[last]![0] - b[last]![0]);
}
