/**
 * Layout, one tensor dimension at a time: the runs of global indices that every shard group holds. A group is
 * one combination of coordinates on the mesh dimensions that shard this tensor dimension, numbered row-major.
 * The rules are PyTorch's: chunks of ceil(length / n) until the data runs out, later mesh dimensions cut what
 * earlier ones left.
 */
import { alloc, allocZero, grow, OF_RUNS } from "./arena";
import { fail, TB_PLAN_TOO_LARGE } from "./error";
import { ceilDiv, i64At, setI64, setU32, u32At } from "./words";

/** More runs than this are refused: a strided shard makes one of each of its pieces, for each group. */
const RUNS_MOST: i64 = 1 << 20;

export const SPLIT: i32 = 1;
export const ORDER: i32 = 2;

// @ts-ignore: decorator
@unmanaged
export class Axis {
  /**
   * What it was made from: length, reading, then per sharding mesh dimension its size, its split factor (0:
   * plain) and where its sizes stand if it cuts by size, else 0.
   */
  length: i64;
  reading: i32;
  dims: u32;
  sizes: usize;
  factors: usize;
  cuts: usize;
  /** Elements that are planned as one; runs, lengths and starts count these. */
  unit: i64;
  groups: u32;
  /** Runs of group g are `pointers[g]` up to `pointers[g + 1]`, ascending. */
  pointers: usize;
  starts: usize;
  lengths: usize;
  /** Local length of each group. */
  locals: usize;
  next: usize;
}

let starts: usize = 0;
let lengths: usize = 0;
let runs: u32 = 0;
let capacity: u32 = 0;

function startRuns(): void {
  capacity = 64;
  starts = alloc(64 << 3);
  lengths = alloc(64 << 3);
  runs = 0;
}

/** Appends a run to the group that began at run `first`; one that continues the last run prolongs it. */
function addRun(first: u32, start: i64, length: i64): void {
  if (length <= 0) return;
  if (runs > first && i64At(starts, runs - 1) + i64At(lengths, runs - 1) == start) {
    setI64(lengths, runs - 1, i64At(lengths, runs - 1) + length);
    return;
  }
  if (runs == capacity) {
    starts = grow(starts, (<usize>capacity) << 3);
    lengths = grow(lengths, (<usize>capacity) << 3);
    capacity <<= 1;
  }
  setI64(starts, runs, start);
  setI64(lengths, runs, length);
  runs++;
}

// A cursor over one parent list, to take slices by ascending positions.
let cursorStarts: usize = 0;
let cursorLengths: usize = 0;
let cursorRun: u32 = 0;
let cursorPosition: i64 = 0;

function seek(listStarts: usize, listLengths: usize, first: u32): void {
  cursorStarts = listStarts;
  cursorLengths = listLengths;
  cursorRun = first;
  cursorPosition = 0;
}

/** Appends positions [low, high) of the parent list to the group that began at run `first`. */
function takeSlice(first: u32, low: i64, high: i64): void {
  while (low < high) {
    const length = i64At(cursorLengths, cursorRun);
    const end = cursorPosition + length;
    if (low >= end) {
      cursorPosition = end;
      cursorRun++;
      continue;
    }
    const stop = min(high, end);
    addRun(first, i64At(cursorStarts, cursorRun) + (low - cursorPosition), stop - low);
    low = stop;
  }
}

function admitRuns(count: i64): void {
  if (<i64>runs + count > RUNS_MOST) fail(TB_PLAN_TOO_LARGE, OF_RUNS, <i64>runs + count);
}

/**
 * Cuts `[0, length)` by the mesh dimensions in the order given: group numbers come out row-major in that
 * order. A factor of 0 cuts as Shard does; k cuts the list into k pieces and gives group i its part of every
 * piece. False: a list is not as long as the sizes that cut it are together.
 */
function cutLists(axis: Axis, order: usize): bool {
  let groups: u32 = 1;
  let pointers = alloc(8);
  startRuns();
  setU32(pointers, 0, 0);
  addRun(0, 0, axis.length);
  setU32(pointers, 1, runs);
  for (let level: u32 = 0; level < axis.dims; level++) {
    const dim = u32At(order, level);
    const n = u32At(axis.sizes, dim);
    const factor = axis.reading == ORDER ? <i64>0 : i64At(axis.factors, dim);
    const cuts = u32At(axis.cuts, dim);
    if (n == 1 && cuts == 0) continue;
    let sum: i64 = 0;
    for (let i: u32 = 0; i < n && cuts != 0; i++) sum += i64At(cuts, i);
    const parentPointers = pointers;
    const parentStarts = starts;
    const parentLengths = lengths;
    pointers = alloc((<usize>groups * n + 1) << 2);
    startRuns();
    setU32(pointers, 0, 0);
    for (let parent: u32 = 0; parent < groups; parent++) {
      const first = u32At(parentPointers, parent);
      const end = u32At(parentPointers, parent + 1);
      let length: i64 = 0;
      for (let run = first; run < end; run++) length += i64At(parentLengths, run);
      if (cuts != 0 && sum != length) {
        misfit = <i32>dim;
        misfitLength = length;
        return false;
      }
      const piece = ceilDiv(length, max<i64>(factor, 1));
      const full = ceilDiv(piece, n);
      if (cuts == 0 && factor > 1 && piece > 1) admitRuns(ceilDiv(length, piece) * min<i64>(n, piece));
      let taken: i64 = 0;
      seek(parentStarts, parentLengths, first);
      for (let i: u32 = 0; i < n; i++) {
        const begin = runs;
        if (cuts != 0) {
          takeSlice(begin, taken, taken + i64At(cuts, i));
          taken += i64At(cuts, i);
        } else if (factor <= 1) {
          takeSlice(begin, min(full * i, length), min(full * (i + 1), length));
        } else if (piece <= 1) {
          // Pieces of one index each are all the first group's.
          if (i == 0) takeSlice(begin, 0, length);
        } else {
          seek(parentStarts, parentLengths, first);
          for (let at: i64 = 0; at < length; at += piece) {
            const size = min(piece, length - at);
            const chunk = ceilDiv(size, n);
            takeSlice(begin, at + min(chunk * i, size), at + min(chunk * (i + 1), size));
          }
        }
        setU32(pointers, parent * n + i + 1, runs);
      }
    }
    groups *= n;
  }
  axis.groups = groups;
  axis.pointers = pointers;
  axis.starts = starts;
  axis.lengths = lengths;
  return true;
}

