/**
 * Stripes: if several target replicas want the same, they form groups (all of them, or those of one host).
 * The local tensor of the replicas is cut into cells, as many as a group has members and large enough each; a
 * member receives its cells from the sources, and hands them on to the others of its group. A source box is
 * cut at the borders of the cells, so that each part of it has one cell.
 */
import { alloc } from "./arena";
import { Axis } from "./axis";
import { boxLengths, boxSource, boxTarget } from "./box";
import { cutBox, cutGrid, pieceLengths, pieceOffsets, pieces, slabAt, slabStart } from "./cut";
import { Groups, groupsAt, startGroups } from "./groups";
import { enterHolders, holderCount, hostHolds } from "./holders";
import { bucketBytes, DIRECT, HOST, hosts, patternAt, patternCount } from "./model";
import { stripeRotation } from "./route";
import {
  hostOf,
  pattern,
  source,
  sourceOrigin,
  target,
  targetGroups,
  targetLength,
  targetOrigin,
  targetRankAt,
} from "./tensor";
import { commonMultiple, i64At, NONE, setI64, setU32, u32At } from "./words";

/** A cell is at least this part of a bucket: 16 KiB of 8 MiB. Smaller tensors go to the members in turn. */
const CELLS_PER_BUCKET: i64 = 512;

/** The groups and cells of the replicas of one target group, made when they are first met. */
// @ts-ignore: decorator
@unmanaged
class Stripes {
  /** Whose they are: the index in the mesh of the first replica. */
  origin: u32;
  groups: usize;
  cells: i64;
  slabs: usize;
  lengths: usize;
}

let stripes: Stripes = changetype<Stripes>(0);
let groups: Groups = changetype<Groups>(0);

/** Makes room for the stripes of all patterns, once a plan. */
export function openStripes(): void {
  for (let index: u32 = 0; index < patternCount; index++) {
    const one = patternAt(index);
    if (one.striping == DIRECT) continue;
    const made = changetype<Stripes>(alloc(offsetof<Stripes>()));
    made.slabs = alloc(64);
    made.lengths = alloc(64);
    one.stripes = changetype<usize>(made);
  }
}

/** Forgets groups: they are made anew where memory was given back. */
export function startStripes(): void {
  startGroups();
  for (let index: u32 = 0; index < patternCount; index++) {
    const one = patternAt(index);
    if (one.striping != DIRECT) changetype<Stripes>(one.stripes).origin = NONE;
  }
}

/** Takes up the stripes of the target group at hand, whose first replica stands at `origin`. */
export function enterStripes(origin: u32): void {
  stripes = changetype<Stripes>(pattern.stripes);
  if (stripes.origin == origin) {
    groups = changetype<Groups>(stripes.groups);
    return;
  }
  groups = groupsAt(target, origin, pattern.striping == HOST);
  stripes.groups = changetype<usize>(groups);
  stripes.origin = origin;
  let empty = false;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    setI64(stripes.lengths, dim, targetLength(dim));
    if (targetLength(dim) == 0) empty = true;
  }
  // A cell travels in the target's type; what fills it is reduced in the source's.
  const item = source.contributions > 1 ? max(pattern.sourceItem, pattern.targetItem) : pattern.targetItem;
  const least = bucketBytes / CELLS_PER_BUCKET;
  stripes.cells = empty
    ? 0
    : cutGrid(pattern.ndim, stripes.lengths, item, bucketBytes, groups.largest, least, stripes.slabs);
}

/** After how many tensors of a class the rotation over members is where it was, for all target groups. */
export function stripePeriod(): i64 {
  if (pattern.striping == DIRECT) return 1;
  let period: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) setU32(targetGroups, dim, 0);
  do {
    enterStripes(targetOrigin());
    for (let group: u32 = 0; group < groups.count; group++) {
      if (stripes.cells % groupSize(group) == 0) continue;
      period = commonMultiple(period, groupSize(group));
      if (period > i32.MAX_VALUE) return period;
    }
  } while (nextTargetGroup());
  return period;
}

/** Takes up the next target group, the last dimension first; false after the last one. */
export function nextTargetGroup(): bool {
  for (let dim = pattern.ndim; dim > 0; dim--) {
    const next = u32At(targetGroups, dim - 1) + 1;
    const axis = changetype<Axis>(u32At(target.axes, dim - 1));
    setU32(targetGroups, dim - 1, next < axis.groups ? next : 0);
    if (next < axis.groups) return true;
  }
  return false;
}

export function groupCount(): u32 {
  return groups.count;
}
export function largestGroup(): u32 {
  return groups.largest;
}
export function groupSize(group: u32): u32 {
  return u32At(groups.pointers, group + 1) - u32At(groups.pointers, group);
}
/** The replica that is member `index` of a group. */
export function groupMember(group: u32, index: u32): u32 {
  return u32At(groups.members, u32At(groups.pointers, group) + index);
}
export function groupOf(replica: u32): u32 {
  return u32At(groups.groupOf, replica);
}
/** The index of a replica in its group. */
export function indexInGroup(replica: u32): u32 {
  const group = groupOf(replica);
  let low: u32 = 0;
  let high = groupSize(group);
  while (low < high) {
    const middle = (low + high) >> 1;
    if (groupMember(group, middle) < replica) low = middle + 1;
    else high = middle;
  }
  return low;
}
export function cellCount(): i64 {
  return stripes.cells;
}

