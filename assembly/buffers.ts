/** The local tensors that the program of a rank touches, and how they lie in memory. */
import { alloc, allocZero } from "./arena";
import { fail, TB_STRIDES } from "./error";
import { dimsMost, tensorCount } from "./model";
import { recordStage, recordTensor } from "./order";
import { recordAt, recordCount } from "./sink";
import { enter, enterSource, enterTarget, pattern, sourceLength, targetLength } from "./tensor";
import { i64At, NONE, setI64, setU32, u32At } from "./words";

export const SOURCE: u32 = 0;
export const TARGET: u32 = 1;
const BUFFER_BYTES: usize = 32;
/** An entry of the host: i64 tensor, kind, then eight strides. */
const ENTRY_WORDS: u32 = 10;
const MOST: i64 = 1 << 62;

export let bufferCount: u32 = 0;
let numbers: usize = 0;
let strides: usize = 0;
let lengths: usize = 0;

/** The buffer of a tensor of this rank. */
// @ts-ignore: decorator
@inline
export function bufferOf(tensor: u32, kind: u32): u32 {
  return u32At(numbers, tensor * 2 + kind);
}
/** Its strides, in elements. */
// @ts-ignore: decorator
@inline
export function bufferStrides(buffer: u32): usize {
  return strides + ((<usize>buffer * dimsMost) << 3);
}

/**
 * Finds what the gathered records touch at `rank`; `entries` are the strides of `entryCount` tensors that
 * have any.
 */
export function findBuffers(rank: u32, entries: usize, entryCount: u32): void {
  numbers = alloc((<usize>tensorCount) << 3);
  memory.fill(numbers, 0xff, (<usize>tensorCount) << 3);
  for (let index: u32 = 0; index < recordCount; index++) {
    const record = recordAt(index);
    const slot = recordTensor(record) * 2;
    const stage = recordStage(record);
    if (load<u32>(record) == rank && load<u8>(record, 15) == 0) {
      setU32(numbers, slot + (stage == 2 ? TARGET : SOURCE), 0);
    }
    if (load<u32>(record, 4) == rank && stage != 0) setU32(numbers, slot + TARGET, 0);
  }
  bufferCount = 0;
  for (let slot: u32 = 0; slot < tensorCount * 2; slot++) {
    if (u32At(numbers, slot) != NONE) setU32(numbers, slot, bufferCount++);
  }
  strides = allocZero((<usize>bufferCount * dimsMost) << 3);
  lengths = alloc(64);
  for (let tensor: u32 = 0; tensor < tensorCount; tensor++) {
    if (bufferOf(tensor, SOURCE) != NONE) layContiguous(rank, tensor, SOURCE);
    if (bufferOf(tensor, TARGET) != NONE) layContiguous(rank, tensor, TARGET);
  }
  for (let index: u32 = 0; index < entryCount; index++) {
    layAsGiven(entries + ((<usize>index * ENTRY_WORDS) << 3));
  }
}

/** Puts the local shape of a tensor of this rank into `lengths`. */
function measure(rank: u32, tensor: u32, kind: u32): void {
  enter(tensor);
  if (kind == SOURCE) enterSource(rank);
  else enterTarget(rank);
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    setI64(lengths, dim, kind == SOURCE ? sourceLength(dim) : targetLength(dim));
  }
}

function layContiguous(rank: u32, tensor: u32, kind: u32): void {
  measure(rank, tensor, kind);
  const at = bufferStrides(bufferOf(tensor, kind));
  let stride: i64 = 1;
  for (let dim = pattern.ndim; dim > 0; dim--) {
    setI64(at, dim - 1, stride);
    stride *= i64At(lengths, dim - 1);
  }
}

function layAsGiven(entry: usize): void {
  const buffer = bufferOf(<u32>i64At(entry, 0), <u32>i64At(entry, 1));
  if (buffer == NONE) return;
  for (let dim: u32 = 0; dim < dimsMost; dim++) setI64(bufferStrides(buffer), dim, i64At(entry, 2 + dim));
}

/** Writes the buffer table. `TB_STRIDES` if a tensor would reach beyond 2^62 bytes. */
export function writeBuffers(rank: u32, at: usize): void {
  for (let slot: u32 = 0; slot < tensorCount * 2; slot++) {
    if (u32At(numbers, slot) == NONE) continue;
    const tensor = slot >> 1;
    const kind = slot & 1;
    measure(rank, tensor, kind);
    const item = kind == SOURCE ? pattern.sourceItem : pattern.targetItem;
    const own = bufferStrides(u32At(numbers, slot));
    let elements: i64 = 1;
    let last: i64 = 0;
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
      const steps = i64At(lengths, dim) - 1;
      const stride = i64At(own, dim);
      elements *= steps + 1;
      // A source may be expanded; a target whose elements share memory cannot hold what it is sent.
      if (steps > 0 && stride == 0 && kind == TARGET) fail(TB_STRIDES, tensor, kind, dim, stride);
      if (steps > 0 && stride > (MOST / item - last - 1) / steps) fail(TB_STRIDES, tensor, kind, dim, stride);
      last += steps * stride;
    }
    store<u32>(at, tensor);
    store<u8>(at, <u8>kind, 4);
    store<u8>(at, <u8>(kind == SOURCE ? pattern.sourceDtype : pattern.targetDtype), 5);
    store<u16>(at, 0, 6);
    store<i64>(at, (last + 1) * item, 8);
    store<i64>(at, elements * pattern.movedPerUnit, 16);
    store<i64>(at, 0, 24);
    at += BUFFER_BYTES;
  }
}
