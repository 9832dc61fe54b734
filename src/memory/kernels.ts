/** The kernels of the native library over memory of this process. Each runs in the calling thread, until it is done. */

import { TensorBusError } from "../errors.ts";
import { nativeKernels } from "../ffi/kernels.ts";
import { addressOf } from "../ffi/koffi.ts";
import {
  checkCast,
  type DType,
  dtypeNumber,
  isOpaque,
  itemSize,
  movedAs,
  type PartialOp,
  partialOps,
} from "../layout/index.ts";
import type { Memory } from "./memory.ts";

/** Bytes that a kernel may touch: what a view shows, or a part of a memory (all of it from `offset` unless told). */
export type Bytes = ArrayBufferView | MemoryRange;
export interface MemoryRange {
  readonly memory: Memory;
  /** Default 0. */
  readonly offset?: bigint;
  readonly bytes?: bigint;
}

/** Elements of one type in some bytes. */
export interface Elements {
  readonly bytes: Bytes;
  readonly dtype: DType;
  /** How they lie there: words as in `docs/program-format.md`. Packed unless given. */
  readonly descriptor?: BigInt64Array;
}

interface Place {
  readonly address: bigint;
  readonly bytes: bigint;
}

/**
 * What a kernel reaches by its address alone: once that was asked for, the optimizer holds a view that nobody reads any more for
 * dead, and the collector may free its memory while the kernel runs.
 */
const reached: unknown[] = [];

function whileReached<T>(views: readonly unknown[], call: () => T): T {
  const before = reached.length;
  reached.push(...views);
  try {
    return call();
  } finally {
    reached.length = before;
  }
}

function placeOf(bytes: Bytes): Place {
  if (ArrayBuffer.isView(bytes)) {
    return { address: bytes.byteLength === 0 ? 0n : addressOf(bytes), bytes: BigInt(bytes.byteLength) };
  }
  const { memory, offset = 0n } = bytes;
  const size = bytes.bytes ?? memory.bytes - offset;
  if (offset < 0n || size < 0n || offset + size > memory.bytes) {
    throw new RangeError(
      `bytes ${offset} to ${offset + size} are not all in a memory of ${memory.bytes} bytes`,
    );
  }
  return { address: memory.address + offset, bytes: size };
}

/**
 * Copies every element of `from` to `to`, in order, casting if the types differ (`docs/element-types.md`). The two may
 * not overlap. Elements of a type that is only moved are copied as they are, packed ones byte by byte. `TB_REGION` if a
 * descriptor leaves its bytes or the counts differ, `TB_PLAN_FORMAT` for a malformed one, `TB_DTYPE` for a cast that there
 * is not.
 */
export function move(to: Elements, from: Elements): void {
  checkCast(from.dtype, to.dtype, "a move");
  const ends = [to, from].map(({ bytes, dtype: named, descriptor }) => {
    const place = placeOf(bytes);
    const dtype = movedAs(named);
    const size = BigInt(itemSize(dtype));
    const words = descriptor ?? BigInt64Array.of(0n, 0n, place.bytes - (place.bytes % size));
    const end = BigUint64Array.of(place.address, place.bytes, addressOf(words), 0n);
    new Uint32Array(end.buffer).set([words.length, dtypeNumber(dtype)], 6);
    return { end, words, empty: place.bytes === 0n };
  });
  if (ends.every(({ empty }) => empty)) return;
  whileReached([to.bytes, from.bytes, ends[0]!.words, ends[1]!.words], () =>
    nativeKernels.tb_move(ends[0]!.end, ends[1]!.end),
  );
}

/**
 * The descriptor of a box of a local tensor, row-major: lengths and strides in elements, `offset` the first element's.
 * Dimensions that follow each other without a gap become one.
 */
export function describeElements(
  dtype: DType,
  lengths: readonly number[],
  strides: readonly number[],
  offset = 0,
): BigInt64Array {
  const size = BigInt(itemSize(dtype));
  let run = size;
  const loops: [count: bigint, stride: bigint][] = [];
  for (let dim = lengths.length - 1; dim >= 0; dim--) {
    const count = BigInt(lengths[dim]!);
    const stride = BigInt(strides[dim]!) * size;
    const inner = loops[0];
    if (count === 1n) continue;
    if (inner === undefined && stride === run) run *= count;
    else if (inner !== undefined && stride === inner[0] * inner[1]) inner[0] *= count;
    else loops.unshift([count, stride]);
  }
  return BigInt64Array.of(BigInt(offset) * size, BigInt(loops.length), ...loops.flat(), run);
}

export interface ReduceOptions {
  /** The element type of the contributions. */
  readonly dtype: DType;
  readonly op: PartialOp;
  /** True for the first contribution: it sets the accumulator. */
  readonly first: boolean;
}

/** The type in which contributions are folded: float32 for 16- and 8-bit floats, else their own. */
export function accumulatorOf(dtype: DType): DType {
  return /^(float16|bfloat16|float8)/.test(dtype) ? "float32" : dtype;
}

/**
 * Folds packed contributions into an accumulator of as many elements of `accumulatorOf(dtype)`. Integers wrap, max and
 * min propagate NaN, bool sums by or and multiplies by and. `RangeError` if the accumulator is too small.
 */
export function reduce(accumulator: Bytes, contribution: Bytes, options: ReduceOptions): void {
  const { dtype, op, first } = options;
  if (isOpaque(dtype)) {
    throw new TensorBusError("TB_PARTIAL_OP", `${dtype} cannot be reduced, it is only moved`, {
      details: { dtype, op },
    });
  }
  const into = placeOf(accumulator);
  const from = placeOf(contribution);
  const count = elementsIn(from, dtype);
  requireRoom(into, count, accumulatorOf(dtype));
  whileReached([accumulator, contribution], () =>
    nativeKernels.tb_reduce(
      into.address,
      from.address,
      count,
      dtypeNumber(dtype),
      partialOps.indexOf(op),
      first ? 1 : 0,
    ),
  );
}

/**
 * Divides an accumulator (which is changed) by `divisor`, and rounds each element once to `dtype`. `out` may be the
 * accumulator itself. `TB_PARTIAL_OP` if integers would be divided.
 */
export function finishReduce(out: Bytes, accumulator: Bytes, dtype: DType, divisor = 1n): void {
  const from = placeOf(accumulator);
  const into = placeOf(out);
  const count = elementsIn(from, accumulatorOf(dtype));
  requireRoom(into, count, dtype);
  whileReached([out, accumulator], () =>
    nativeKernels.tb_reduce_finish(into.address, from.address, count, dtypeNumber(dtype), divisor),
  );
}

/** CRC-32C (Castagnoli), continuing from `crc`, which is 0 at the start. */
export function crc32c(bytes: Bytes, crc = 0): number {
  const place = placeOf(bytes);
  return whileReached([bytes], () => nativeKernels.tb_crc32c(crc, place.address, place.bytes));
}

function elementsIn(place: Place, dtype: DType): bigint {
  return place.bytes / BigInt(itemSize(dtype));
}
function requireRoom(place: Place, count: bigint, dtype: DType): void {
  if (elementsIn(place, dtype) < count) {
    throw new RangeError(`${place.bytes} bytes have no room for ${count} elements of ${dtype}`);
  }
}