/** The replica that receives a cell for its group. */
export function stripeMember(group: u32, cell: i64): u32 {
  const size = groupSize(group);
  return groupMember(group, <u32>((stripeRotation(stripes.cells, size) + cell) % size));
}

/**
 * Takes up who holds the box at hand as a source and wants it: the others of such a group get it from there, or from
 * wherever a direct plan takes it, and there is nothing to be striped.
 */
export function enterGroupHolders(targetAt: u32): void {
  holdersAt = targetAt;
  enterHolders(sourceOrigin(), targetAt);
}
let holdersAt: u32 = 0;

/** True if a member of the group holds the box. */
export function groupHolds(group: u32): bool {
  if (pattern.striping != HOST || hosts == 0) return holderCount > 0;
  return holderCount > 0 && hostHolds(hostOf(targetRankAt(holdersAt, groupMember(group, 0))));
}

/** Makes a cell the piece at hand. */
export function placeCell(number: i64): void {
  let rest = number;
  for (let dim = pattern.ndim; dim > 0; dim--) {
    const length = i64At(stripes.lengths, dim - 1);
    const count = i64At(stripes.slabs, dim - 1);
    const slab = rest % count;
    rest /= count;
    const start = slabStart(length, count, slab);
    setI64(boxTarget, dim - 1, start);
    setI64(pieceOffsets, dim - 1, 0);
    setI64(pieceLengths, dim - 1, slabStart(length, count, slab + 1) - start);
  }
}

/** The cell of the part at hand. */
export let cell: i64 = 0;
let left: i64 = 0;
let isWhole = false;
const wholeLengths: usize = memory.data(64, 8);
const wholeSource: usize = memory.data(64, 8);
const wholeTarget: usize = memory.data(64, 8);
const first: usize = memory.data(64, 8);
const last: usize = memory.data(64, 8);
const at: usize = memory.data(64, 8);

/**
 * Begins with the parts of the box at hand, which `holders` ranks hold; answers how many pieces they have in
 * all. Without stripes the whole box is one part. Then `nextPart` cuts one after the other.
 */
export function startParts(targetAt: u32, holders: i64): i64 {
  cell = 0;
  left = 1;
  isWhole = pattern.striping == DIRECT;
  if (isWhole) {
    cutBox(pattern.ndim, boxLengths, pattern.cutItem, bucketBytes, holders);
    return pieces;
  }
  enterStripes(targetAt);
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const begin = i64At(boxTarget, dim);
    const length = i64At(boxLengths, dim);
    const whole = i64At(stripes.lengths, dim);
    const slabs = i64At(stripes.slabs, dim);
    setI64(wholeLengths, dim, length);
    setI64(wholeSource, dim, i64At(boxSource, dim));
    setI64(wholeTarget, dim, begin);
    setI64(first, dim, slabAt(whole, slabs, begin));
    setI64(last, dim, slabAt(whole, slabs, begin + length - 1));
    setI64(at, dim, i64At(first, dim));
    left *= i64At(last, dim) - i64At(first, dim) + 1;
  }
  const parts = left;
  let total: i64 = 0;
  while (nextPart(holders)) total += pieces;
  left = parts;
  return total;
}

/** Makes the next part the box at hand, and cuts it. */
export function nextPart(holders: i64): bool {
  if (left == 0) return false;
  left--;
  if (isWhole) return true;
  cell = 0;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const whole = i64At(stripes.lengths, dim);
    const slabs = i64At(stripes.slabs, dim);
    const slab = i64At(at, dim);
    const begin = i64At(wholeTarget, dim);
    const low = max(begin, slabStart(whole, slabs, slab));
    const high = min(begin + i64At(wholeLengths, dim), slabStart(whole, slabs, slab + 1));
    setI64(boxTarget, dim, low);
    setI64(boxSource, dim, i64At(wholeSource, dim) + low - begin);
    setI64(boxLengths, dim, high - low);
    cell = cell * slabs + slab;
  }
  for (let dim = pattern.ndim; dim > 0; dim--) {
    const next = i64At(at, dim - 1) + 1;
    const more = next <= i64At(last, dim - 1);
    setI64(at, dim - 1, more ? next : i64At(first, dim - 1));
    if (more) break;
  }
  cutBox(pattern.ndim, boxLengths, pattern.cutItem, bucketBytes, holders);
  return true;
}

/** What is cut along a dimension of the target group at hand, and into how many slabs. */
export function slabLength(dim: u32): i64 {
  return i64At(stripes.lengths, dim);
}
export function slabsAlong(dim: u32): i64 {
  return i64At(stripes.slabs, dim);
}
