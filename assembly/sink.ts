/** Where the chunks of a walk go: to the list of channels, to records, or to a consumer that keeps sums. */
import { boxSource, boxTarget } from "./box";
import { addChannel } from "./channels";
import { pieceLengths, pieceOffsets } from "./cut";
import { dimsMost } from "./model";
import { alloc, grow } from "./arena";
import { pattern, source, tensor } from "./tensor";
import { i64At, setI64 } from "./words";

export const COPY: u32 = 0;
export const SEND: u32 = 1;
export const REDUCE: u32 = 2;
export const NONE: u32 = 0xffffffff;

const TO_CHANNELS: u32 = 0;
const TO_RECORDS: u32 = 1;

let mode: u32 = TO_CHANNELS;
/** One piece of a box is enough: the others take the same channels. */
export let emitOnce: bool = false;

/**
 * A record: u32 src, dst, tensor; u8 stage, kind, dimensions, reads `reduced`; u32 piece of its owner, position in the fold; i64 elements,
 * bytes on the wire; u32 channel, then bucket; u32 index in the bucket; then offsets in `from`, offsets in `to`, lengths.
 */
export const RECORD_HEAD: usize = 48;
export let records: usize = 0;
export let recordBytes: usize = 0;
export let recordCount: u32 = 0;
/** Chunks that were seen, also those beyond the most that are kept. */
export let seen: i64 = 0;
export let pieceCount: u32 = 0;
let piece: u32 = NONE;
let capacity: u32 = 0;
let most: i64 = 0;

export function toChannels(): void {
  mode = TO_CHANNELS;
  emitOnce = true;
}

/** Keeps up to `limit` records; `seen` goes on counting. Nothing else should be taken from the arena meanwhile. */
export function toRecords(limit: i64): void {
  mode = TO_RECORDS;
  emitOnce = false;
  most = limit;
  seen = 0;
  recordCount = 0;
  pieceCount = 0;
  capacity = 256;
  recordBytes = RECORD_HEAD + <usize>dimsMost * 24;
  records = alloc(<usize>capacity * recordBytes);
}

/** The owner that is walked takes up another piece: the chunks that follow are of it, up to `endPiece`. */
export function nextPiece(): void {
  piece = pieceCount++;
}
export function endPiece(): void {
  piece = NONE;
}

/** The piece at hand (`placePiece`) goes from `from` to `to`. */
export function emit(stage: u32, kind: u32, from: u32, to: u32, position: u32 = 0): void {
  if (mode == TO_CHANNELS) {
    addChannel(stage, from, to);
    return;
  }
  let elements: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) elements *= i64At(pieceLengths, dim);
  const bytes = elements * (stage == 0 ? pattern.sourceItem : pattern.wireItem);
  seen++;
  if (seen > most) return;
  if (recordCount == capacity) {
    records = grow(records, <usize>capacity * recordBytes);
    capacity <<= 1;
  }
  const at = records + <usize>recordCount * recordBytes;
  recordCount++;
  store<u32>(at, from);
  store<u32>(at, to, 4);
  store<u32>(at, tensor, 8);
  store<u8>(at, <u8>stage, 12);
  store<u8>(at, <u8>kind, 13);
  store<u8>(at, <u8>pattern.ndim, 14);
  store<u8>(at, <u8>(stage == 1 && source.contributions > 1), 15);
  store<u32>(at, piece, 16);
  store<u32>(at, position, 20);
  store<i64>(at, elements, 24);
  store<i64>(at, bytes, 32);
  const offsets = at + RECORD_HEAD;
  const dims = dimsMost;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const offset = i64At(pieceOffsets, dim);
    const atSource = i64At(boxSource, dim) + offset;
    setI64(offsets, dim, atSource);
    setI64(offsets, dims + dim, stage == 0 ? atSource : i64At(boxTarget, dim) + offset);
    setI64(offsets, dims * 2 + dim, i64At(pieceLengths, dim));
  }
}

export function recordAt(index: u32): usize {
  return records + <usize>index * recordBytes;
}
