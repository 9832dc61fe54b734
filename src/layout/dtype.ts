import { TensorBusError } from "../errors.ts";

/**
 * The element types, in the order of their numbers. The numbers cross into WebAssembly, C and the canonical bytes of a
 * plan: append, never reorder. Names are PyTorch's, less the `torch.`; those of packed types are ml_dtypes'.
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
  "uint16",
  "uint32",
  "uint64",
  "complex64",
  "float8_e8m0fnu",
  "float8_e4m3fnuz",
  "float8_e5m2fnuz",
  "float4_e2m1fn",
  "float6_e2m3fn",
  "float6_e3m2fn",
] as const;

export type DType = (typeof dtypes)[number];

/** Types of fewer than 8 bits: several elements share a byte, row by row. */
type PackedType = "float4_e2m1fn" | "float6_e2m3fn" | "float6_e3m2fn";

/** The types that can be cast and reduced: the kernels know these, and move all others as one of them. */
export const arithmeticTypes = dtypes.slice(0, dtypes.indexOf("uint16"));

const itemBits: Readonly<Record<DType, number>> = {
  float64: 64,
  float32: 32,
  float16: 16,
  bfloat16: 16,
  float8_e4m3fn: 8,
  float8_e5m2: 8,
  int64: 64,
  int32: 32,
  int16: 16,
  int8: 8,
  uint8: 8,
  bool: 8,
  uint16: 16,
  uint32: 32,
  uint64: 64,
  complex64: 64,
  float8_e8m0fnu: 8,
  float8_e4m3fnuz: 8,
  float8_e5m2fnuz: 8,
  float4_e2m1fn: 4,
  float6_e2m3fn: 6,
  float6_e3m2fn: 6,
};
const numbers = new Map<string, number>(dtypes.map((name, index) => [name, index]));
const carriers = { 8: "uint8", 16: "int16", 32: "int32", 64: "int64" } as const;

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

/** Bytes of one element: 0.5 or 0.75 for packed types. */
export function itemSize(name: DType): number {
  dtypeNumber(name);
  return itemBits[name] / 8;
}

/** Bytes of so many elements; of a packed type the last byte may be used in part. */
export function bytesOf(name: DType, elements: bigint): bigint {
  return (elements * BigInt(itemBits[name]) + 7n) / 8n;
}

/** True if a type is only moved: it can be neither cast nor reduced. */
export function isOpaque(name: DType): boolean {
  return dtypeNumber(name) >= arithmeticTypes.length;
}

export function isPacked(name: DType): name is PackedType {
  return itemBits[name] < 8;
}

/** Refuses a packed type (`TB_DTYPE`) for a use in which every element must have an address. */
export function refusePacked(name: DType): void {
  if (!isPacked(name)) return;
  throw new TensorBusError(
    "TB_DTYPE",
    `elements of ${name} share bytes: say uint8, and as many elements as bytes`,
    { details: { dtype: name } },
  );
}

/** The fewest elements that fill whole bytes, and how many: 2 in 1 and 4 in 3 for packed types, else 1 in its own. */
export function unitOf(name: DType): { readonly elements: number; readonly bytes: number } {
  const bits = itemBits[name];
  const elements = bits === 4 ? 2 : bits === 6 ? 4 : 1;
  return { elements, bytes: (elements * bits) / 8 };
}

/** The type as which kernels move elements: a type's own, or one of as many bytes if it is only moved. */
export function movedAs(name: DType): DType {
  if (!isOpaque(name)) return name;
  return carriers[Math.max(8, itemBits[name]) as keyof typeof carriers] ?? "uint8";
}

/** `TB_DTYPE` if elements of the one type cannot become elements of the other. */
export function checkCast(from: DType, to: DType, place: string): void {
  if (from === to) return;
  const opaque = [from, to].find(isOpaque);
  if (opaque === undefined) return;
  throw new TensorBusError(
    "TB_DTYPE",
    `${place}: ${from} cannot be cast to ${to}: elements of ${opaque} are only moved as they are`,
    { details: { place, from, to, opaque } },
  );
}
