/** Says where the chunks of a walk go: to the list of channels, to records, or into sums. */
import { alloc, grow, OF_CHUNKS } from "./arena";
import { boxSource, boxTarget } from "./box";
import { addChannel } from "./channel-set";
import { pieceLengths, pieceOffsets } from "./cut";
import { fail, TB_PLAN_TOO_LARGE } from "./error";
import { dimsMost, wide } from "./model";
import { note } from "./notes";
import { tally } from "./tally";
import { pattern, source, tensor } from "./tensor";
import { i64At, NONE, setI64, setU32, u32At } from "./words";

export const COPY: u32 = 0;
export const SEND: u32 = 1;
export const REDUCE: u32 = 2;

const TO_CHANNELS: u32 = 0;
const TO_RECORDS: u32 = 1;
const TO_TALLY: u32 = 2;
const TO_NOTES: u32 = 3;

let mode: u32 = TO_CHANNELS;
/** One piece of a box is enough: the others take the same channels. */
export let emitOnce: bool = false;

/**
 * A record, in u32 words: src, dst, tensor; bytes stage, kind, dimensions, reads `reduced`; piece of its
 * owner, position in the fold, bucket (the channel until there are buckets), index in the bucket; i64
 * elements; bytes an element on the wire, stripe that it writes or hands on; then offsets in `from`, offsets in
 * `to`, lengths: u32 each, or i64 if a tensor of the plan needs it.
 */
const RECORD_HEAD: usize = 48;
export let records: usize = 0;
export let recordBytes: usize = 0;
export let recordCount: u32 = 0;
/** Chunks that are too many to be kept are counted up to here, which takes seconds. */
const COUNTED: i64 = 1 << 28;
/** Boxes that are walked to find channels: about a minute. */
const WALKED: i64 = 1 << 32;
/** Chunks that were seen, also those beyond the most that are kept. */
export let seen: i64 = 0;
export let pieceCount: u32 = 0;
let piece: u32 = NONE;
let capacity: u32 = 0;
let most: i64 = 0;
let wanted: usize = 0;

export function toChannels(): void {
  mode = TO_CHANNELS;
  emitOnce = true;
  seen = 0;
}

/** Boxes that are about to be walked, each of at least one chunk; more than a minute's for channels are refused. */
export function admitBoxes(count: i64): void {
  if (mode != TO_CHANNELS) return;
  seen += count;
  if (seen > WALKED) fail(TB_PLAN_TOO_LARGE, OF_CHUNKS, seen);
}

/**
 * Keeps up to `limit` records; `seen` goes on counting. Nothing else should be taken from the arena
 * meanwhile. `ranks`, if any, has a byte for every rank: only chunks that begin or end at a marked one count.
 */
export function toRecords(limit: i64, ranks: usize = 0): void {
  mode = TO_RECORDS;
  wanted = ranks;
  emitOnce = false;
  most = limit;
  seen = 0;
  recordCount = 0;
  pieceCount = 0;
  capacity = 256;
  recordBytes = RECORD_HEAD + ((((<usize>dimsMost * 3) << (wide ? 3 : 2)) + 7) & ~7);
  records = alloc(<usize>capacity * recordBytes);
}

/** Sums up chunks. */
export function toTally(): void {
  mode = TO_TALLY;
  emitOnce = false;
}

/** Notes chunks, for tensors that have the same (`replay.ts`). */
export function toNotes(): void {
  mode = TO_NOTES;
  emitOnce = false;
}

/** Numbers pieces from 0. */
export function restartPieces(): void {
  pieceCount = 0;
}

/** The owner that is walked takes up another piece: the chunks that follow are of it, up to `endPiece`. */
export function nextPiece(): void {
  piece = pieceCount++;
}
export function endPiece(): void {
  piece = NONE;
}

/**
 * The piece at hand (`placePiece`) goes from `from` to `to`; `stripe` names what stage 2 hands on, within the
 * tensor and the rank that has it.
 */
export function emit(stage: u32, kind: u32, from: u32, to: u32, position: u32 = 0, stripe: u32 = NONE): void {
  if (mode == TO_CHANNELS) {
    addChannel(stage, from, to);
    return;
  }
  if (mode != TO_RECORDS) {
    let elements: i64 = 1;
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) elements *= i64At(pieceLengths, dim);
    if (mode == TO_TALLY) tally(pattern, tensor, stage, kind, from, to, elements, position, piece);
    else note(stage, kind, from, to, elements * pattern.stageItem(stage));
    return;
  }
  if (wanted != 0 && load<u8>(wanted + from) == 0 && load<u8>(wanted + to) == 0) return;
  seen++;
  if (seen > most) {
    if (seen > max(most, COUNTED)) fail(TB_PLAN_TOO_LARGE, OF_CHUNKS, seen);
    return;
  }
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
  store<u32>(at, <u32>pattern.stageItem(stage), 40);
  store<u32>(at, stripe, 44);
  let elements: i64 = 1;
  const offsets = at + RECORD_HEAD;
  const dims = dimsMost;
  const ndim = pattern.ndim;
  for (let dim: u32 = 0; dim < ndim; dim++) {
    const offset = i64At(pieceOffsets, dim);
    const length = i64At(pieceLengths, dim);
    const atSource = i64At(stage == 2 ? boxTarget : boxSource, dim) + offset;
    const atTarget = i64At(stage == 0 ? boxSource : boxTarget, dim) + offset;
    elements *= length;
    if (wide) {
      setI64(offsets, dim, atSource);
      setI64(offsets, dims + dim, atTarget);
      setI64(offsets, dims * 2 + dim, length);
    } else {
      setU32(offsets, dim, <u32>atSource);
      setU32(offsets, dims + dim, <u32>atTarget);
      setU32(offsets, dims * 2 + dim, <u32>length);
    }
  }
  store<i64>(at, elements, 32);
}

export function recordAt(index: u32): usize {
  return records + <usize>index * recordBytes;
}

/** Offsets in `from` (0) and `to` (1) and lengths (2) of a record, as i64 into `to`. */
export function unpack(record: usize, which: u32, to: usize): void {
  const from = record + RECORD_HEAD;
  for (let dim: u32 = 0; dim < dimsMost; dim++) {
    setI64(to, dim, wide ? i64At(from, which * dimsMost + dim) : <i64>u32At(from, which * dimsMost + dim));
  }
}
