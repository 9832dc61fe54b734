/** Between float32 and the element types that JavaScript has no typed array for: 16- and 8-bit floats as their bits. */
import { type DType, itemSize } from "../../layout/index.ts";
import { move } from "../../memory/kernels.ts";
import type { TypedArrayConstructor } from "../../memory/mapping.ts";

const arrays = {
  float64: Float64Array,
  float32: Float32Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  float8_e4m3fn: Uint8Array,
  float8_e5m2: Uint8Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  uint64: BigUint64Array,
  complex64: BigUint64Array,
  float8_e8m0fnu: Uint8Array,
  float8_e4m3fnuz: Uint8Array,
  float8_e5m2fnuz: Uint8Array,
  float4_e2m1fn: Uint8Array,
  float6_e2m3fn: Uint8Array,
  float6_e3m2fn: Uint8Array,
} as const satisfies Record<DType, TypedArrayConstructor>;

/**
 * The typed array that holds elements of a type: of their bits for 16- and 8-bit floats and complex numbers, of 0 and 1 for
 * bool, of the bytes that they share for packed types.
 */
export type TensorArray<D extends DType = DType> = InstanceType<(typeof arrays)[D]>;

export function arrayTypeOf<D extends DType>(dtype: D): (typeof arrays)[D] {
  return arrays[dtype];
}

/** Elements of `dtype` nearest to each value, as `.to()` of PyTorch rounds them (`docs/element-types.md`). */
export function fromFloat32<D extends DType>(
  values: Float32Array | readonly number[],
  dtype: D,
): TensorArray<D> {
  const source = values instanceof Float32Array ? values : Float32Array.from(values);
  const result = new arrays[dtype](source.length);
  move({ bytes: result, dtype }, { bytes: source, dtype: "float32" });
  return result as TensorArray<D>;
}

/** The values of elements of `dtype`; `TypeError` if the array's elements have another size. */
export function toFloat32(elements: ArrayBufferView, dtype: DType): Float32Array {
  const size = itemSize(dtype);
  if (elements.byteLength % size !== 0) {
    throw new TypeError(`${elements.byteLength} bytes are not a whole number of elements of ${dtype}`);
  }
  const result = new Float32Array(elements.byteLength / size);
  move({ bytes: result, dtype: "float32" }, { bytes: elements, dtype });
  return result;
}
