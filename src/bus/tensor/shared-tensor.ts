/** Tensors in memory that the agent maps: what it moves is what the caller reads and writes, without a copy. */
import type { DType } from "../../layout/index.ts";
import { itemSize, refusePacked } from "../../layout/index.ts";
import { contiguousStrides } from "../../layout/strides.ts";
import { describeElements, move } from "../../memory/kernels.ts";
import { arrayTypeOf, type TensorArray } from "./float-bits.ts";
import { SharedArenas, type SharedStorage } from "./shared-arena.ts";
import {
  checkShape,
  elementCount,
  elementSpan,
  isContiguous,
  permuted,
  reshaped,
  type StridedShape,
  selected,
  sliced,
} from "./strided-shape.ts";

/** The arenas of this process: small tensors of all its clients lie together. */
const arenas = new SharedArenas();

/** Small tensors that are allocated from here on share no memory with those before. */
export function leaveArena(): void {
  arenas.leave();
}

interface Place {
  readonly storage: SharedStorage;
  /** Bytes from the start of the storage to what offsets count from. */
  readonly base: number;
}

/**
 * A tensor in shared memory, or a strided view of one. Views share the elements, and are tensors like any other. The
 * memory is freed when the tensor, its views and all typed arrays on them have been collected, and no batch holds them.
 */
export class SharedTensor<D extends DType = DType> {
  readonly dtype: D;
  readonly shape: readonly number[];
  /** Elements from one index to the next, for each dimension. */
  readonly strides: readonly number[];
  readonly #place: Place;
  readonly #offset: number;
  #data: TensorArray<D> | undefined;

  private constructor(dtype: D, { shape, strides, offset }: StridedShape, place: Place) {
    this.dtype = dtype;
    this.shape = Object.freeze([...shape]);
    this.strides = Object.freeze([...strides]);
    this.#place = place;
    this.#offset = offset;
  }

  /**
   * A new tensor of zeros, packed and row-major. `RangeError` for a shape that none can have, `TB_DTYPE` for an unknown
   * element type or a packed one, `TB_NO_SPACE` if shared memory is full.
   */
  static allocate<D extends DType>(shape: readonly number[], dtype: D): SharedTensor<D> {
    checkShape(shape);
    refusePacked(dtype);
    const { storage, offset } = arenas.allocate(elementCount(shape) * itemSize(dtype));
    const strides = contiguousStrides(shape);
    return new SharedTensor(dtype, { shape, strides, offset: 0 }, { storage, base: offset });
  }

  /** The memory that it lies in, for code that describes it to an agent. */
  get storage(): SharedStorage {
    return this.#place.storage;
  }

  /** Bytes from the start of the storage to the first element. */
  get storageOffset(): number {
    return this.#place.base + this.#offset * itemSize(this.dtype);
  }

  /** Elements in all. */
  get size(): number {
    return elementCount(this.shape);
  }

  /** True if the elements lie packed and row-major. */
  get isContiguous(): boolean {
    return isContiguous(this.shape, this.strides);
  }

  /**
   * The elements themselves, from the first to the last: 16- and 8-bit floats as their bits, bool as 0 and 1. For a tensor
   * that is not contiguous it has those between them too: element (i, j, …) stands at i * strides[0] + j * strides[1] + ….
   * `RangeError` for more than 1 GiB: take slices.
   */
  get data(): TensorArray<D> {
    const length = elementSpan(this.shape, this.strides);
    // One that was transferred to another thread is empty here.
    if (this.#data === undefined || this.#data.length !== length) {
      const type = arrayTypeOf(this.dtype);
      const window = this.storage.window(this.storageOffset, length * itemSize(this.dtype));
      this.#data = new type(window.buffer, window.offset, length) as TensorArray<D>;
    }
    return this.#data;
  }

  /** Indices `start` to before `end` of a dimension, every `step`-th; negative bounds count from the end. */
  slice(dim: number, start = 0, end = Number.MAX_SAFE_INTEGER, step = 1): SharedTensor<D> {
    return this.#seenAs(sliced(this.#strided, dim, start, end, step));
  }

  /** One index of a dimension, which goes away. */
  select(dim: number, index: number): SharedTensor<D> {
    return this.#seenAs(selected(this.#strided, dim, index));
  }

  /** Two dimensions in each other's place. */
  transpose(first: number, second: number): SharedTensor<D> {
    const order = this.shape.map((_, dim) => dim);
    const [a, b] = [order.at(first), order.at(second)];
    if (a === undefined || b === undefined) {
      throw new RangeError(
        `dimensions ${first} and ${second} are not both in a tensor of ${order.length} dimensions`,
      );
    }
    return this.permute(...order.with(a, b).with(b, a));
  }

  /** All dimensions in another order. */
  permute(...order: readonly number[]): SharedTensor<D> {
    return this.#seenAs(permuted(this.#strided, order));
  }

  /** The same elements in another shape, of which one size may be -1. `RangeError` if that would need a copy. */
  view(shape: readonly number[]): SharedTensor<D> {
    return this.#seenAs(reshaped(this.#strided, shape));
  }

  /** The values of all elements, packed and row-major, as float32. */
  toFloat32(): Float32Array {
    const result = new Float32Array(this.size);
    if (this.size > 0) move({ bytes: result, dtype: "float32" }, this.#elements());
    return result;
  }

  /** Sets all elements, in row-major order, each rounded to the element type. `RangeError` for another count of values. */
  fromFloat32(values: Float32Array | readonly number[]): this {
    if (values.length !== this.size) {
      throw new RangeError(`a tensor of ${this.size} elements needs as many values, not ${values.length}`);
    }
    const source = values instanceof Float32Array ? values : Float32Array.from(values);
    if (this.size > 0) move(this.#elements(), { bytes: source, dtype: "float32" });
    return this;
  }

  get #strided(): StridedShape {
    return { shape: this.shape, strides: this.strides, offset: this.#offset };
  }

  #seenAs(strided: StridedShape): SharedTensor<D> {
    return new SharedTensor(this.dtype, strided, this.#place);
  }

  #elements() {
    const { dtype, shape, strides } = this;
    const size = itemSize(dtype);
    const bytes = {
      memory: this.storage.memory,
      offset: BigInt(this.storageOffset),
      bytes: BigInt(elementSpan(shape, strides) * size),
    };
    return { bytes, dtype, descriptor: describeElements(dtype, shape, strides) };
  }
}
