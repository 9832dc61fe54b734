import { type DType, itemSize } from "../../../src/layout/index.ts";
import { move } from "../../../src/memory/index.ts";

/** Our cast of packed elements. */
export function castBytes(input: Uint8Array, from: DType, to: DType): Uint8Array {
  const output = new Uint8Array((input.length / itemSize(from)) * itemSize(to));
  move({ bytes: output, dtype: to }, { bytes: input, dtype: from });
  return output;
}

/** Every bit pattern of a type of at most 16 bits; of bool, the two that torch has. */
export function everyPattern(dtype: DType): Uint8Array {
  if (dtype === "bool") return Uint8Array.of(0, 1);
  if (itemSize(dtype) === 1) return Uint8Array.from({ length: 256 }, (_, bits) => bits);
  return new Uint8Array(Uint16Array.from({ length: 65536 }, (_, bits) => bits).buffer);
}

/** The first element that differs, as the bits of the input, of what was expected and of what came; or nothing. */
export function firstDifference(
  input: Uint8Array,
  expected: Uint8Array,
  actual: Uint8Array,
  from: DType,
  to: DType,
): string | undefined {
  if (expected.length !== actual.length) return `${actual.length} bytes, not ${expected.length}`;
  if (Buffer.compare(expected, actual) === 0) return undefined;
  const byte = expected.findIndex((value, index) => value !== actual[index]);
  const element = Math.floor(byte / itemSize(to));
  const hex = (bytes: Uint8Array, item: number) =>
    `0x${Buffer.from(bytes.slice(element * item, (element + 1) * item))
      .reverse()
      .toString("hex")}`;
  return (
    `${from} ${hex(input, itemSize(from))} to ${to}: ` +
    `expected ${hex(expected, itemSize(to))}, got ${hex(actual, itemSize(to))}`
  );
}
