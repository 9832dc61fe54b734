/**
 * Shares: which boxes of its source group a rank has to do with, if several ranks hold the same. Senders take turns
 * by a rotation over the items of a box, so that the boxes of a rank are found without a look at those of others: the
 * work follows what is sent.
 */
import { alloc, allocZero, grow } from "./arena";
import { Axis } from "./axis";
import { boxLengths, boxSource, boxTarget } from "./box";
import { cutBox, pieces } from "./cut";
import { bucketBytes, classCount, DIRECT, HOST, hosts, Mesh, patternCount, tensorClass } from "./model";
import { findHost, indexOnHost, nearbyList } from "./nearby";
import { enterBox, rotationOf } from "./route";
import { sortByKey } from "./sort";
import { groupCount, largestGroup, startParts } from "./stripe";
import {
  enterTarget,
  hostOf,
  overlapAt,
  pattern,
  source,
  sourceContribution,
  sourceGroups,
  sourceOrigin,
  sourceRankAt,
  sourceReplica,
  target,
  targetGroups,
  targetOrigin,
  tensor,
} from "./tensor";
import { endNear, firstNear, rankNear, startWants, wantsNear } from "./wants";
import { i64At, setI64, setU32, u32At } from "./words";

/** How many items the boxes of a source group have. */
// @ts-ignore: decorator
@unmanaged
class Items {
  boxes: i64;
  /** The most items of a box. */
  most: i64;
  /** The most members of a group of replicas that shares a box by stripes. */
  largest: u32;
  /** Distinct numbers of items, ascending. */
  distinct: u32;
  values: usize;
  /** For more than one: the place among `values` of each box, and the boxes of each value, in order. */
  valueOf: usize;
  pointers: usize;
  list: usize;
}

/** The items of each group, for each pattern, or for each class if groups of replicas differ from one to the next. */
let tables: usize = 0;

export function startShares(): void {
  tables = 0;
  startWants();
  memory.fill(choices, 0, 32);
}

/** All boxes were found, in turns that come to each of them. */
let hasAll: bool = false;
/** The boxes that were found, ascending. */
export let found: u32 = 0;
let boxList: usize = 0;
let boxKeys: usize = 0;
let capacity: u32 = 0;
const at: usize = memory.data(32, 8);
const choices: usize = memory.data(32, 8);
const choiceCounts: usize = memory.data(32, 8);

export function foundBox(index: u32): i64 {
  return i64At(boxKeys, u32At(boxList, index));
}

function start(): void {
  if (tables == 0) {
    tables = allocZero((<usize>(patternCount + classCount)) << 2);
    capacity = 64;
    boxList = alloc(64 << 2);
    boxKeys = alloc(64 << 3);
  }
  found = 0;
  hasAll = false;
}

function add(box: i64): void {
  if (found == capacity) {
    boxList = grow(boxList, (<usize>capacity) << 2);
    boxKeys = grow(boxKeys, (<usize>capacity) << 3);
    capacity <<= 1;
  }
  setU32(boxList, found, found);
  setI64(boxKeys, found++, box);
}

/** Sorts what was found, and drops what was found twice. */
function finish(): void {
  sortByKey(boxList, found, boxKeys);
  let kept: u32 = 0;
  for (let index: u32 = 0; index < found; index++) {
    if (kept > 0 && foundBox(index) == foundBox(kept - 1)) continue;
    setU32(boxList, kept++, u32At(boxList, index));
  }
  found = kept;
}

/** True if several ranks hold the same of the tensor at hand, so that `findOwn` tells what is whose. */
export function isShared(): bool {
  return source.replicas > 1;
}

/**
 * Finds the boxes, of the `boxes` of the source group at hand, that `rank` may send from: all that it does, and few
 * others. With `contributions` also those with which it contributes to what others of its replica own.
 */
export function findOwn(rank: u32, boxes: i64, contributions: bool): void {
  start();
  enterBox(0, boxes);
  const items = itemsOf(boxes);
  const replica = sourceReplica;
  if (source.contributions > 1) {
    const row = replica * source.contributions;
    const first = contributions ? row : row + sourceContribution;
    addTurns(
      items,
      source.replicas * source.contributions,
      first,
      contributions ? source.contributions : 1,
      0,
    );
    if (!hasAll) addOwned(rank, items, contributions);
    finish();
    return;
  }
  // A group that holds the box itself is served member by member, by items beyond the last.
  const beyond = pattern.striping != DIRECT && pattern.meeting ? items.largest : 0;
  addTurns(items, source.replicas, replica, 1, beyond);
  if (pattern.meeting && enterTarget(rank)) addWanted();
  if (hosts != 0) addNear(rank, items, replica, beyond);
  finish();
}

