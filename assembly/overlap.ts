/**
 * Overlap of two axes of one tensor dimension: one sweep over the runs of both sides, both sorted. A segment
 * is a stretch that one source group holds and one target group wants, contiguous in the local index space of
 * both.
 */
import { alloc, allocZero } from "./arena";
import { Axis } from "./axis";
import { sortByKey } from "./sort";
import { i64At, NONE, setI64, setU32, u32At } from "./words";

// @ts-ignore: decorator
@unmanaged
export class Overlap {
  source: usize;
  target: usize;
  /** Segments in the order (source group, global start). */
  count: u32;
  sourceGroup: usize;
  targetGroup: usize;
  lengths: usize;
  sourceLocal: usize;
  targetLocal: usize;
  /** Segments of source group g are `sourcePointers[g]` up to `sourcePointers[g + 1]`. */
  sourcePointers: usize;
  /**
   * Segments of target group g, by global start, are those that `targetList` names at the same kind of
   * pointers.
   */
  targetPointers: usize;
  targetList: usize;
  next: usize;
}

/** The runs of all groups of an axis, sorted by start: they partition the dimension. */
let sortedOrder: usize = 0;
let sortedGroup: usize = 0;
let sortedLocal: usize = 0;

function sortRuns(axis: Axis): u32 {
  const count = u32At(axis.pointers, axis.groups);
  sortedOrder = alloc((<usize>count) << 2);
  sortedGroup = alloc((<usize>count) << 2);
  sortedLocal = alloc((<usize>count) << 3);
  for (let group: u32 = 0; group < axis.groups; group++) {
    let local: i64 = 0;
    for (let run = u32At(axis.pointers, group); run < u32At(axis.pointers, group + 1); run++) {
      setU32(sortedOrder, run, run);
      setU32(sortedGroup, run, group);
      setI64(sortedLocal, run, local);
      local += i64At(axis.lengths, run);
    }
  }
  sortByKey(sortedOrder, count, axis.starts);
  return count;
}

export function sweep(overlap: Overlap): void {
  const source = changetype<Axis>(overlap.source);
  const target = changetype<Axis>(overlap.target);
  const sourceRuns = sortRuns(source);
  const sourceOrder = sortedOrder;
  const sourceGroups = sortedGroup;
  const sourceLocals = sortedLocal;
  const targetRuns = sortRuns(target);
  const targetOrder = sortedOrder;
  const targetGroups = sortedGroup;
  const targetLocals = sortedLocal;

  const most = <usize>(sourceRuns + targetRuns);
  const rawSource = alloc(most << 2);
  const rawTarget = alloc(most << 2);
  const rawLength = alloc(most << 3);
  const rawSourceLocal = alloc(most << 3);
  const rawTargetLocal = alloc(most << 3);
  let raw: u32 = 0;
  let i: u32 = 0;
  let j: u32 = 0;
  let usedI: i64 = 0;
  let usedJ: i64 = 0;
  while (i < sourceRuns && j < targetRuns) {
    const sourceRun = u32At(sourceOrder, i);
    const targetRun = u32At(targetOrder, j);
    const leftI = i64At(source.lengths, sourceRun) - usedI;
    const leftJ = i64At(target.lengths, targetRun) - usedJ;
    const length = min(leftI, leftJ);
    setU32(rawSource, raw, u32At(sourceGroups, sourceRun));
    setU32(rawTarget, raw, u32At(targetGroups, targetRun));
    setI64(rawLength, raw, length);
    setI64(rawSourceLocal, raw, i64At(sourceLocals, sourceRun) + usedI);
    setI64(rawTargetLocal, raw, i64At(targetLocals, targetRun) + usedJ);
    raw++;
    usedI += length;
    usedJ += length;
    if (length == leftI) {
      i++;
      usedI = 0;
    }
    if (length == leftJ) {
      j++;
      usedJ = 0;
    }
  }
  collect(overlap, source, target, raw, rawSource, rawTarget, rawLength, rawSourceLocal, rawTargetLocal);
}

