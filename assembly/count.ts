/** Counts boxes and chunks of a pattern without making any: boxes of equal lengths are cut alike. */
import { alloc, mark, release } from "./arena";
import { cutBox, pieces } from "./cut";
import { bucketBytes, Pattern, Side } from "./model";
import { Overlap } from "./overlap";
import { sortByKey } from "./sort";
import { i64At, setI64, setU32, u32At } from "./words";

export let boxCount: i64 = 0;
export let chunkCount: i64 = 0;

/** For each dimension the distinct lengths of its segments, how often each occurs, and how many they are. */
const values: usize = memory.data(32, 8);
const times: usize = memory.data(32, 8);
const distinct: usize = memory.data(32, 8);
const at: usize = memory.data(32, 8);
const lengths: usize = memory.data(64, 8);

/** Sets `boxCount` and `chunkCount` to those of one tensor of the pattern. */
export function countPattern(pattern: Pattern): void {
  const before = mark();
  boxCount = 0;
  chunkCount = 0;
  let combinations: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    collect(dim, changetype<Overlap>(u32At(pattern.overlaps, dim)));
    combinations *= u32At(distinct, dim);
    setU32(at, dim, 0);
  }
  const source = changetype<Side>(pattern.source);
  const replicas = changetype<Side>(pattern.target).replicas;
  // A reduced piece has a chunk from each contributor besides those to the targets.
  const perPiece = <i64>(source.contributions > 1 ? replicas + source.contributions : replicas);
  for (; combinations > 0; combinations--) {
    let boxes: i64 = 1;
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
      setI64(lengths, dim, i64At(u32At(values, dim), u32At(at, dim)));
      boxes *= i64At(u32At(times, dim), u32At(at, dim));
    }
    cutBox(pattern.ndim, lengths, pattern.cutItem, bucketBytes, source.replicas * source.contributions);
    boxCount += boxes;
    chunkCount += boxes * pieces * perPiece;
    for (let dim = pattern.ndim; dim > 0; dim--) {
      const next = u32At(at, dim - 1) + 1;
      setU32(at, dim - 1, next < u32At(distinct, dim - 1) ? next : 0);
      if (next < u32At(distinct, dim - 1)) break;
    }
  }
  release(before);
}

function collect(dim: u32, overlap: Overlap): void {
  const count = overlap.count;
  const order = alloc(<usize>count << 2);
  const value = alloc(<usize>count << 3);
  const time = alloc(<usize>count << 3);
  for (let segment: u32 = 0; segment < count; segment++) setU32(order, segment, segment);
  sortByKey(order, count, overlap.lengths);
  let found: u32 = 0;
  for (let index: u32 = 0; index < count; index++) {
    const length = i64At(overlap.lengths, u32At(order, index));
    if (found == 0 || i64At(value, found - 1) != length) {
      setI64(value, found, length);
      setI64(time, found++, 0);
    }
    setI64(time, found - 1, i64At(time, found - 1) + 1);
  }
  setU32(values, dim, <u32>value);
  setU32(times, dim, <u32>time);
  setU32(distinct, dim, found);
}