/**
 * Adds the boxes that the rank (with `contributions` any rank of its replica) may own, since it or a rank on its host
 * wants them.
 */
function addOwned(rank: u32, items: Items, contributions: bool): void {
  if (!contributions) {
    addOwnedBy(rank, items, sourceContribution);
    return;
  }
  const origin = sourceOrigin();
  for (let position: u32 = 0; position < source.contributions; position++) {
    addOwnedBy(sourceRankAt(origin, sourceReplica, position), items, position);
  }
}

function addOwnedBy(rank: u32, items: Items, position: u32): void {
  if (pattern.meeting && enterTarget(rank)) addWanted();
  if (hosts == 0) return;
  const origin = sourceOrigin();
  const nearby = nearbyList(source, origin);
  // If all holders are near, they take turns as if none were.
  if (findHost(nearby, hostOf(rank)) == source.replicas * source.contributions) return;
  const wants = wantsNear(rank, origin);
  addWantedBy(wants.spread, wants.spreadCount);
  // Whoever is on no other host is served by the holders of this one, in turns.
  const near: i64 = findHost(nearby, hostOf(rank));
  const groups: i64 = changetype<Mesh>(target.mesh).size / target.replicas;
  if (wants.aloneCount * near <= groups * min(items.most, near)) addWantedBy(wants.alone, wants.aloneCount);
  else addTurns(items, near, indexOnHost(nearby, sourceReplica * source.contributions + position), 1, 0);
}

function addWantedBy(ranks: usize, count: u32): void {
  for (let index: u32 = 0; index < count; index++) {
    if (enterTarget(u32At(ranks, index))) addWanted();
  }
}

function addWantedNear(rank: u32): void {
  const end = endNear(rank);
  for (let place = firstNear(rank); place < end; place++) {
    if (enterTarget(rankNear(place))) addWanted();
  }
}

/** Boxes of targets on the rank's own host, which its sources serve. */
function addNear(rank: u32, items: Items, replica: u32, beyond: u32): void {
  const nearby = nearbyList(source, sourceOrigin());
  const near = findHost(nearby, hostOf(rank));
  if (near == source.replicas) return;
  const index = indexOnHost(nearby, replica);
  const ranks: i64 = endNear(rank) - firstNear(rank);
  // By the ranks of the host, or by turns among its sources, whichever finds less that is not wanted.
  if (ranks * near < <i64>changetype<Mesh>(target.mesh).size) addWantedNear(rank);
  else addTurns(items, near, index, 1, beyond);
}

/**
 * Adds the boxes of the source group at hand that the target groups at hand want: for each dimension the segments of
 * both, then all combinations.
 */
function addWanted(): void {
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
    add(box);
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

/**
 * Adds the boxes of which one of `width` senders from `first` on, of a rotation over `senders`, has an item; `beyond`
 * items follow the last one. Box b of v items begins at `rotationOf(v) + b · v`, so these boxes lie in windows.
 */
function addTurns(items: Items, senders: i64, first: i64, width: i64, beyond: i64): void {
  for (let value: u32 = 0; value < items.distinct; value++) {
    const each = i64At(items.values, value);
    const window = each + beyond + width - 1;
    if (window >= senders) {
      addAll(items, value);
      continue;
    }
    const begin = rotationOf(each, senders) - first + each + beyond - 1;
    const origin = ((begin % senders) + senders) % senders;
    const own =
      items.distinct == 1 ? items.boxes : u32At(items.pointers, value + 1) - u32At(items.pointers, value);
    if (items.distinct == 1 || (items.boxes * each) / senders + 1 < own) {
      addWindows(items, value, senders, each, origin, window);
    } else {
      for (let place = u32At(items.pointers, value); place < u32At(items.pointers, value + 1); place++) {
        const box: i64 = u32At(items.list, place);
        if ((origin + (box % senders) * each) % senders < window) add(box);
      }
    }
  }
}

function addAll(items: Items, value: u32): void {
  if (items.distinct == 1) {
    hasAll = true;
    for (let box: i64 = 0; box < items.boxes; box++) add(box);
    return;
  }
  for (let place = u32At(items.pointers, value); place < u32At(items.pointers, value + 1); place++) {
    add(u32At(items.list, place));
  }
}

/** Adds the boxes b of a value for which `origin + b · each`, modulo `senders`, is below `window`. */
function addWindows(items: Items, value: u32, senders: i64, each: i64, origin: i64, window: i64): void {
  const end = origin + (items.boxes - 1) * each;
  for (let turn: i64 = 0; turn <= end; turn += senders) {
    const low = turn <= origin ? 0 : (turn - origin + each - 1) / each;
    const last = turn + window - 1;
    if (last < origin) continue;
    const high = min((last - origin) / each, items.boxes - 1);
    for (let box = low; box <= high; box++) {
      if (items.distinct == 1 || u32At(items.valueOf, <u32>box) == value) add(box);
    }
  }
}

/** The items of the boxes of the source group at hand, made once. */
function itemsOf(boxes: i64): Items {
  const isOfClass = pattern.striping == HOST;
  const slot = isOfClass ? patternCount + tensorClass(tensor) : pattern.index;
  let groups: u32 = 1;
  let group: u32 = 0;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const count = changetype<Axis>(u32At(source.axes, dim)).groups;
    group = group * count + u32At(sourceGroups, dim);
    groups *= count;
  }
  let table = <usize>u32At(tables, slot);
  if (table == 0) {
    table = allocZero((<usize>groups) << 2);
    setU32(tables, slot, <u32>table);
  }
  let items = <usize>u32At(table, group);
  if (items == 0) {
    items = changetype<usize>(countItems(boxes));
    setU32(table, group, <u32>items);
  }
  return changetype<Items>(items);
}

