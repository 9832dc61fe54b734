/** Strides in elements of a packed row-major tensor; those of an empty one are as if its empty dimensions had size 1. */
export function contiguousStrides(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let dim = shape.length - 1; dim >= 0; dim--) {
    strides[dim] = step;
    step *= Math.max(1, shape[dim]!);
  }
  return strides;
}
