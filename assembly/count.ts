/** Counts boxes and chunks without making any: boxes of equal lengths are cut alike. */
import { alloc, mark, release } from "./arena";
import { cutBox, pieces, slabAt, slabStart } from "./cut";
import {
  bucketBytes,
  classCount,
  classFirst,
  classTensor,
  DIRECT,
  HOST,
  patternAt,
  patternCount,
  tensorPattern,
} from "./model";
import { sortByKey } from "./sort";
import { cellCount, enterStripes, groupCount, nextTargetGroup, slabLength, slabsAlong } from "./stripe";
import { enter, overlapAt, pattern, source, target, targetGroups, targetOrigin } from "./tensor";
import { countPlus, countTimes, i64At, setI64, setU32, u32At } from "./words";

export let boxCount: i64 = 0;
export let chunkCount: i64 = 0;

/** For each dimension the distinct lengths of its segments, how often each occurs, and how many they are. */
const values: usize = memory.data(32, 8);
const times: usize = memory.data(32, 8);
const distinct: usize = memory.data(32, 8);
const at: usize = memory.data(32, 8);
const lengths: usize = memory.data(64, 8);

/** Sets `boxCount` and `chunkCount` to those of a tensor. */
export function countTensor(tensor: u32): void {
  enter(tensor);
  boxCount = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) boxCount = countTimes(boxCount, overlapAt(dim).count);
  if (pattern.striping == DIRECT) chunkCount = countDirect();
  else chunkCount = countStriped();
}

/** The chunks of all tensors: tensors of a class have equally many. */
export function countWorld(): i64 {
  const known = alloc((<usize>patternCount) << 3);
  memory.fill(known, 0xff, (<usize>patternCount) << 3);
  let total: i64 = 0;
  for (let index: u32 = 0; index < classCount; index++) {
    const first = classTensor(classFirst(index));
    const number = tensorPattern(first);
    let chunks = i64At(known, number);
    if (chunks < 0) {
      countTensor(first);
      chunks = chunkCount;
      // How replicas are spread over hosts may differ from sub-mesh to sub-mesh.
      if (patternAt(number).striping != HOST) setI64(known, number, chunks);
    }
    total = countPlus(total, countTimes(chunks, classFirst(index + 1) - classFirst(index)));
  }
  return total;
}

function countDirect(): i64 {
  const before = mark();
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const overlap = overlapAt(dim);
    collect(dim, overlap.lengths, 0, overlap.count);
  }
  const chunks = countTimes(countPieces(), chunksPerPiece());
  release(before);
  return chunks;
}

/** A piece goes to every replica; a reduced one has a chunk from each contributor besides. */
function chunksPerPiece(): i64 {
  return target.replicas + (source.contributions > 1 ? source.contributions : 0);
}

/** Target group by target group: each has cells of its own, and boxes are cut at their borders. */
function countStriped(): i64 {
  let chunks: i64 = 0;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) setU32(targetGroups, dim, 0);
  do {
    enterStripes(targetOrigin());
    if (cellCount() == 0) continue;
    const before = mark();
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) collectParts(dim);
    const count = countPieces();
    release(before);
    if (pattern.meeting) {
      chunks = countPlus(chunks, countTimes(count, chunksPerPiece()));
      continue;
    }
    const reduced = source.contributions > 1 ? source.contributions : 0;
    chunks = countPlus(chunks, countTimes(count, groupCount() + reduced));
    chunks = countPlus(chunks, countTimes(cellCount(), target.replicas - groupCount()));
  } while (nextTargetGroup());
  return chunks;
}

let parts: usize = 0;
let partTimes: usize = 0;
let partCount: u32 = 0;

/** The lengths of what cells leave of the segments of a target group. */
function collectParts(dim: u32): void {
  const overlap = overlapAt(dim);
  const group = u32At(targetGroups, dim);
  const begin = u32At(overlap.targetPointers, group);
  const end = u32At(overlap.targetPointers, group + 1);
  const whole = slabLength(dim);
  const slabs = slabsAlong(dim);
  parts = alloc((<usize>(end - begin)) << 5);
  partTimes = alloc((<usize>(end - begin)) << 5);
  partCount = 0;
  for (let place = begin; place < end; place++) {
    const segment = u32At(overlap.targetList, place);
    const low = i64At(overlap.targetLocal, segment);
    const high = low + i64At(overlap.lengths, segment);
    const firstSlab = slabAt(whole, slabs, low);
    const lastSlab = slabAt(whole, slabs, high - 1);
    if (firstSlab == lastSlab) {
      addPart(high - low, 1);
      continue;
    }
    addPart(slabStart(whole, slabs, firstSlab + 1) - low, 1);
    addPart(high - slabStart(whole, slabs, lastSlab), 1);
    // Whole slabs between them, the larger ones first.
    const between = lastSlab - firstSlab - 1;
    const larger = min(max<i64>((whole % slabs) - firstSlab - 1, 0), between);
    addPart(whole / slabs + 1, larger);
    addPart(whole / slabs, between - larger);
  }
  collect(dim, parts, partTimes, partCount);
}

function addPart(length: i64, count: i64): void {
  if (count == 0) return;
  setI64(parts, partCount, length);
  setI64(partTimes, partCount++, count);
}

/** The pieces of all boxes whose lengths were collected. */
function countPieces(): i64 {
  let total: i64 = 0;
  let combinations: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    combinations *= u32At(distinct, dim);
    setU32(at, dim, 0);
  }
  for (; combinations > 0; combinations--) {
    let boxes: i64 = 1;
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
      setI64(lengths, dim, i64At(u32At(values, dim), u32At(at, dim)));
      boxes *= i64At(u32At(times, dim), u32At(at, dim));
    }
    cutBox(pattern.ndim, lengths, pattern.cutItem, bucketBytes, source.replicas * source.contributions);
    total += boxes * pieces;
    for (let dim = pattern.ndim; dim > 0; dim--) {
      const next = u32At(at, dim - 1) + 1;
      setU32(at, dim - 1, next < u32At(distinct, dim - 1) ? next : 0);
      if (next < u32At(distinct, dim - 1)) break;
    }
  }
  return total;
}

/** Lists the distinct lengths among `all`, each with how often it occurs: by `weights`, or once for 0. */
function collect(dim: u32, all: usize, weights: usize, count: u32): void {
  const order = alloc((<usize>count) << 2);
  const value = alloc((<usize>count) << 3);
  const time = alloc((<usize>count) << 3);
  for (let segment: u32 = 0; segment < count; segment++) setU32(order, segment, segment);
  sortByKey(order, count, all);
  let found: u32 = 0;
  for (let index: u32 = 0; index < count; index++) {
    const length = i64At(all, u32At(order, index));
    if (found == 0 || i64At(value, found - 1) != length) {
      setI64(value, found, length);
      setI64(time, found++, 0);
    }
    const more = weights == 0 ? 1 : i64At(weights, u32At(order, index));
    setI64(time, found - 1, i64At(time, found - 1) + more);
  }
  setU32(values, dim, <u32>value);
  setU32(times, dim, <u32>time);
  setU32(distinct, dim, found);
}
