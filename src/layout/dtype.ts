import { TensorBusError } from "../errors.ts";

/**
 * The element types, in the order of their numbers. The numbers cross into WebAssembly, C and the canonical bytes of a
 * plan: append, never reorder. Names are PyTorch's, less the `torch.`.
 */
export const dtypes = [
  "float64",
  "float32",
  "float16",
  "bfloat16",
  "float8_e4m3fn",
  "float8_e5m2",
  "int64",
  "int32",
  "int16",
  "int8",
  "uint8",
  "bool",
] as const;

export type DType = (typeof dtypes)[number];

const itemSizes = [8, 4, 2, 2, 1, 1, 8, 4, 2, 1, 1, 1] as const;
const numbers = new Map<string, number>(dtypes.map((name, index) => [name, index]));

export function isDType(name: unknown): name is DType {
  return typeof name === "string" && numbers.has(name);
}

/** The number of an element type; `TB_DTYPE` if it is unknown. */
export function dtypeNumber(name: string): number {
  const number = numbers.get(name);
  if (number === undefined) {
    throw new TensorBusError("TB_DTYPE", `unknown element type ${JSON.stringify(name)}`, {
      details: { dtype: name, known: dtypes },
    });
  }
  return number;
}

/** Bytes of one element. */
export function itemSize(name: DType): number {
  return itemSizes[dtypeNumber(name)]!;
}
