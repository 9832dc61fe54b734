import { TensorBusError } from "../errors.ts";
import { contiguousStrides } from "../layout/strides.ts";

/** A box of a tensor, in elements, one entry a dimension. */
export interface Box {
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
}

/** A run of elements that is contiguous on both sides: positions and length in elements. */
interface BoxRun {
  readonly from: number;
  readonly to: number;
  readonly length: number;
}

/**
 * The longest runs, in ascending order, that move `box` of a row-major tensor of `shape` to the box of the same lengths
 * at `targetOffsets` of a row-major tensor of `targetShape`. None if the box is empty. `TB_SHAPE` for a box that
 * does not lie in its tensor.
 */
export function* boxRuns(
  shape: readonly number[],
  box: Box,
  targetShape: readonly number[],
  targetOffsets: readonly number[],
): Generator<BoxRun> {
  checkBox(shape, box.offsets, box.lengths);
  checkBox(targetShape, targetOffsets, box.lengths);
  const { lengths } = box;
  if (lengths.includes(0)) return;
  const fromStrides = contiguousStrides(shape);
  const toStrides = contiguousStrides(targetShape);
  const inner = firstRunDimension(shape, targetShape, lengths);
  let length = 1;
  for (let dim = inner; dim < lengths.length; dim++) length *= lengths[dim]!;
  let from = dot(box.offsets, fromStrides);
  let to = dot(targetOffsets, toStrides);
  const index = new Array<number>(inner).fill(0);
  for (;;) {
    yield { from, to, length };
    let dim = inner - 1;
    for (; dim >= 0; dim--) {
      from += fromStrides[dim]!;
      to += toStrides[dim]!;
      index[dim]!++;
      if (index[dim]! < lengths[dim]!) break;
      from -= lengths[dim]! * fromStrides[dim]!;
      to -= lengths[dim]! * toStrides[dim]!;
      index[dim] = 0;
    }
    if (dim < 0) return;
  }
}

/** The first dimension from which on a run may span all: every later one is taken whole on both sides. */
function firstRunDimension(
  shape: readonly number[],
  targetShape: readonly number[],
  lengths: readonly number[],
): number {
  let dim = Math.max(0, lengths.length - 1);
  while (dim > 0 && lengths[dim] === shape[dim] && lengths[dim] === targetShape[dim]) dim--;
  return dim;
}

function checkBox(shape: readonly number[], offsets: readonly number[], lengths: readonly number[]): void {
  const inside =
    offsets.length === shape.length &&
    lengths.length === shape.length &&
    shape.every((extent, dim) => {
      const [offset, length] = [offsets[dim]!, lengths[dim]!];
      const counts =
        Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
      return counts && offset + length <= extent;
    });
  if (!inside) {
    throw new TensorBusError(
      "TB_SHAPE",
      `the box at [${offsets}] of lengths [${lengths}] does not lie in a tensor of shape [${shape}]`,
      { details: { shape, offsets, lengths } },
    );
  }
}

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, index) => sum + value * b[index]!, 0);
}
