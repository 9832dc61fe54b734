/** The program of a rank, in the bytes of `docs/program-format.md`. */
import { alloc, allocZero } from "./arena";
import { bufferCount, bufferOf, bufferStrides, findBuffers, SOURCE, TARGET, writeBuffers } from "./buffers";
import {
  dependencies,
  dependencyCount,
  dependencyFirst,
  findCompletions,
  pieceRecords,
  readsPiece,
} from "./depend";
import { describe, descriptorWords, startDescriptors } from "./flatten";
import {
  bucketBytes,
  bucketsInFlight,
  Pattern,
  patternAt,
  peersInFlight,
  Side,
  tensorPattern,
} from "./model";
import {
  bucketCount,
  bucketFirst,
  bucketSize,
  order,
  recordBucket,
  recordSource,
  recordStage,
  recordTarget,
  recordTensor,
  usedBucket,
  usedCount,
  usedFirst,
  usedWave,
} from "./order";
import { poolBytes } from "./pool";
import { pieceCount, recordAt, recordCount, REDUCE, unpack } from "./sink";
import { sortByKey } from "./sort";
import { findTurns } from "./turns";
import { addU32, i64At, NONE, setI64, setU32, u32At } from "./words";

const MAGIC: u32 = 0x47504254;
const VERSION: u32 = 1;
const HEADER: u32 = 192;
const PIECE_FLAG: u32 = 0x80000000;
const LOCAL: u32 = 0;
const SENDS: u32 = 1;
const RECEIVES: u32 = 2;

export let programLength: u32 = 0;

const offsets: usize = memory.data(64, 8);
const lengths: usize = memory.data(64, 8);

let rank: u32 = 0;
/** Channels in the order of the program, and the new number of every bucket. */
let channels: usize = 0;
let numbers: usize = 0;
let firstOfPiece: usize = 0;

/** Lowers what was gathered for `owner`; answers where the program lies. `digest` is its 32 bytes. */
export function writeProgram(owner: u32, digest: usize, entries: usize, entryCount: u32): usize {
  rank = owner;
  findBuffers(rank, entries, entryCount);
  orderChannels();
  firstOfPiece = pieceRecords();
  findCompletions(firstOfPiece);
  const pieces = alloc(<usize>pieceCount * 40);
  const pool = writePieces(pieces);

  const buffersAt = HEADER;
  const channelsAt = buffersAt + bufferCount * 32;
  const bucketsAt = channelsAt + usedCount * 40;
  const chunksAt = bucketsAt + bucketCount * 40;
  const piecesAt = chunksAt + recordCount * 40;
  const dependenciesAt = piecesAt + pieceCount * 40;
  const descriptorsAt = dependenciesAt + ((dependencyCount * 4 + 7) & ~7);
  const program = allocZero(descriptorsAt);
  startDescriptors();
  writeBuffers(rank, program + buffersAt);
  writeChunks(program + chunksAt);
  writeBuckets(program + bucketsAt);
  writeChannels(program + channelsAt, program);
  memory.copy(program + piecesAt, pieces, <usize>pieceCount * 40);
  for (let at: u32 = 0; at < dependencyCount; at++) {
    setU32(program + dependenciesAt, at, u32At(numbers, u32At(dependencies, at)));
  }

  programLength = descriptorsAt + descriptorWords * 8;
  setU32(program, 0, MAGIC);
  setU32(program, 1, VERSION);
  setU32(program, 2, rank);
  memory.copy(program + 16, digest, 32);
  store<i64>(program, bucketBytes, 48);
  store<u32>(program, bucketsInFlight, 56);
  store<u32>(program, peersInFlight, 60);
  setU32(program, 16, bufferCount);
  setU32(program, 17, usedCount);
  setU32(program, 18, bucketCount);
  setU32(program, 19, recordCount);
  setU32(program, 20, pieceCount);
  setU32(program, 21, dependencyCount);
  setI64(program, 11, descriptorWords);
  setI64(program, 12, buffersAt);
  setI64(program, 13, channelsAt);
  setI64(program, 14, bucketsAt);
  setI64(program, 15, chunksAt);
  setI64(program, 16, piecesAt);
  setI64(program, 17, dependenciesAt);
  setI64(program, 18, descriptorsAt);
  setI64(program, 19, programLength);
  setI64(program, 22, pool);
  return program;
}

function directionOf(record: usize): u32 {
  if (recordSource(record) == recordTarget(record)) return LOCAL;
  return recordSource(record) == rank ? SENDS : RECEIVES;
}

function peerOf(record: usize): u32 {
  return recordSource(record) == rank ? recordTarget(record) : recordSource(record);
}

function firstRecord(channel: u32): usize {
  return recordAt(u32At(order, u32At(usedFirst, channel)));
}

