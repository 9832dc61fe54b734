/**
 * What buckets wait for: one that reads reduced pieces, for all that bring contributions to them; one that
 * hands on stripes, for all that fill them.
 */
import { alloc, grow } from "./arena";
import { fans } from "./model";
import {
  bucketCount,
  bucketFirst,
  order,
  recordBucket,
  recordSource,
  recordStage,
  recordTarget,
  recordTensor,
} from "./order";
import { pieceCount, recordAt, recordCount, unpack } from "./sink";
import { PIECE } from "./striped";
import { i64At, NONE, setU32, u32At } from "./words";

/**
 * Dependencies of bucket b are buckets `dependencies[dependencyFirst[b]]` up to `[dependencyFirst[b + 1]]`.
 */
export let dependencyFirst: usize = 0;
export let dependencies: usize = 0;
export let dependencyCount: u32 = 0;
let capacity: u32 = 0;

/**
 * For each owned piece, its first record among those that were gathered. The contributions to a piece follow one
 * another in the order of the fold.
 */
export function pieceRecords(): usize {
  const first = alloc((<usize>pieceCount) << 2);
  memory.fill(first, 0xff, (<usize>pieceCount) << 2);
  for (let index: u32 = 0; index < recordCount; index++) {
    const piece = load<u32>(recordAt(index), 16);
    if (piece < pieceCount && u32At(first, piece) == NONE) setU32(first, piece, index);
  }
  return first;
}

/** True if a record reads a reduced piece that is owned in what was gathered. */
// @ts-ignore: decorator
@inline
export function readsPiece(record: usize): bool {
  return load<u8>(record, 15) != 0 && load<u32>(record, 16) < pieceCount;
}

/** All buckets that bring contributions to what a bucket reads. */
export function findDependencies(): void {
  collect(pieceRecords(), false);
}

/**
 * Only those that bring the last contribution: the fold of a piece is in order, so the others came before.
 */
export function findCompletions(pieces: usize): void {
  collect(pieces, true);
}

function collect(pieces: usize, onlyLast: bool): void {
  stamps = alloc((<usize>bucketCount) << 2);
  memory.fill(stamps, 0xff, (<usize>bucketCount) << 2);
  dependencyFirst = alloc((<usize>bucketCount + 1) << 2);
  if (fans) listWriters();
  capacity = 256;
  dependencies = alloc((<usize>capacity) << 2);
  dependencyCount = 0;
  for (let bucket: u32 = 0; bucket < bucketCount; bucket++) {
    setU32(dependencyFirst, bucket, dependencyCount);
    const end = u32At(bucketFirst, bucket + 1);
    for (let place = u32At(bucketFirst, bucket); place < end; place++) {
      const record = recordAt(u32At(order, place));
      if (recordStage(record) == 2) addWriters(record, bucket);
      else if (readsPiece(record)) addContributions(u32At(pieces, load<u32>(record, 16)), bucket, onlyLast);
    }
  }
  setU32(dependencyFirst, bucketCount, dependencyCount);
}

/** Contributions to a piece, from its first record on, as far as they were gathered. */
function addContributions(first: u32, bucket: u32, onlyLast: bool): void {
  for (let index = first; contributesLike(index, first); index++) {
    if (onlyLast && contributesLike(index + 1, first)) continue;
    add(recordBucket(recordAt(index)), bucket);
  }
}

function contributesLike(index: u32, first: u32): bool {
  if (index >= recordCount) return false;
  const record = recordAt(index);
  return recordStage(record) == 0 && load<u32>(record, 16) == load<u32>(recordAt(first), 16);
}

/** Records that fill a stripe: lists by the hash of the stripe and the rank that has it. */
let heads: usize = 0;
let nexts: usize = 0;
let mask: u32 = 0;

function listWriters(): void {
  mask = 1;
  while (mask < recordCount) mask <<= 1;
  heads = alloc((<usize>mask) << 2);
  memory.fill(heads, 0xff, (<usize>mask) << 2);
  mask--;
  nexts = alloc((<usize>recordCount) << 2);
  for (let index: u32 = 0; index < recordCount; index++) {
    const record = recordAt(index);
    if (recordStage(record) != 1 || recordStripe(record) == NONE) continue;
    const slot = stripeHash(record, recordTarget(record)) & mask;
    setU32(nexts, index, u32At(heads, slot));
    setU32(heads, slot, index);
  }
}

/** Adds the buckets that bring what a record of stage 2 hands on. */
function addWriters(record: usize, bucket: u32): void {
  const rank = recordSource(record);
  let index = u32At(heads, stripeHash(record, rank) & mask);
  for (; index != NONE; index = u32At(nexts, index)) {
    const writer = recordAt(index);
    if (recordTarget(writer) != rank || recordTensor(writer) != recordTensor(record)) continue;
    if (recordStripe(writer) != recordStripe(record)) continue;
    if (recordStripe(record) == PIECE && !sameTargetBox(writer, record)) continue;
    add(recordBucket(writer), bucket);
  }
}

// @ts-ignore: decorator
@inline
function recordStripe(record: usize): u32 {
  return load<u32>(record, 44);
}

/** What is handed on by itself is found by where it begins in the target. */
function stripeHash(record: usize, rank: u32): u32 {
  let hash = (rank * 0x9e3779b1) ^ (recordTensor(record) * 0x85ebca6b) ^ (recordStripe(record) * 0xc2b2ae35);
  if (recordStripe(record) == PIECE) {
    unpack(record, 1, at);
    for (let dim: u32 = 0; dim < recordDims(record); dim++) hash = (hash ^ <u32>i64At(at, dim)) * 0x01000193;
  }
  return hash ^ (hash >> 15);
}

function sameTargetBox(one: usize, other: usize): bool {
  unpack(one, 1, at);
  unpack(other, 1, otherAt);
  return memory.compare(at, otherAt, (<usize>recordDims(one)) << 3) == 0;
}

function recordDims(record: usize): u32 {
  return load<u8>(record, 14);
}

const at: usize = memory.data(64, 8);
const otherAt: usize = memory.data(64, 8);

/** For each bucket, the last one that was found to wait for it. */
let stamps: usize = 0;

function add(other: u32, bucket: u32): void {
  if (u32At(stamps, other) == bucket) return;
  setU32(stamps, other, bucket);
  if (dependencyCount == capacity) {
    dependencies = grow(dependencies, (<usize>capacity) << 2);
    capacity <<= 1;
  }
  setU32(dependencies, dependencyCount++, other);
}
