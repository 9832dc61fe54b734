/**
 * The pool of reduced pieces: a ring, in the order of the fold. It is enough if, whatever piece is the oldest
 * in it, all that a bucket reading that piece still waits for fits in as well, up to the end of the last
 * bucket of contributions that brings it; and a largest piece more, for what is lost where the ring turns
 * over.
 */
import { alloc } from "./arena";
import { bucketCount, bucketFirst, order, recordBucket, recordStage } from "./order";
import { readsPiece } from "./depend";
import { bucketsInFlight } from "./model";
import { recordAt } from "./sink";
import { i64At, setI64, setU32, u32At } from "./words";

/** `sizes` are the pool bytes of `count` pieces, `first` the first record of each. */
export function poolBytes(count: u32, sizes: usize, first: usize): i64 {
  if (count == 0) return 0;
  const ends = alloc((<usize>count) << 3);
  let total: i64 = 0;
  let largest: i64 = 0;
  for (let piece: u32 = 0; piece < count; piece++) {
    total += i64At(sizes, piece);
    largest = max(largest, i64At(sizes, piece));
    setI64(ends, piece, total);
  }
  // The last piece of the bucket that brings the first contribution to a piece.
  const lastOf = alloc((<usize>bucketCount) << 2);
  for (let piece: u32 = 0; piece < count; piece++) {
    setU32(lastOf, recordBucket(recordAt(u32At(first, piece))), piece);
  }
  let widest: i64 = 0;
  for (let bucket: u32 = 0; bucket < bucketCount; bucket++) {
    const end = u32At(bucketFirst, bucket + 1);
    let oldest = count;
    let newest: u32 = 0;
    for (let place = u32At(bucketFirst, bucket); place < end; place++) {
      const record = recordAt(u32At(order, place));
      if (recordStage(record) == 0 || !readsPiece(record)) continue;
      const piece = load<u32>(record, 16);
      oldest = min(oldest, piece);
      newest = max(newest, piece);
    }
    if (oldest == count) continue;
    const last = u32At(lastOf, recordBucket(recordAt(u32At(first, newest))));
    widest = max(widest, i64At(ends, last) - i64At(ends, oldest) + i64At(sizes, oldest));
  }
  // Room for as many buckets as may be under way, so that folding goes on while one is sent.
  return min(total, widest * bucketsInFlight + largest);
}
