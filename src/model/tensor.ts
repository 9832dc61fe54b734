import type { DType } from "../layout/index.ts";

/** A tensor of a model: its name, its global shape in elements, its element type. */
export interface ModelTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
}

/** The elements of a shape: 1 for a scalar. `undefined` if that is no exact integer. */
export function elementCount(shape: readonly number[]): number | undefined {
  if (shape.includes(0)) return 0;
  let count = 1;
  for (const extent of shape) {
    count *= extent;
    if (!Number.isSafeInteger(count)) return undefined;
  }
  return count;
}
