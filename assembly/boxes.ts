/** Boxes of the source group at hand that were found, and those that target groups want. */
import { alloc, grow } from "./arena";
import { sortByKey } from "./sort";
import { overlapAt, pattern, sourceGroups, targetGroups } from "./tensor";
import { i64At, setI64, setU32, u32At } from "./words";

/** How many were found; `finishBoxes` sorts them and drops what was found twice. */
export let found: u32 = 0;
let boxList: usize = 0;
let boxKeys: usize = 0;
let capacity: u32 = 0;
const at: usize = memory.data(32, 8);
const choices: usize = memory.data(32, 8);
const choiceCounts: usize = memory.data(32, 8);

/** Forgets the memory, which was given back. */
export function openBoxes(): void {
  capacity = 0;
  memory.fill(choices, 0, 32);
}

export function startBoxes(): void {
  if (capacity == 0) {
    capacity = 64;
    boxList = alloc(64 << 2);
    boxKeys = alloc(64 << 3);
  }
  found = 0;
}

/** The boxes in order, once they are finished. */
export function foundBox(index: u32): i64 {
  return i64At(boxKeys, u32At(boxList, index));
}

export function addBox(box: i64): void {
  if (found == capacity) {
    boxList = grow(boxList, (<usize>capacity) << 2);
    boxKeys = grow(boxKeys, (<usize>capacity) << 3);
    capacity <<= 1;
  }
  setU32(boxList, found, found);
  setI64(boxKeys, found++, box);
}

/** Takes a box back, of those that were found since there were `count`; -1 if there is none. */
export function takeBack(count: u32): i64 {
  return found > count ? i64At(boxKeys, --found) : -1;
}

export function finishBoxes(): void {
  sortByKey(boxList, found, boxKeys);
  let kept: u32 = 0;
  for (let index: u32 = 0; index < found; index++) {
    if (kept > 0 && foundBox(index) == foundBox(kept - 1)) continue;
    setU32(boxList, kept++, u32At(boxList, index));
  }
  found = kept;
}

/**
 * Adds the boxes of the source group at hand that the target groups at hand want: for each dimension the segments of
 * both, then all combinations.
 */
export function addWanted(): void {
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) if (!listChoices(dim)) return;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) setU32(at, dim, 0);
  for (;;) {
    let box: i64 = 0;
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
      const pointers = overlapAt(dim).sourcePointers;
      const group = u32At(sourceGroups, dim);
      const begin = u32At(pointers, group);
      const segment = u32At(u32At(choices, dim), u32At(at, dim));
      box = box * (u32At(pointers, group + 1) - begin) + (segment - begin);
    }
    addBox(box);
    let dim = pattern.ndim;
    for (; dim > 0; dim--) {
      const next = u32At(at, dim - 1) + 1;
      setU32(at, dim - 1, next < u32At(choiceCounts, dim - 1) ? next : 0);
      if (next < u32At(choiceCounts, dim - 1)) break;
    }
    if (dim == 0) return;
  }
}

/** Room for the segments that are chosen along each dimension. */
const rooms: usize = memory.data(32, 8);

/** Lists the segments of the source group that the target group wants, by the shorter of their lists. */
function listChoices(dim: u32): bool {
  const overlap = overlapAt(dim);
  const own = u32At(sourceGroups, dim);
  const wanted = u32At(targetGroups, dim);
  const sourceBegin = u32At(overlap.sourcePointers, own);
  const sourceEnd = u32At(overlap.sourcePointers, own + 1);
  const targetBegin = u32At(overlap.targetPointers, wanted);
  const targetEnd = u32At(overlap.targetPointers, wanted + 1);
  const most = min(sourceEnd - sourceBegin, targetEnd - targetBegin);
  const list = roomFor(dim, most);
  let count: u32 = 0;
  if (sourceEnd - sourceBegin <= targetEnd - targetBegin) {
    for (let segment = sourceBegin; segment < sourceEnd; segment++) {
      if (u32At(overlap.targetGroup, segment) == wanted) setU32(list, count++, segment);
    }
  } else {
    for (let place = targetBegin; place < targetEnd; place++) {
      const segment = u32At(overlap.targetList, place);
      if (u32At(overlap.sourceGroup, segment) == own) setU32(list, count++, segment);
    }
  }
  setU32(choiceCounts, dim, count);
  return count > 0;
}

/** Memory for `count` segments of a dimension, kept from one rank to the next. */
function roomFor(dim: u32, count: u32): usize {
  if (u32At(rooms, dim) < count || u32At(choices, dim) == 0) {
    setU32(rooms, dim, max(count, 16));
    setU32(choices, dim, <u32>alloc((<usize>u32At(rooms, dim)) << 2));
  }
  return u32At(choices, dim);
}
