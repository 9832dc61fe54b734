import type { ParameterBox, RankParameter } from "./rank.ts";

/** A parameter in the form in which vLLM's layouts are recorded, and which `tensorbus layout --json` prints. */
export function describeParameter(parameter: RankParameter, dtype: string): Record<string, unknown> {
  const { name, aliases, shape, boxes, zero, constant } = parameter;
  return {
    name,
    ...(aliases.length > 0 && { aliases }),
    shape,
    dtype,
    boxes: boxes.map(describeBox),
    ...(zero.length > 0 && { zero: zero.map(({ at, size }) => ({ at, len: size })) }),
    ...(constant !== undefined && { const: [{ at: [0], len: [1], value: constant }] }),
  };
}

/** `len` is left out if it is `hfLen`, `axes` if elements keep their order. */
function describeBox({ tensor, start, length, at, size, axes }: ParameterBox): Record<string, unknown> {
  const permuted = axes.filter((axis) => axis >= 0);
  const isTransposed = permuted.some((axis, index) => index > 0 && axis < permuted[index - 1]!);
  const isSame = size.length === length.length && size.every((extent, axis) => extent === length[axis]);
  return {
    hf: tensor,
    hfStart: start,
    hfLen: length,
    at,
    ...(!isSame && { len: size }),
    ...(isTransposed && { transposed: true, axes: axes.map((axis) => (axis < 0 ? null : axis)) }),
  };
}