function countItems(boxes: i64): Items {
  const items = changetype<Items>(alloc(offsetof<Items>()));
  const counts = alloc((<usize>boxes) << 3);
  items.boxes = boxes;
  items.largest = 0;
  items.most = 0;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) setU32(at, dim, 0);
  let isEven = true;
  for (let box: i64 = 0; box < boxes; box++) {
    placeAt();
    setI64(counts, <u32>box, itemsOfBox());
    items.most = max(items.most, i64At(counts, <u32>box));
    if (pattern.striping != DIRECT) items.largest = max(items.largest, largestGroup());
    if (box > 0 && i64At(counts, <u32>box) != i64At(counts, 0)) isEven = false;
    step();
  }
  if (isEven) {
    items.distinct = min(<u32>boxes, 1);
    items.values = counts;
    return items;
  }
  const order = alloc((<usize>boxes) << 2);
  for (let box: u32 = 0; box < <u32>boxes; box++) setU32(order, box, box);
  sortByKey(order, <u32>boxes, counts);
  items.list = order;
  items.valueOf = alloc((<usize>boxes) << 2);
  items.values = alloc((<usize>boxes) << 3);
  items.pointers = alloc((<usize>boxes + 1) << 2);
  items.distinct = 0;
  for (let place: u32 = 0; place < <u32>boxes; place++) {
    const count = i64At(counts, u32At(order, place));
    if (place == 0 || i64At(items.values, items.distinct - 1) != count) {
      setU32(items.pointers, items.distinct, place);
      setI64(items.values, items.distinct++, count);
    }
    setU32(items.valueOf, u32At(order, place), items.distinct - 1);
  }
  setU32(items.pointers, items.distinct, <u32>boxes);
  return items;
}

/** The box at hand is the one of the segments that `at` counts in the source group. */
function placeAt(): void {
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const overlap = overlapAt(dim);
    const segment = u32At(overlap.sourcePointers, u32At(sourceGroups, dim)) + u32At(at, dim);
    setU32(targetGroups, dim, u32At(overlap.targetGroup, segment));
    setI64(boxLengths, dim, i64At(overlap.lengths, segment));
    setI64(boxSource, dim, i64At(overlap.sourceLocal, segment));
    setI64(boxTarget, dim, i64At(overlap.targetLocal, segment));
  }
}

function step(): void {
  for (let dim = pattern.ndim; dim > 0; dim--) {
    const pointers = overlapAt(dim - 1).sourcePointers;
    const group = u32At(sourceGroups, dim - 1);
    const next = u32At(at, dim - 1) + 1;
    const more = next < u32At(pointers, group + 1) - u32At(pointers, group);
    setU32(at, dim - 1, more ? next : 0);
    if (more) return;
  }
}

/** What the senders of the box at hand take in turns; what owners do, for a source that is partial. */
function itemsOfBox(): i64 {
  const holders: i64 = source.replicas * source.contributions;
  if (pattern.striping != DIRECT) {
    const parts = startParts(targetOrigin(), holders);
    return source.contributions > 1 ? parts : parts * groupCount();
  }
  cutBox(pattern.ndim, boxLengths, pattern.cutItem, bucketBytes, holders);
  return source.contributions > 1 ? pieces : pieces * target.replicas;
}
