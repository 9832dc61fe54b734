/**
 * Order and buckets: records are put in the order (wave, source, destination), and each channel is cut into
 * buckets: as many chunks as fit into `bucketBytes`, each at a multiple of 16.
 */
import { alloc, allocZero, mark, release } from "./arena";
import { channelOf, channelWave, slotBase, slotCount, stageWaves } from "./channel-table";
import { bucketBytes, tensorRun, world } from "./model";
import { recordAt, recordCount } from "./sink";
import { sortByKey } from "./sort";
import { addU32, NONE, setI64, setU32, u32At } from "./words";

/** Record numbers in the order of chunks. */
export let order: usize = 0;
/** Channels that have records, in order: a record of each, and where its chunks and buckets begin. */
export let usedCount: u32 = 0;
export let usedFirst: usize = 0;
export let usedBucket: usize = 0;
export let usedWave: usize = 0;
/**
 * Buckets in order: channel (its place among the used), sequence, first chunk (a place in `order`), payload
 * bytes.
 */
export let bucketCount: u32 = 0;
export let bucketChannel: usize = 0;
export let bucketSequence: usize = 0;
export let bucketFirst: usize = 0;
export let bucketSize: usize = 0;

// @ts-ignore: decorator
@inline
export function recordSource(record: usize): u32 {
  return load<u32>(record);
}
// @ts-ignore: decorator
@inline
export function recordTarget(record: usize): u32 {
  return load<u32>(record, 4);
}
// @ts-ignore: decorator
@inline
export function recordTensor(record: usize): u32 {
  return load<u32>(record, 8);
}
// @ts-ignore: decorator
@inline
export function recordStage(record: usize): u32 {
  return load<u8>(record, 12);
}
// @ts-ignore: decorator
@inline
function recordBytesOf(record: usize): i64 {
  return load<i64>(record, 32) * load<u32>(record, 40);
}
// @ts-ignore: decorator
@inline
export function recordBucket(record: usize): u32 {
  return load<u32>(record, 24);
}

/**
 * The slot of a record: its channel in the table of all. Records of one rank come from ever other peers, so
 * that what was found for a peer is kept; `rank` is -1 for records of the world, where the same channel comes
 * many times.
 */
let slotCache: usize = 0;
let cachedKey: i64 = -1;
let cachedSlot: u32 = 0;

function slotOf(record: usize, rank: i32): u32 {
  const stage = recordStage(record);
  const from = recordSource(record);
  const to = recordTarget(record);
  if (rank < 0) {
    const key = ((<i64>stage) << 40) | ((<i64>from) << 20) | to;
    if (key != cachedKey) {
      cachedKey = key;
      cachedSlot = channelOf(stage, from, to) + slotBase(stage);
    }
    return cachedSlot;
  }
  const isSource = from == <u32>rank;
  const place = (stage * 2 + u32(isSource)) * world + (isSource ? to : from);
  let slot = u32At(slotCache, place);
  if (slot == 0) {
    slot = channelOf(stage, from, to) + slotBase(stage) + 1;
    setU32(slotCache, place, slot);
  }
  return slot - 1;
}

/**
 * Sorts all records by channel, channels by (wave, source, destination); the walk's order stays within a
 * channel.
 */