/**
 * The order in which the `order` reading cuts: scanning mesh dimensions from the right, each goes to the
 * first place where the sizes before it multiply to its split factor (1 for Shard). Gives false if there is
 * no such place.
 */
function decodeOrder(axis: Axis, order: usize): bool {
  for (let count: u32 = 0; count < axis.dims; count++) {
    const dim = axis.dims - 1 - count;
    const wanted = max<i64>(i64At(axis.factors, dim), 1);
    let place: u32 = 0;
    let product: i64 = 1;
    while (product != wanted && place < count) product *= u32At(axis.sizes, u32At(order, place++));
    if (product != wanted) return false;
    for (let at = count; at > place; at--) setU32(order, at, u32At(order, at - 1));
    setU32(order, place, dim);
  }
  return true;
}

/** Renumbers groups that were cut in `order` to row-major over the mesh dimensions as they stand. */
function renumber(axis: Axis, order: usize): void {
  const dims = axis.dims;
  const weights = alloc((<usize>dims) << 2);
  let weight: u32 = 1;
  for (let level = dims; level > 0; level--) {
    const dim = u32At(order, level - 1);
    setU32(weights, dim, weight);
    weight *= u32At(axis.sizes, dim);
  }
  const oldPointers = axis.pointers;
  const oldStarts = axis.starts;
  const oldLengths = axis.lengths;
  axis.pointers = alloc((<usize>axis.groups + 1) << 2);
  startRuns();
  setU32(axis.pointers, 0, 0);
  for (let group: u32 = 0; group < axis.groups; group++) {
    let rest = group;
    let old: u32 = 0;
    for (let dim = dims; dim > 0; dim--) {
      const n = u32At(axis.sizes, dim - 1);
      old += (rest % n) * u32At(weights, dim - 1);
      rest /= n;
    }
    const begin = runs;
    for (let run = u32At(oldPointers, old); run < u32At(oldPointers, old + 1); run++) {
      addRun(begin, i64At(oldStarts, run), i64At(oldLengths, run));
    }
    setU32(axis.pointers, group + 1, runs);
  }
  axis.starts = starts;
  axis.lengths = lengths;
}

/** An element at which a cut falls inside of a unit when `layOut` failed, else -1. */
export let amid: i64 = -1;

/** Counts units in place of elements. False: a run begins or ends inside of one. */
function countUnits(axis: Axis): bool {
  const unit = axis.unit;
  for (let run: u32 = 0; run < u32At(axis.pointers, axis.groups); run++) {
    const start = i64At(axis.starts, run);
    const length = i64At(axis.lengths, run);
    if (start % unit != 0 || length % unit != 0) {
      amid = start % unit != 0 ? start : start + length;
      return false;
    }
    setI64(axis.starts, run, start / unit);
    setI64(axis.lengths, run, length / unit);
  }
  return true;
}

/** The sharding mesh dimension whose sizes did not fit when `layOut` failed, else -1; and what it cuts. */
export let misfit: i32 = -1;
export let misfitLength: i64 = 0;

/**
 * Fills in the groups of an axis in its reading. False: sizes do not fit (`misfit`), a cut falls inside of a
 * unit (`amid`), or the `order` reading has no meaning for it.
 */
export function layOut(axis: Axis): bool {
  misfit = -1;
  amid = -1;
  const order = alloc((<usize>axis.dims) << 2);
  for (let dim: u32 = 0; dim < axis.dims; dim++) setU32(order, dim, dim);
  if (axis.reading == ORDER) {
    if (!decodeOrder(axis, order) || !cutLists(axis, order)) return false;
    renumber(axis, order);
  } else if (!cutLists(axis, order)) {
    return false;
  }
  if (axis.unit > 1 && !countUnits(axis)) return false;
  axis.locals = allocZero((<usize>axis.groups) << 3);
  for (let group: u32 = 0; group < axis.groups; group++) {
    let length: i64 = 0;
    for (let run = u32At(axis.pointers, group); run < u32At(axis.pointers, group + 1); run++) {
      length += i64At(axis.lengths, run);
    }
    setI64(axis.locals, group, length);
  }
  return true;
}

/** True if two readings of one axis hold the same everywhere. */
export function sameRuns(a: Axis, b: Axis): bool {
  const pointers = (<usize>a.groups + 1) << 2;
  if (a.groups != b.groups || memory.compare(a.pointers, b.pointers, pointers) != 0) return false;
  const bytes = (<usize>u32At(a.pointers, a.groups)) << 3;
  return memory.compare(a.starts, b.starts, bytes) == 0 && memory.compare(a.lengths, b.lengths, bytes) == 0;
}
