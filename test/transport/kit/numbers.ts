/** Elements as numbers, and the arithmetic of reductions and casts, written down a second time for the tests. */
import type { DType, PartialOp } from "../../../src/layout/index.ts";

interface Format {
  readonly bytes: number;
  read(view: DataView, at: number): number;
  write(view: DataView, at: number, value: number): void;
}

const scratch = new DataView(new ArrayBuffer(8));

/** Bits of a float with a sign, 8 or 5 exponent bits and that many mantissa bits; ties to even. */
function smallFloatBits(value: number, exponentBits: number, mantissaBits: number): number {
  const bias = 2 ** (exponentBits - 1) - 1;
  const special = (2 ** exponentBits - 1) * 2 ** mantissaBits;
  scratch.setFloat64(0, value);
  const sign = (scratch.getUint8(0) >> 7) * 2 ** (exponentBits + mantissaBits);
  if (Number.isNaN(value)) return special + 2 ** (mantissaBits - 1);
  const magnitude = Math.abs(value);
  if (magnitude === 0) return sign;
  const exponent = Math.max(Math.floor(Math.log2(magnitude)), 1 - bias);
  const scaled = magnitude / 2 ** (exponent - mantissaBits);
  const bits = roundToEven(scaled) + (exponent - 1 + bias) * 2 ** mantissaBits;
  return sign + Math.min(bits, special);
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

function smallFloatValue(bits: number, exponentBits: number, mantissaBits: number): number {
  const bias = 2 ** (exponentBits - 1) - 1;
  const sign = bits >= 2 ** (exponentBits + mantissaBits) ? -1 : 1;
  const exponent = Math.floor(bits / 2 ** mantissaBits) % 2 ** exponentBits;
  const mantissa = bits % 2 ** mantissaBits;
  if (exponent === 2 ** exponentBits - 1)
    return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  if (exponent === 0) return sign * mantissa * 2 ** (1 - bias - mantissaBits);
  return sign * (2 ** mantissaBits + mantissa) * 2 ** (exponent - bias - mantissaBits);
}

const smallFloat = (exponentBits: number, mantissaBits: number): Format => ({
  bytes: 2,
  read: (view, at) => smallFloatValue(view.getUint16(at, true), exponentBits, mantissaBits),
  write: (view, at, value) => view.setUint16(at, smallFloatBits(value, exponentBits, mantissaBits), true),
});

export const formats = {
  float64: {
    bytes: 8,
    read: (view, at) => view.getFloat64(at, true),
    write: (view, at, value) => view.setFloat64(at, value, true),
  },
  float32: {
    bytes: 4,
    read: (view, at) => view.getFloat32(at, true),
    write: (view, at, value) => view.setFloat32(at, value, true),
  },
  float16: smallFloat(5, 10),
  bfloat16: smallFloat(8, 7),
  int64: {
    bytes: 8,
    read: (view, at) => Number(view.getBigInt64(at, true)),
    write: (view, at, value) => view.setBigInt64(at, BigInt(value), true),
  },
  int32: {
    bytes: 4,
    read: (view, at) => view.getInt32(at, true),
    write: (view, at, value) => view.setInt32(at, value, true),
  },
  int16: {
    bytes: 2,
    read: (view, at) => view.getInt16(at, true),
    write: (view, at, value) => view.setInt16(at, value, true),
  },
  uint8: {
    bytes: 1,
    read: (view, at) => view.getUint8(at),
    write: (view, at, value) => view.setUint8(at, value),
  },
} as const satisfies Partial<Record<DType, Format>>;

/** The element types that the transport's cases use; casts and reductions of all types are the kernels' tests. */
export type TestType = keyof typeof formats;

export function isFloat(type: TestType): boolean {
  return type.includes("float");
}

/** Not `scratch`, which `write` needs. One for all: a new one for each of a case's millions of values takes longer than all else. */
const rounding = new DataView(new ArrayBuffer(8));

/** The value as a type holds it. */
export function rounded(type: TestType, value: number): number {
  formats[type].write(rounding, 0, value);
  return formats[type].read(rounding, 0);
}

/**
 * The contributions folded one after the other in the accumulator's type (float32 for 16-bit floats), divided once, and
 * rounded once to the type.
 */
export function fold(
  type: TestType,
  op: PartialOp,
  contributions: readonly number[],
  divisor: number,
): number {
  const accumulator: TestType = type === "float16" || type === "bfloat16" ? "float32" : type;
  const total = contributions.reduce((sum, value) => rounded(accumulator, combine(op, sum, value)));
  return rounded(type, divisor === 1 ? total : rounded(accumulator, total / divisor));
}

function combine(op: PartialOp, a: number, b: number): number {
  switch (op) {
    case "sum":
    case "avg":
      return a + b;
    case "product":
      return a * b;
    case "max":
      return Math.max(a, b);
    case "min":
      return Math.min(a, b);
  }
}
