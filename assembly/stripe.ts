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
import { bucketBytes, DIRECT, HOST, hosts, patternAt, patternCount, Side, world } from "./model";
import { stripeRotation } from "./route";
import {
  holdsSource,
  hostOf,
  pattern,
  source,
  target,
  targetGroups,
  targetLength,
  targetOrigin,
  targetRankAt,
} from "./tensor";
import { commonMultiple, i64At, setI64, setU32, u32At } from "./words";

/** A cell is at least this part of a bucket: 16 KiB of 8 MiB. Smaller tensors go to the members in turn. */
const CELLS_PER_BUCKET: i64 = 512;
const NOWHERE: u32 = 0xffffffff;

/** The groups and cells of the replicas of one target group, made when they are first met. */
// @ts-ignore: decorator
@unmanaged
class Stripes {
  /** Whose they are: the index in the mesh of the first replica. */
  origin: u32;
  groups: u32;
  /** Members of the largest group. */
  largest: u32;
  /** Replicas in group g are `members[pointers[g]]` up to `members[pointers[g + 1]]`. */
  pointers: usize;
  members: usize;
  groupOf: usize;
  /** A byte for each group: a member holds the box at hand on the source side. */
  holds: usize;
  /** The source of that box, and the replicas without it in groups of which a member holds it. */
  heldAt: u32;
  missing: usize;
  missingCount: u32;
  cells: i64;
  slabs: usize;
  lengths: usize;
}

let stripes: Stripes = changetype<Stripes>(0);
let hostGroup: usize = 0;

export function startStripes(): void {
  hostGroup = 0;
  for (let index: u32 = 0; index < patternCount; index++) {
    const one = patternAt(index);
    if (one.striping == DIRECT) continue;
    if (one.striping == HOST && hostGroup == 0) hostGroup = alloc((<usize>world) << 2);
    const made = changetype<Stripes>(alloc(offsetof<Stripes>()));
    const replicas = <usize>changetype<Side>(one.target).replicas;
    made.origin = NOWHERE;
    made.pointers = alloc((replicas + 1) << 2);
    made.members = alloc(replicas << 2);
    made.groupOf = alloc(replicas << 2);
    made.holds = alloc(replicas);
    made.heldAt = NOWHERE;
    made.missing = alloc(replicas << 2);
    made.slabs = alloc(64);
    made.lengths = alloc(64);
    one.stripes = changetype<usize>(made);
  }
}

/** Takes up the stripes of the target group at hand, whose first replica stands at `origin`. */
export function enterStripes(origin: u32): void {
  stripes = changetype<Stripes>(pattern.stripes);
  if (stripes.origin == origin) return;
  // One group of all is the same wherever it stands.
  if (stripes.origin == NOWHERE || pattern.striping == HOST) formGroups(origin);
  stripes.origin = origin;
  stripes.heldAt = NOWHERE;
  stripes.largest = 0;
  for (let group: u32 = 0; group < stripes.groups; group++) {
    stripes.largest = max(stripes.largest, groupSize(group));
  }
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
    : cutGrid(pattern.ndim, stripes.lengths, item, bucketBytes, stripes.largest, least, stripes.slabs);
}

/** Numbers groups by their first replicas; replicas stay in order within a group. */
function formGroups(origin: u32): void {
  const replicas = target.replicas;
  const byHost = pattern.striping == HOST && hosts != 0;
  if (byHost) {
    for (let replica: u32 = 0; replica < replicas; replica++) {
      setU32(hostGroup, hostOf(targetRankAt(origin, replica)), NOWHERE);
    }
  }
  let count: u32 = 0;
  for (let replica: u32 = 0; replica < replicas; replica++) {
    let group: u32 = 0;
    if (byHost) {
      const host = hostOf(targetRankAt(origin, replica));
      group = u32At(hostGroup, host);
      if (group == NOWHERE) {
        group = count;
        setU32(hostGroup, host, group);
      }
    }
    if (group == count) setU32(stripes.pointers, ++count, 0);
    setU32(stripes.groupOf, replica, group);
    setU32(stripes.pointers, group + 1, u32At(stripes.pointers, group + 1) + 1);
  }
  stripes.groups = count;
  setU32(stripes.pointers, 0, 0);
  for (let group: u32 = 0; group < count; group++) {
    setU32(stripes.pointers, group + 1, u32At(stripes.pointers, group + 1) + u32At(stripes.pointers, group));
  }
  // Filled from the back, so that the ends of groups become their beginnings, one group further.
  for (let replica = replicas; replica > 0; replica--) {
    const group = u32At(stripes.groupOf, replica - 1);
    const place = u32At(stripes.pointers, group + 1) - 1;
    setU32(stripes.members, place, replica - 1);
    setU32(stripes.pointers, group + 1, place);
  }
  for (let group: u32 = 0; group < count; group++) {
    setU32(stripes.pointers, group, u32At(stripes.pointers, group + 1));
  }
  setU32(stripes.pointers, count, replicas);
}

/** After how many tensors of a class the rotation over members is where it was, for all target groups. */
export function stripePeriod(): i64 {
  if (pattern.striping == DIRECT) return 1;
  let period: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) setU32(targetGroups, dim, 0);
  do {
    enterStripes(targetOrigin());
    for (let group: u32 = 0; group < stripes.groups; group++) {
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
  return stripes.groups;
}
export function largestGroup(): u32 {
  return stripes.largest;
}
export function groupSize(group: u32): u32 {
  return u32At(stripes.pointers, group + 1) - u32At(stripes.pointers, group);
}
/** The replica that is member `index` of a group. */
export function groupMember(group: u32, index: u32): u32 {
  return u32At(stripes.members, u32At(stripes.pointers, group) + index);
}
export function groupOf(replica: u32): u32 {
  return u32At(stripes.groupOf, replica);
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
 * Marks the groups with a member that holds the box at hand as a source: the others get it from there, or
 * from wherever a direct plan takes it, and there is nothing to be striped.
 */
export function markHolders(origin: u32, targetAt: u32): void {
  if (stripes.heldAt == origin) return;
  stripes.heldAt = origin;
  memory.fill(stripes.holds, 0, stripes.groups);
  for (let replica: u32 = 0; replica < target.replicas; replica++) {
    if (holdsSource(targetRankAt(targetAt, replica))) store<u8>(stripes.holds + groupOf(replica), 1);
  }
  stripes.missingCount = 0;
  for (let replica: u32 = 0; replica < target.replicas; replica++) {
    if (!groupHolds(groupOf(replica)) || holdsSource(targetRankAt(targetAt, replica))) continue;
    setU32(stripes.missing, stripes.missingCount++, replica);
  }
}

export function missingCount(): u32 {
  return stripes.missingCount;
}
export function missingReplica(at: u32): u32 {
  return u32At(stripes.missing, at);
}

export function groupHolds(group: u32): bool {
  return load<u8>(stripes.holds + group) != 0;
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
