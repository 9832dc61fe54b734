/** Tensors as kinds: a model has many tensors and few kinds of them. */
import type { DType } from "../../layout/index.ts";

/** The kind of a tensor that a rank does not hold. */
export const absent = 0xffff_ffff;

/** Tensors of one rank that share pair, type, layout and local shape. */
export interface TensorKind {
  /** Index of the pair in the batch. */
  readonly pair: number;
  readonly dtype: DType;
  /** The local shape; the global one in the table of a side, unless its tensors are whole. */
  readonly shape: readonly number[];
  /** What the client has said of the global shape. */
  readonly globalShape?: readonly number[] | undefined;
  /** Index in the layouts of the rank, or of the side; without one, the pair's layout counts. */
  readonly layout?: number | undefined;
}

/** Tensors in the order of their names: the kind of each. */
export interface TensorTable {
  readonly kinds: readonly TensorKind[];
  readonly kindOf: Uint32Array;
}
