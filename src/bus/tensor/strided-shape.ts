import { contiguousStrides } from "../../layout/strides.ts";

/** Shapes and strides of views, in elements, as PyTorch computes them. */

export interface StridedShape {
  readonly shape: readonly number[];
  /** Elements from one index to the next, for each dimension. */
  readonly strides: readonly number[];
  /** Elements before the first. */
  readonly offset: number;
}

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

/** Elements from the first to the last, both included; 0 for an empty tensor. */
export function elementSpan(shape: readonly number[], strides: readonly number[]): number {
  if (elementCount(shape) === 0) return 0;
  return shape.reduce((last, extent, dim) => last + (extent - 1) * strides[dim]!, 1);
}

/** True if the elements lie packed and row-major; strides of dimensions of size 1 do not matter. */
export function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  if (elementCount(shape) === 0) return true;
  const packed = contiguousStrides(shape);
  return shape.every((extent, dim) => extent === 1 || strides[dim] === packed[dim]);
}

/** A shape that can be allocated; `RangeError` for any other. */
export function checkShape(shape: readonly number[]): readonly number[] {
  for (const extent of shape) {
    if (!Number.isSafeInteger(extent) || extent < 0)
      throw new RangeError(`a dimension cannot have the size ${extent}`);
  }
  if (shape.length > 64) throw new RangeError(`a tensor has at most 64 dimensions, not ${shape.length}`);
  if (!Number.isSafeInteger(elementCount(shape)))
    throw new RangeError(`a tensor of ${shape.join(" x ")} has too many elements`);
  return Object.freeze([...shape]);
}

/** A dimension counted from the front; `RangeError` if there is none. */
function dimensionOf(dim: number, dims: number): number {
  if (!Number.isInteger(dim) || dim < -dims || dim >= dims) {
    throw new RangeError(`dimension ${dim} is not in a tensor of ${dims} dimensions`);
  }
  return dim < 0 ? dim + dims : dim;
}

/** The part from `start` to before `end` of a dimension, every `step`-th; negative bounds count from the end. */
export function sliced(
  { shape, strides, offset }: StridedShape,
  dimension: number,
  start: number,
  end: number,
  step: number,
): StridedShape {
  const dim = dimensionOf(dimension, shape.length);
  if (!Number.isSafeInteger(step) || step < 1)
    throw new RangeError(`a step must be a whole number of at least 1, not ${step}`);
  const extent = shape[dim]!;
  const bound = (value: number) => Math.min(extent, Math.max(0, value < 0 ? value + extent : value));
  const from = bound(start);
  const length = Math.max(0, Math.ceil((bound(end) - from) / step));
  return {
    shape: shape.with(dim, length),
    strides: strides.with(dim, strides[dim]! * step),
    offset: length === 0 ? offset : offset + from * strides[dim]!,
  };
}

/** One index of a dimension, which goes away. */
export function selected(
  { shape, strides, offset }: StridedShape,
  dimension: number,
  index: number,
): StridedShape {
  const dim = dimensionOf(dimension, shape.length);
  const extent = shape[dim]!;
  if (!Number.isInteger(index) || index < -extent || index >= extent) {
    throw new RangeError(`index ${index} is outside of a dimension of size ${extent}`);
  }
  const at = index < 0 ? index + extent : index;
  return {
    shape: shape.toSpliced(dim, 1),
    strides: strides.toSpliced(dim, 1),
    offset: offset + at * strides[dim]!,
  };
}

/** The dimensions in another order. */
export function permuted({ shape, strides, offset }: StridedShape, order: readonly number[]): StridedShape {
  const dims = order.map((dim) => dimensionOf(dim, shape.length));
  if (dims.length !== shape.length || new Set(dims).size !== dims.length) {
    throw new RangeError(`${order.join(", ")} is not an order of ${shape.length} dimensions`);
  }
  return { shape: dims.map((dim) => shape[dim]!), strides: dims.map((dim) => strides[dim]!), offset };
}

/**
 * The same elements in another shape, if that needs no copy: a new dimension must lie within dimensions that follow
 * each other without a gap. One size may be -1. `RangeError` otherwise.
 */
export function reshaped({ shape, strides, offset }: StridedShape, wanted: readonly number[]): StridedShape {
  const count = elementCount(shape);
  const target = inferred(wanted, count);
  if (count === 0 || target.length === 0)
    return { shape: target, strides: contiguousStrides(target), offset };
  const result = new Array<number>(target.length);
  let to = target.length - 1;
  let dim = shape.length - 1;
  while (dim >= 0) {
    // A block: dimensions that follow each other without a gap.
    const step = strides[dim]!;
    let block = shape[dim]!;
    while (dim > 0 && (shape[dim - 1] === 1 || strides[dim - 1] === block * step)) block *= shape[--dim]!;
    dim--;
    let filled = 1;
    while (to >= 0 && (filled < block || target[to] === 1)) {
      result[to] = step * filled;
      filled *= target[to--]!;
    }
    if (filled !== block) {
      throw new RangeError(`${shape.join(" x ")} with gaps cannot be seen as ${target.join(" x ")}`);
    }
  }
  return { shape: target, strides: result, offset };
}

function inferred(wanted: readonly number[], count: number): readonly number[] {
  const open = wanted.indexOf(-1);
  const known = wanted.reduce((product, extent) => (extent === -1 ? product : product * extent), 1);
  const shape = open < 0 ? wanted : wanted.with(open, known === 0 ? 0 : count / known);
  checkShape(shape);
  if (elementCount(shape) !== count) {
    throw new RangeError(`${count} elements cannot be seen as ${wanted.join(" x ")}`);
  }
  return shape;
}
