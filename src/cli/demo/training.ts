import { arrayTypeOf } from "../../bus/tensor/float-bits.ts";
import { type DType, isOpaque, itemSize } from "../../layout/index.ts";

/**
 * What training makes of the checkpoint's values by a round, in place. Whoever knows the round knows every value, so that the
 * engine's side can tell what must have arrived. Values of one round differ from those of any other.
 */
export function train(bytes: Uint8Array, dtype: DType, round: number): void {
  // Types that are only moved have no values to train.
  if (isOpaque(dtype)) throw new TypeError(`the demo cannot train ${dtype}`);
  const values = new (arrayTypeOf(dtype as Exclude<DType, "uint64" | "complex64">))(
    bytes.buffer as ArrayBuffer,
    bytes.byteOffset,
    bytes.byteLength / itemSize(dtype),
  );
  const decay = 1 - round / 64;
  if (values instanceof Float32Array) {
    for (let i = 0; i < values.length; i++) values[i] = values[i]! * decay;
  } else if (values instanceof Float64Array) {
    for (let i = 0; i < values.length; i++) values[i] = values[i]! * decay;
  } else if (values instanceof BigInt64Array) {
    for (let i = 0; i < values.length; i++) values[i] = values[i]! + BigInt(round);
  } else if (dtype === "float16") {
    // Another fraction, the same sign and exponent.
    for (let i = 0; i < values.length; i++)
      values[i] = (values[i]! & 0xfc00) | ((values[i]! + round) & 0x3ff);
  } else if (dtype === "bool") {
    for (let i = 0; i < values.length; i++) values[i] = values[i]! ^ (round & 1);
  } else {
    throw new TypeError(`the demo cannot train ${dtype}`);
  }
}
