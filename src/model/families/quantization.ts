import * as z from "zod";
import type { ModelTensor } from "../tensor.ts";
import type { Family } from "./table.ts";

const size = z
  .number()
  .int()
  .min(1)
  .max(2 ** 31);

/** What of a `quantization_config` decides on tensors. */
export const quantizationSchema = z.looseObject({
  quant_method: z.string().nullish(),
  weight_block_size: z.tuple([size, size]).nullish(),
  activation_scheme: z.string().nullish(),
  modules_to_not_convert: z.array(z.string()).nullish(),
  ignored_layers: z.array(z.string()).nullish(),
});
type QuantizationConfig = z.infer<typeof quantizationSchema>;

/** What takes the place of a linear layer's weight. */
export interface Quantization {
  /** True if the layer of this weight is quantized. */
  takes(weight: string): boolean;
  tensors(weight: string, shape: readonly number[]): ModelTensor[];
}

/** How weights are stored, or why that is not known. */
type QuantizationForm =
  | { readonly kind: "linear"; readonly quantization: Quantization }
  /** The family's table has it: the flag that its rows ask for. */
  | { readonly kind: "rows"; readonly flag: string }
  | { readonly kind: "unknown"; readonly why: string };

export function quantizationForm(family: Family, config: QuantizationConfig): QuantizationForm {
  const method = config.quant_method ?? "no quant_method";
  if (method !== "fp8" && method !== "mxfp4") {
    return { kind: "unknown", why: `tensorbus does not know how ${method} stores weights` };
  }
  if (!family.quantized?.includes(method)) {
    return { kind: "unknown", why: `tensorbus knows no checkpoint of this family in ${method}` };
  }
  if (method === "mxfp4") return { kind: "rows", flag: "mxfp4" };
  const scheme = config.activation_scheme ?? "dynamic";
  if (scheme !== "dynamic" && scheme !== "static") {
    return {
      kind: "unknown",
      why: `tensorbus does not know the activation_scheme ${JSON.stringify(scheme)}`,
    };
  }
  const block = config.weight_block_size ?? undefined;
  if (block !== undefined && scheme === "static") {
    return {
      kind: "unknown",
      why: "tensorbus does not know scales per block with a static activation_scheme",
    };
  }
  const kept = [...(config.modules_to_not_convert ?? []), ...(config.ignored_layers ?? [])];
  return { kind: "linear", quantization: float8(block, scheme === "static", kept) };
}

/** Float8 weights with a float32 scale: one a block of `[rows, columns]`, or one for all and maybe one of the input. */
function float8(
  block: readonly [number, number] | undefined,
  isStatic: boolean,
  kept: readonly string[],
): Quantization {
  return {
    takes: (weight) => {
      const module = weight.replace(/\.weight$/, "");
      return !kept.some(
        (one) => module === one || module.startsWith(`${one}.`) || module.endsWith(`.${one}`),
      );
    },
    tensors: (name, shape) => {
      const module = name.replace(/\.weight$/, "");
      const weight: ModelTensor = { name, shape, dtype: "float8_e4m3fn" };
      if (block !== undefined) {
        const blocks = shape.map((extent, dim) => Math.ceil(extent / block[dim]!));
        return [weight, { name: `${module}.weight_scale_inv`, shape: blocks, dtype: "float32" }];
      }
      const scale: ModelTensor = { name: `${module}.weight_scale`, shape: [], dtype: "float32" };
      if (!isStatic) return [weight, scale];
      return [weight, scale, { name: `${module}.input_scale`, shape: [], dtype: "float32" }];
    },
  };
}