/** Sorts channels by (wave, direction, peer) and numbers their buckets in that order. */
function orderChannels(): void {
  channels = alloc((<usize>usedCount) << 2);
  const keys = alloc((<usize>usedCount) << 3);
  for (let channel: u32 = 0; channel < usedCount; channel++) {
    const record = firstRecord(channel);
    const key = ((<i64>u32At(usedWave, channel)) << 24) | ((<i64>directionOf(record)) << 20) | peerOf(record);
    setU32(channels, channel, channel);
    setI64(keys, channel, key);
  }
  sortByKey(channels, usedCount, keys);
  numbers = alloc((<usize>bucketCount) << 2);
  let number: u32 = 0;
  for (let place: u32 = 0; place < usedCount; place++) {
    const channel = u32At(channels, place);
    for (let bucket = u32At(usedBucket, channel); bucket < u32At(usedBucket, channel + 1); bucket++) {
      setU32(numbers, bucket, number++);
    }
  }
}

/** Writes the piece table; answers the bytes of the pool. */
function writePieces(at: usize): i64 {
  const sizes = alloc((<usize>pieceCount) << 3);
  const readers = countReaders();
  for (let piece: u32 = 0; piece < pieceCount; piece++) {
    const index = u32At(firstOfPiece, piece);
    const record = recordAt(index);
    const pattern = patternAt(tensorPattern(recordTensor(record)));
    const elements = load<i64>(record, 32);
    const bytes = pattern.poolBytes(elements);
    const contributions = changetype<Side>(pattern.source).contributions;
    setI64(sizes, piece, bytes);
    store<u32>(at, recordTensor(record));
    store<u8>(at, <u8>pattern.sourceDtype, 4);
    store<u8>(at, <u8>pattern.operator, 5);
    store<u16>(at, 0, 6);
    store<i64>(at, elements, 8);
    store<i64>(at, pattern.divisor, 16);
    store<u32>(at, contributions, 24);
    store<u32>(at, u32At(readers, piece), 28);
    store<i64>(at, bytes, 32);
    at += 40;
  }
  return poolBytes(pieceCount, sizes, firstOfPiece);
}

/** For each piece, the chunks that read it. */
function countReaders(): usize {
  const readers = allocZero((<usize>pieceCount) << 2);
  for (let index: u32 = 0; index < recordCount; index++) {
    const record = recordAt(index);
    if (readsPiece(record)) addU32(readers, load<u32>(record, 16), 1);
  }
  return readers;
}

function writeChunks(at: usize): void {
  for (let place: u32 = 0; place < usedCount; place++) {
    const channel = u32At(channels, place);
    const end = u32At(usedFirst, channel + 1);
    for (let chunk = u32At(usedFirst, channel); chunk < end; chunk++) {
      writeChunk(at, recordAt(u32At(order, chunk)));
      at += 40;
    }
  }
}

function writeChunk(at: usize, record: usize): void {
  const tensor = recordTensor(record);
  const pattern = patternAt(tensorPattern(tensor));
  const stage = recordStage(record);
  unpack(record, 2, lengths);
  let sourceEnd = NONE;
  let targetEnd = NONE;
  if (recordSource(record) == rank) {
    if (load<u8>(record, 15) != 0) {
      sourceEnd = PIECE_FLAG + load<u32>(record, 16);
    } else {
      sourceEnd = bufferOf(tensor, stage == 2 ? TARGET : SOURCE);
      unpack(record, 0, offsets);
      const strides = bufferStrides(sourceEnd);
      const item = stage == 2 ? pattern.targetItem : pattern.sourceItem;
      store<u32>(at, describe(pattern.ndim, offsets, lengths, strides, item), 8);
    }
  }
  if (recordTarget(record) == rank) {
    if (stage == 0) {
      targetEnd = PIECE_FLAG + load<u32>(record, 16);
    } else {
      targetEnd = bufferOf(tensor, TARGET);
      unpack(record, 1, offsets);
      const strides = bufferStrides(targetEnd);
      store<u32>(at, describe(pattern.ndim, offsets, lengths, strides, pattern.targetItem), 12);
    }
  }
  store<u32>(at, sourceEnd);
  store<u32>(at, targetEnd, 4);
  store<i64>(at, load<i64>(record, 32) * pattern.movedPerUnit, 16);
  store<u8>(at, <u8>(stage == 2 ? pattern.targetDtype : pattern.sourceDtype), 24);
  store<u8>(at, <u8>wireDtype(pattern, stage), 25);
  store<u8>(at, <u8>(stage == 0 ? pattern.sourceDtype : pattern.targetDtype), 26);
  store<u8>(at, <u8>(load<u8>(record, 13) == REDUCE), 27);
  store<u32>(at, load<u32>(record, 20), 28);
  store<u32>(at, tensor, 32);
}