/**
 * Groups raw segments by source group, joins what is contiguous in both local spaces, and lists them by
 * target.
 */
function collect(
  overlap: Overlap,
  source: Axis,
  target: Axis,
  raw: u32,
  rawSource: usize,
  rawTarget: usize,
  rawLength: usize,
  rawSourceLocal: usize,
  rawTargetLocal: usize,
): void {
  // Which raw segment each group saw last: the next either prolongs that one or begins a segment.
  const last = alloc((<usize>source.groups) << 2);
  memory.fill(last, 0xff, (<usize>source.groups) << 2);
  const head = alloc((<usize>raw) << 2);
  const counts = allocZero((<usize>source.groups + 1) << 2);
  let count: u32 = 0;
  for (let at: u32 = 0; at < raw; at++) {
    const group = u32At(rawSource, at);
    const before = u32At(last, group);
    if (
      before != NONE &&
      u32At(rawTarget, before) == u32At(rawTarget, at) &&
      i64At(rawTargetLocal, before) + i64At(rawLength, before) == i64At(rawTargetLocal, at)
    ) {
      setI64(rawLength, before, i64At(rawLength, before) + i64At(rawLength, at));
      setU32(head, at, 0);
      continue;
    }
    setU32(last, group, at);
    setU32(head, at, 1);
    setU32(counts, group, u32At(counts, group) + 1);
    count++;
  }

  overlap.count = count;
  overlap.sourceGroup = alloc((<usize>count) << 2);
  overlap.targetGroup = alloc((<usize>count) << 2);
  overlap.lengths = alloc((<usize>count) << 3);
  overlap.sourceLocal = alloc((<usize>count) << 3);
  overlap.targetLocal = alloc((<usize>count) << 3);
  overlap.sourcePointers = toPointers(counts, source.groups);
  const targetCounts = allocZero((<usize>target.groups + 1) << 2);
  const placed = alloc((<usize>source.groups + 1) << 2);
  memory.copy(placed, overlap.sourcePointers, (<usize>source.groups + 1) << 2);
  const segmentOf = head;
  for (let at: u32 = 0; at < raw; at++) {
    if (u32At(head, at) == 0) {
      setU32(segmentOf, at, NONE);
      continue;
    }
    const group = u32At(rawSource, at);
    const segment = u32At(placed, group);
    setU32(placed, group, segment + 1);
    setU32(overlap.sourceGroup, segment, group);
    setU32(overlap.targetGroup, segment, u32At(rawTarget, at));
    setI64(overlap.lengths, segment, i64At(rawLength, at));
    setI64(overlap.sourceLocal, segment, i64At(rawSourceLocal, at));
    setI64(overlap.targetLocal, segment, i64At(rawTargetLocal, at));
    setU32(segmentOf, at, segment);
    setU32(targetCounts, u32At(rawTarget, at), u32At(targetCounts, u32At(rawTarget, at)) + 1);
  }

  overlap.targetPointers = toPointers(targetCounts, target.groups);
  overlap.targetList = alloc((<usize>count) << 2);
  const filled = alloc((<usize>target.groups + 1) << 2);
  memory.copy(filled, overlap.targetPointers, (<usize>target.groups + 1) << 2);
  for (let at: u32 = 0; at < raw; at++) {
    const segment = u32At(segmentOf, at);
    if (segment == NONE) continue;
    const group = u32At(rawTarget, at);
    setU32(overlap.targetList, u32At(filled, group), segment);
    setU32(filled, group, u32At(filled, group) + 1);
  }
}

/** Turns `groups` counts into `groups + 1` pointers, in place. */
function toPointers(counts: usize, groups: u32): usize {
  let sum: u32 = 0;
  for (let group: u32 = 0; group <= groups; group++) {
    const count = u32At(counts, group);
    setU32(counts, group, sum);
    sum += count;
  }
  return counts;
}
