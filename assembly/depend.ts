/** What buckets wait for: one that reads reduced pieces waits for all that bring contributions to them. */
import { alloc, grow } from "./arena";
import { bucketCount, bucketFirst, order, recordBucket, recordStage } from "./order";
import { NONE, pieceCount, recordAt, recordCount } from "./sink";
import { setU32, u32At } from "./words";

/**
 * Dependencies of bucket b are buckets `dependencies[dependencyFirst[b]]` up to `[dependencyFirst[b + 1]]`.
 */
export let dependencyFirst: usize = 0;
export let dependencies: usize = 0;
export let dependencyCount: u32 = 0;
let capacity: u32 = 0;

/**
 * The first record of each piece that is owned in what was gathered: its contributions follow one another, in
 * the order of the fold.
 */
export function pieceRecords(): usize {
  const first = alloc(<usize>pieceCount << 2);
  memory.fill(first, 0xff, <usize>pieceCount << 2);
  for (let index: u32 = 0; index < recordCount; index++) {
    const piece = load<u32>(recordAt(index), 16);
    if (piece < pieceCount && u32At(first, piece) == NONE) setU32(first, piece, index);
  }
  return first;
}

/** Whether a record reads a reduced piece that is owned in what was gathered. */
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
  const stamps = alloc(<usize>bucketCount << 2);
  memory.fill(stamps, 0xff, <usize>bucketCount << 2);
  dependencyFirst = alloc((<usize>bucketCount + 1) << 2);
  capacity = 256;
  dependencies = alloc(<usize>capacity << 2);
  dependencyCount = 0;
  for (let bucket: u32 = 0; bucket < bucketCount; bucket++) {
    setU32(dependencyFirst, bucket, dependencyCount);
    const end = u32At(bucketFirst, bucket + 1);
    for (let place = u32At(bucketFirst, bucket); place < end; place++) {
      const record = recordAt(u32At(order, place));
      if (!readsPiece(record)) continue;
      for (let index = u32At(pieces, load<u32>(record, 16)); recordStage(recordAt(index)) == 0; index++) {
        if (onlyLast && recordStage(recordAt(index + 1)) == 0) continue;
        const other = recordBucket(recordAt(index));
        if (u32At(stamps, other) == bucket) continue;
        setU32(stamps, other, bucket);
        add(other);
      }
    }
  }
  setU32(dependencyFirst, bucketCount, dependencyCount);
}

function add(bucket: u32): void {
  if (dependencyCount == capacity) {
    dependencies = grow(dependencies, <usize>capacity << 2);
    capacity <<= 1;
  }
  setU32(dependencies, dependencyCount++, bucket);
}