/** The source's in stage 0, the target's in stage 2; between them the narrower, at equal width the target's. */
function wireDtype(pattern: Pattern, stage: u32): u32 {
  if (stage != 1) return stage == 0 ? pattern.sourceDtype : pattern.targetDtype;
  return pattern.sourceItem < pattern.targetItem ? pattern.sourceDtype : pattern.targetDtype;
}

function writeBuckets(at: usize): void {
  let firstChunk: u32 = 0;
  for (let place: u32 = 0; place < usedCount; place++) {
    const channel = u32At(channels, place);
    for (let bucket = u32At(usedBucket, channel); bucket < u32At(usedBucket, channel + 1); bucket++) {
      const chunks = u32At(bucketFirst, bucket + 1) - u32At(bucketFirst, bucket);
      const needs = u32At(dependencyFirst, bucket);
      store<i64>(at, i64At(bucketSize, bucket));
      store<u32>(at, place, 8);
      store<u32>(at, firstChunk, 12);
      store<u32>(at, chunks, 16);
      store<u32>(at, needs, 20);
      store<u32>(at, u32At(dependencyFirst, bucket + 1) - needs, 24);
      writeFold(at, u32At(order, u32At(bucketFirst, bucket)));
      firstChunk += chunks;
      at += 40;
    }
  }
}

/** What a bucket of contributions to this rank's own pieces follows, and whether it completes them. */
function writeFold(at: usize, index: u32): void {
  store<u32>(at, NONE, 28);
  const record = recordAt(index);
  if (recordStage(record) != 0 || recordTarget(record) != rank) return;
  const position = load<u32>(record, 20);
  // Contributions to a piece are neighbours among the records, and all contributors cut their buckets alike.
  if (position > 0) store<u32>(at, u32At(numbers, recordBucket(recordAt(index - 1))), 28);
  const pattern = patternAt(tensorPattern(recordTensor(record)));
  if (position + 1 == changetype<Side>(pattern.source).contributions) store<u32>(at, 1, 32);
}

/** The channel table, and the sums over channels that the header holds. */
function writeChannels(at: usize, program: usize): void {
  // For each stage and direction: staged buckets, and the largest bucket.
  const staged = allocZero(9 << 3);
  const largest = allocZero(9 << 3);
  const turns = findTurns(rank);
  let sent: i64 = 0;
  let firstBucket: u32 = 0;
  for (let place: u32 = 0; place < usedCount; place++) {
    const channel = u32At(channels, place);
    const record = firstRecord(channel);
    const direction = directionOf(record);
    const first = u32At(usedBucket, channel);
    const count = u32At(usedBucket, channel + 1) - first;
    const slot = recordStage(record) * 3 + direction;
    let bytes: i64 = 0;
    let print: u64 = 0xcbf29ce484222325;
    for (let bucket = first; bucket < first + count; bucket++) {
      const size = i64At(bucketSize, bucket);
      bytes += size;
      setI64(largest, slot, max(i64At(largest, slot), size));
      print = fingerprint(print, size);
      print = fingerprint(print, u32At(bucketFirst, bucket + 1) - u32At(bucketFirst, bucket));
    }
    setI64(staged, slot, i64At(staged, slot) + min(bucketsInFlight, count));
    if (direction == SENDS) sent += bytes;
    store<u8>(at, <u8>recordStage(record));
    store<u8>(at, <u8>direction, 1);
    store<u32>(at, peerOf(record), 4);
    store<u32>(at, u32At(usedWave, channel), 8);
    store<u32>(at, firstBucket, 12);
    store<u32>(at, count, 16);
    store<u32>(at, u32At(turns, channel), 20);
    store<i64>(at, bytes, 24);
    store<u64>(at, print, 32);
    firstBucket += count;
    at += 40;
  }
  const most = <i64>peersInFlight * bucketsInFlight;
  setI64(program, 20, staging(staged, largest, most, SENDS));
  setI64(program, 21, staging(staged, largest, most, RECEIVES));
  setI64(program, 23, sent);
}

function staging(staged: usize, largest: usize, most: i64, direction: u32): i64 {
  let bytes: i64 = 0;
  for (let stage: u32 = 0; stage < 3; stage++) {
    bytes += min(most, i64At(staged, stage * 3 + direction)) * i64At(largest, stage * 3 + direction);
  }
  return bytes;
}

/** FNV-1a, 64 bits, over the eight bytes of a value. */
function fingerprint(hash: u64, value: i64): u64 {
  for (let byte: u32 = 0; byte < 8; byte++) {
    hash = (hash ^ ((value >> (byte << 3)) & 0xff)) * 0x100000001b3;
  }
  return hash;
}
