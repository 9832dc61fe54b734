/** How many items the boxes of a source group have: what its senders take in turns. Counted once. */
import { alloc, allocZero } from "./arena";
import { Axis } from "./axis";
import { boxLengths, boxSource, boxTarget } from "./box";
import { cutBox, pieces } from "./cut";
import { bucketBytes, classCount, DIRECT, HOST, patternCount, tensorClass } from "./model";
import { sortByKey } from "./sort";
import { groupCount, largestGroup, startParts } from "./stripe";
import {
  overlapAt,
  pattern,
  source,
  sourceGroups,
  target,
  targetGroups,
  targetOrigin,
  tensor,
} from "./tensor";
import { i64At, setI64, setU32, u32At } from "./words";

/** How many items the boxes of a source group have. */
// @ts-ignore: decorator
@unmanaged
export class Items {
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
const at: usize = memory.data(32, 8);

export function startItems(): void {
  tables = 0;
}

/** The items of the boxes of the source group at hand, made once. */
export function itemsOf(boxes: i64): Items {
  const isOfClass = pattern.striping == HOST;
  const slot = isOfClass ? patternCount + tensorClass(tensor) : pattern.index;
  let groups: u32 = 1;
  let group: u32 = 0;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const count = changetype<Axis>(u32At(source.axes, dim)).groups;
    group = group * count + u32At(sourceGroups, dim);
    groups *= count;
  }
  if (tables == 0) tables = allocZero((<usize>(patternCount + classCount)) << 2);
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

/** Says which of `values` a box has, by its number. */
export function valueOf(items: Items, box: i64): u32 {
  return items.distinct == 1 ? 0 : u32At(items.valueOf, <u32>box);
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
