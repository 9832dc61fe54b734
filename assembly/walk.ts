/**
 * Walk: all chunks of one rank, tensor by tensor (`tensorAt`), boxes by their global starts, pieces in order; the
 * same order on both ends of every channel. Each chunk goes to the sink (`sink.ts`).
 */
import { boxLengths, boxSource, boxTarget } from "./box";
import { found, foundBox } from "./boxes";
import { sendBox, takeBox } from "./direct";
import { DIRECT, tensorAt, tensorCount, tensorSourceBase, tensorTargetBase } from "./model";
import { findTensors, foundTensor, subMeshRank, subMeshSize } from "./homes";
import { reduceBox, takeReduced } from "./reduced";
import { enterBox } from "./route";
import { findOwn, isShared } from "./shares";
import { admitBoxes } from "./sink";
import { fanCells, sendStripes, takeStripes } from "./striped";
import {
  enter,
  enterSource,
  enterTarget,
  overlapAt,
  pattern,
  source,
  sourceGroups,
  sourceOrigin,
  target,
  targetGroups,
  targetOrigin,
  targetReplica,
} from "./tensor";
import { i64At, setI64, setU32, u32At } from "./words";

const at: usize = memory.data(32, 8);
const first: usize = memory.data(32, 8);
const end: usize = memory.data(32, 8);

/**
 * Chunks that begin at `rank` in stage 1, and those that end there in stage 0. With `contributions` also
 * those that begin there in stage 0 and end elsewhere.
 */
export function walkSource(rank: u32, contributions: bool): void {
  if (!enterSource(rank)) return;
  let boxes: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const pointers = overlapAt(dim).sourcePointers;
    const group = u32At(sourceGroups, dim);
    setU32(first, dim, u32At(pointers, group));
    setU32(at, dim, u32At(pointers, group));
    setU32(end, dim, u32At(pointers, group + 1));
    boxes *= u32At(pointers, group + 1) - u32At(pointers, group);
  }
  const isOwn = boxes > 1 && isShared();
  if (isOwn) findOwn(rank, boxes, contributions);
  const walked: i64 = isOwn ? found : boxes;
  admitBoxes(walked);
  const origin = sourceOrigin();
  for (let number: i64 = 0; number < walked; number++) {
    const box = isOwn ? foundBox(<u32>number) : number;
    if (isOwn) goTo(box);
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
      const overlap = overlapAt(dim);
      const segment = u32At(at, dim);
      setU32(targetGroups, dim, u32At(overlap.targetGroup, segment));
      placeBox(dim, segment);
    }
    enterBox(box, boxes);
    if (source.contributions > 1) reduceBox(rank, origin, targetOrigin(), contributions);
    else if (pattern.striping != DIRECT) sendStripes(rank, origin);
    else sendBox(rank, origin);
    if (!isOwn) step();
  }
}

/** Makes `at` a box of the source group, by its number. */
function goTo(box: i64): void {
  let rest = box;
  for (let dim = pattern.ndim; dim > 0; dim--) {
    const begin = u32At(first, dim - 1);
    const count = u32At(end, dim - 1) - begin;
    setU32(at, dim - 1, begin + <u32>(rest % count));
    rest /= count;
  }
}

/** Chunks that end at `rank` in stages 1 and 2 and begin elsewhere, and those that begin there in stage 2. */
function walkTarget(rank: u32): void {
  walkTargetBoxes(rank, true);
}

/** Chunks that begin at `rank` in stage 2. */
export function walkFanout(rank: u32): void {
  if (pattern.striping != DIRECT) walkTargetBoxes(rank, false);
}

function walkTargetBoxes(rank: u32, arrivals: bool): void {
  if (!enterTarget(rank)) return;
  let count: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const pointers = overlapAt(dim).targetPointers;
    const group = u32At(targetGroups, dim);
    setU32(first, dim, u32At(pointers, group));
    setU32(at, dim, u32At(pointers, group));
    setU32(end, dim, u32At(pointers, group + 1));
    count *= u32At(pointers, group + 1) - u32At(pointers, group);
  }
  const replica = targetReplica;
  const targetAt = targetOrigin();
  if (pattern.striping != DIRECT && !pattern.meeting) {
    fanCells(rank, replica, targetAt, arrivals);
    if (!arrivals) return;
  }
  admitBoxes(count);
  for (let number: i64 = 0; number < count; number++) {
    let box: i64 = 0;
    let boxes: i64 = 1;
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
      const overlap = overlapAt(dim);
      const segment = u32At(overlap.targetList, u32At(at, dim));
      const group = u32At(overlap.sourceGroup, segment);
      const begin = u32At(overlap.sourcePointers, group);
      const segments = u32At(overlap.sourcePointers, group + 1) - begin;
      setU32(sourceGroups, dim, group);
      placeBox(dim, segment);
      box = box * segments + (segment - begin);
      boxes *= segments;
    }
    enterBox(box, boxes);
    if (source.contributions > 1) takeReduced(rank, replica, targetAt, arrivals);
    else if (pattern.striping != DIRECT) takeStripes(rank, replica, targetAt, arrivals);
    else takeBox(rank, replica);
    step();
  }
}

function placeBox(dim: u32, segment: u32): void {
  const overlap = overlapAt(dim);
  setI64(boxLengths, dim, i64At(overlap.lengths, segment));
  setI64(boxSource, dim, i64At(overlap.sourceLocal, segment));
  setI64(boxTarget, dim, i64At(overlap.targetLocal, segment));
}

/** Moves `at` to the next box: the last dimension first. */
function step(): void {
  for (let dim = pattern.ndim; dim > 0; dim--) {
    const next = u32At(at, dim - 1) + 1;
    if (next < u32At(end, dim - 1)) {
      setU32(at, dim - 1, next);
      return;
    }
    setU32(at, dim - 1, u32At(first, dim - 1));
  }
}

/** Everything that begins or ends at a rank. */
export function walkRank(rank: u32): void {
  for (let place: u32 = 0; place < tensorCount; place++) {
    enter(tensorAt(place));
    walkSource(rank, true);
    walkTarget(rank);
  }
}

/** What is at home at a rank: every chunk of the world is at home at exactly one. */
export function walkHome(rank: u32): void {
  const tensors = findTensors(rank);
  for (let at: u32 = 0; at < tensors; at++) walkHomeOf(rank, foundTensor(at));
}

/** All chunks of one tensor: what is at home at each of its ranks. */
export function walkTensor(tensor: u32): void {
  enter(tensor);
  const sources = subMeshSize(source);
  for (let index: u32 = 0; index < sources; index++) {
    walkSource(subMeshRank(source, tensorSourceBase(tensor), index), false);
  }
  if (pattern.striping == DIRECT) return;
  const targets = subMeshSize(target);
  for (let index: u32 = 0; index < targets; index++) {
    walkFanout(subMeshRank(target, tensorTargetBase(tensor), index));
  }
}

/** What of one tensor is at home at a rank. */
export function walkHomeOf(rank: u32, tensor: u32): void {
  enter(tensor);
  walkSource(rank, false);
  walkFanout(rank);
}
