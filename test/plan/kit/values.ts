import { type DType, itemSize } from "../../../src/layout/index.ts";

interface FloatFormat {
  readonly exponentBits: number;
  readonly mantissaBits: number;
}

/** Formats that DataView does not know; values of the tests stay far from their infinities. */
const smallFloats: Partial<Record<DType, FloatFormat>> = {
  float16: { exponentBits: 5, mantissaBits: 10 },
  bfloat16: { exponentBits: 8, mantissaBits: 7 },
  float8_e4m3fn: { exponentBits: 4, mantissaBits: 3 },
  float8_e5m2: { exponentBits: 5, mantissaBits: 2 },
};

/** Nearest multiple of `unit`, ties to the even one. */
function roundTo(value: number, unit: number): number {
  const units = Math.floor(value / unit);
  const rest = value / unit - units;
  const up = rest > 0.5 || (rest === 0.5 && units % 2 !== 0);
  return (units + (up ? 1 : 0)) * unit;
}

function encodeFloat({ exponentBits, mantissaBits }: FloatFormat, value: number): number {
  const bias = 2 ** (exponentBits - 1) - 1;
  const sign = value < 0 || Object.is(value, -0) ? 2 ** (exponentBits + mantissaBits) : 0;
  let magnitude = Math.abs(value);
  if (magnitude === 0) return sign;
  const exponentOf = (x: number): number => Math.max(Math.floor(Math.log2(x)), 1 - bias);
  magnitude = roundTo(magnitude, 2 ** (exponentOf(magnitude) - mantissaBits));
  const exponent = exponentOf(magnitude);
  const mantissa = magnitude / 2 ** (exponent - mantissaBits);
  const subnormal = mantissa < 2 ** mantissaBits;
  return sign + (subnormal ? mantissa : (exponent + bias - 1) * 2 ** mantissaBits + mantissa);
}

function decodeFloat({ exponentBits, mantissaBits }: FloatFormat, bits: number): number {
  const bias = 2 ** (exponentBits - 1) - 1;
  const sign = bits >= 2 ** (exponentBits + mantissaBits) ? -1 : 1;
  const rest = bits % 2 ** (exponentBits + mantissaBits);
  const exponent = Math.floor(rest / 2 ** mantissaBits);
  const mantissa = rest % 2 ** mantissaBits;
  const whole = exponent === 0 ? mantissa : mantissa + 2 ** mantissaBits;
  return sign * whole * 2 ** (Math.max(exponent, 1) - bias - mantissaBits);
}

/** The bytes of a small finite number in an element type: floats round to nearest even, integers cut off. */
export function encode(dtype: DType, value: number): Uint8Array {
  const bytes = new Uint8Array(itemSize(dtype));
  const view = new DataView(bytes.buffer);
  const format = smallFloats[dtype];
  if (format !== undefined) {
    const bits = encodeFloat(format, value);
    if (bytes.length === 2) view.setUint16(0, bits, true);
    else view.setUint8(0, bits);
    return bytes;
  }
  switch (dtype) {
    case "float64":
      view.setFloat64(0, value, true);
      break;
    case "float32":
      view.setFloat32(0, value, true);
      break;
    case "int64":
      view.setBigInt64(0, BigInt(Math.trunc(value)), true);
      break;
    case "int32":
      view.setInt32(0, Math.trunc(value), true);
      break;
    case "int16":
      view.setInt16(0, Math.trunc(value), true);
      break;
    case "bool":
      view.setUint8(0, value === 0 ? 0 : 1);
      break;
    default:
      view.setUint8(0, Math.trunc(value));
  }
  return bytes;
}

export function decode(dtype: DType, bytes: Uint8Array, at = 0): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, itemSize(dtype));
  const format = smallFloats[dtype];
  if (format !== undefined)
    return decodeFloat(format, view.byteLength === 2 ? view.getUint16(0, true) : view.getUint8(0));
  switch (dtype) {
    case "float64":
      return view.getFloat64(0, true);
    case "float32":
      return view.getFloat32(0, true);
    case "int64":
      return Number(view.getBigInt64(0, true));
    case "int32":
      return view.getInt32(0, true);
    case "int16":
      return view.getInt16(0, true);
    case "int8":
      return view.getInt8(0);
    default:
      return view.getUint8(0);
  }
}

/** Raw where the types are one, so that every bit pattern passes; by way of the value otherwise. */
export function cast(from: DType, to: DType, bytes: Uint8Array): Uint8Array {
  return from === to ? bytes : encode(to, decode(from, bytes));
}
