import type { DType } from "../../layout/index.ts";
import type { LocalLayouts } from "./local.ts";

/**
 * A box of a checkpoint's tensor in a parameter: what lies there from `start` on, `length` long, lies `at` a place of the
 * parameter, `size` long. For each axis of the parameter `axes` has the tensor's, -1 for one that the tensor lacks. Axes that
 * ascend keep the order of elements; others permute it.
 */
export interface ParameterBox {
  readonly tensor: string;
  readonly start: readonly number[];
  readonly length: readonly number[];
  readonly at: readonly number[];
  readonly size: readonly number[];
  readonly axes: readonly number[];
}

/** A parameter as one rank has it. Boxes, zero regions and a constant tile it exactly. Counted in elements. */
export interface RankParameter {
  readonly name: string;
  readonly aliases: readonly string[];
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** True if the type is fixed, or that of the model. */
  readonly fixedDtype: boolean;
  readonly boxes: readonly ParameterBox[];
  readonly zero: readonly { readonly at: readonly number[]; readonly size: readonly number[] }[];
  /** The value of a parameter of one number that no tensor of the checkpoint has. */
  readonly constant?: number;
}

/** The parameters of one rank, in the order of the model's tensors. */
export function* rankParameters(layouts: LocalLayouts, rank: number): Generator<RankParameter> {
  const { parameters, parts, tensors } = layouts.side;
  for (const [index, parameter] of parameters.entries()) {
    if (!layouts.has(index, rank)) continue;
    const { shape, pieces, zero } = layouts.local(index, rank);
    const { name, aliases, dtype, fixedDtype, constant } = parameter;
    yield {
      name,
      aliases,
      shape,
      dtype,
      fixedDtype,
      boxes: pieces.map(({ ordinal, start, length, at, size, axes }) => ({
        tensor: tensors[parts[parameter.parts[ordinal]!]!.tensor]!.name,
        start,
        length,
        at,
        size,
        axes,
      })),
      zero,
      ...(constant !== undefined && { constant }),
    };
  }
}
