/**
 * Turns: in which order a rank asks for what it hands on, of all that it receives in stage 1. Replicas want the same of
 * the same sources: if all began with the same source, the others would wait. So each goes around its sources, by their
 * ranks. If k of n receivers have a lower rank, it begins behind the first k/n of the bytes.
 */
import { alloc, allocZero } from "./arena";
import { findReceivers, receivers, receiversBefore } from "./channel-table";
import { dependencies, dependencyCount } from "./depend";
import {
  bucketSize,
  order,
  recordSource,
  recordStage,
  recordTarget,
  usedBucket,
  usedCount,
  usedFirst,
} from "./order";
import { recordAt } from "./sink";
import { sortByKey } from "./sort";
import { i64At, setI64, setU32, u32At } from "./words";

/** For each channel that was gathered its turn; 0 for what is not received in stage 1. */
export function findTurns(rank: u32): usize {
  const turns = allocZero((<usize>usedCount) << 2);
  const own = alloc((<usize>usedCount) << 2);
  const sources = alloc((<usize>usedCount) << 3);
  let count: u32 = 0;
  for (let channel: u32 = 0; channel < usedCount; channel++) {
    const record = recordAt(u32At(order, u32At(usedFirst, channel)));
    if (recordStage(record) != 1 || recordTarget(record) != rank || recordSource(record) == rank) continue;
    setI64(sources, channel, recordSource(record));
    setU32(own, count++, channel);
  }
  if (count == 0) return turns;
  sortByKey(own, count, sources);
  const before = alloc((<usize>count + 1) << 3);
  sumAwaited(own, count, before);
  findReceivers(rank);
  const from = (i64At(before, count) * receiversBefore) / receivers;
  let start: u32 = 0;
  while (start < count && i64At(before, start) < from) start++;
  for (let place: u32 = 0; place < count; place++) {
    setU32(turns, u32At(own, place), (place + count - start) % count);
  }
  return turns;
}

/** Sums up, channel by channel, the bytes of all buckets up to the last one that another waits for. */
function sumAwaited(own: usize, count: u32, before: usize): void {
  const awaited = allocZero(u32At(usedBucket, usedCount));
  for (let at: u32 = 0; at < dependencyCount; at++) store<u8>(awaited + u32At(dependencies, at), 1);
  let sum: i64 = 0;
  for (let place: u32 = 0; place < count; place++) {
    setI64(before, place, sum);
    const first = u32At(usedBucket, u32At(own, place));
    let end = u32At(usedBucket, u32At(own, place) + 1);
    while (end > first && load<u8>(awaited + (end - 1)) == 0) end--;
    for (let bucket = first; bucket < end; bucket++) sum += i64At(bucketSize, bucket);
  }
  setI64(before, count, sum);
}