export function orderRecords(rank: i32): void {
  const slots = slotCount();
  const counts = allocZero((<usize>slots) << 2);
  const wave = alloc((<usize>slots) << 2);
  const keys = alloc((<usize>slots) << 3);
  const used = alloc((<usize>slots) << 2);
  cachedKey = -1;
  if (rank >= 0) slotCache = allocZero(<usize>world * 24);
  for (let index: u32 = 0; index < recordCount; index++) {
    const record = recordAt(index);
    const slot = slotOf(record, rank);
    if (u32At(counts, slot) == 0) {
      const stage = recordStage(record);
      setU32(wave, slot, channelWave(stage, slot - slotBase(stage)));
      const ends = ((<i64>recordSource(record)) << 20) | recordTarget(record);
      setI64(keys, slot, ((<i64>u32At(wave, slot)) << 40) | ends);
    }
    setU32(counts, slot, u32At(counts, slot) + 1);
    store<u32>(record, slot, 24);
  }
  listUsed(used, counts, wave);
  sortByKey(used, usedCount, keys);
  usedFirst = alloc((<usize>usedCount + 1) << 2);
  usedWave = alloc((<usize>usedCount) << 2);
  let sum: u32 = 0;
  for (let at: u32 = 0; at < usedCount; at++) {
    const slot = u32At(used, at);
    setU32(usedFirst, at, sum);
    setU32(usedWave, at, u32At(wave, slot));
    sum += u32At(counts, slot);
    setU32(counts, slot, u32At(usedFirst, at));
  }
  setU32(usedFirst, usedCount, sum);
  order = alloc((<usize>recordCount) << 2);
  for (let index: u32 = 0; index < recordCount; index++) {
    const slot = load<u32>(recordAt(index), 24);
    setU32(order, u32At(counts, slot), index);
    setU32(counts, slot, u32At(counts, slot) + 1);
  }
  cutBuckets();
}

/**
 * Lists the slots that have records by wave, then as they stand: in all stages but the first, whose homes are
 * destinations, that is the order of channels already.
 */
function listUsed(used: usize, counts: usize, wave: usize): void {
  const slots = slotCount();
  const before = mark();
  let waves: u32 = 0;
  for (let stage: u32 = 0; stage < 3; stage++) waves += stageWaves(stage);
  const starts = allocZero((<usize>waves + 1) << 2);
  for (let slot: u32 = 0; slot < slots; slot++) {
    if (u32At(counts, slot) != 0) addU32(starts, u32At(wave, slot) + 1, 1);
  }
  for (let at: u32 = 0; at < waves; at++) addU32(starts, at + 1, u32At(starts, at));
  usedCount = u32At(starts, waves);
  for (let slot: u32 = 0; slot < slots; slot++) {
    if (u32At(counts, slot) == 0) continue;
    const at = u32At(wave, slot);
    setU32(used, u32At(starts, at), slot);
    addU32(starts, at, 1);
  }
  release(before);
}

/** Numbers buckets through all channels and writes bucket and index into each record. */
function cutBuckets(): void {
  // No more buckets than records: what is too much is not touched.
  bucketChannel = alloc((<usize>recordCount) << 2);
  bucketSequence = alloc((<usize>recordCount) << 2);
  bucketFirst = alloc((<usize>recordCount + 1) << 2);
  bucketSize = alloc((<usize>recordCount) << 3);
  usedBucket = alloc((<usize>usedCount + 1) << 2);
  bucketCount = 0;
  for (let at: u32 = 0; at < usedCount; at++) {
    setU32(usedBucket, at, bucketCount);
    let filled: i64 = 0;
    let index: u32 = 0;
    let run: u32 = NONE;
    const end = u32At(usedFirst, at + 1);
    for (let place = u32At(usedFirst, at); place < end; place++) {
      const record = recordAt(u32At(order, place));
      const bytes = recordBytesOf(record);
      const start = (filled + 15) & ~15;
      // Contributions of one source layout only: all contributors to an owner then cut into the same buckets.
      const recordRun = recordStage(record) == 0 ? tensorRun(recordTensor(record)) : 0;
      if (index == 0 || recordRun != run || start + bytes > bucketBytes) {
        setU32(bucketChannel, bucketCount, at);
        setU32(bucketSequence, bucketCount, bucketCount - u32At(usedBucket, at));
        setU32(bucketFirst, bucketCount++, place);
        index = 0;
        filled = bytes;
      } else {
        filled = start + bytes;
      }
      run = recordRun;
      setI64(bucketSize, bucketCount - 1, filled);
      store<u32>(record, bucketCount - 1, 24);
      store<u32>(record, index++, 28);
    }
  }
  setU32(usedBucket, usedCount, bucketCount);
  setU32(bucketFirst, bucketCount, recordCount);
}
