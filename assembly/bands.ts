/**
 * Bands: holders of one part that take turns at what some targets want, such as those of a host at what is wanted there. Who
 * takes what is the same for all tensors of a class but for where the rotation begins, so it is listed once, by turns, and
 * each holder finds its own boxes without a look at those of the others.
 */
import { alloc, allocZero, grow } from "./arena";
import { addBox, addWanted, found, takeBack } from "./boxes";
import { enterHolders, holderCount } from "./holders";
import { Items, valueOf } from "./items";
import { DIRECT, HOST, tensorClass } from "./model";
import { findHost, foundEnd, foundFirst, holderAt, nearbyList } from "./nearby";
import { listOwners, ownerEntry, ownersOfBox, rotationOf } from "./route";
import { sortByKey } from "./sort";
import { enterGroupHolders, enterStripes, groupCount, groupHolds, groupOf, groupSize } from "./stripe";
import {
  enterTarget,
  hostOf,
  pattern,
  source,
  sourceOrigin,
  target,
  targetOrigin,
  targetReplica,
  tensor,
} from "./tensor";
import { i64At, setI64, setU32, u32At } from "./words";

/** Whom a band serves: those of its host; those that stand on its host alone; or those that stand on the same few hosts. */
export const NEAR: u32 = 0;
export const ALONE: u32 = 1;
export const SPREAD: u32 = 2;

// @ts-ignore: decorator
@unmanaged
class Band {
  /** Whose it is, and its host; of a spread one the least origin of its targets. */
  ofClass: u32;
  sourceAt: u32;
  kind: u32;
  id: u32;
  /** What was spent without a list. */
  spent: i64;
  /** How many take turns; their entries (`listOwners` of `route.ts`), ascending, if they are on several hosts. */
  senders: i64;
  entries: usize;
  /** Turns, sorted by the place of a box's items among `values` and the turn modulo the senders; 0: they were not listed. */
  keys: usize;
  order: usize;
  boxes: usize;
  count: u32;
  next: usize;
}

let heads: usize = 0;
let mask: u32 = 0;
let bands: u32 = 0;

export function startBands(): void {
  heads = 0;
}

/** The band of the tensor at hand, from the holders of the source groups at hand. */
export function bandOf(kind: u32, id: u32): Band {
  if (heads == 0) {
    mask = 255;
    bands = 0;
    heads = allocZero(256 << 2);
  }
  const ofClass = tensorClass(tensor);
  const sourceAt = sourceOrigin();
  for (let at = u32At(heads, slotOf(ofClass, sourceAt, kind, id)); at != 0; ) {
    const band = changetype<Band>(at);
    if (band.ofClass == ofClass && band.sourceAt == sourceAt && band.kind == kind && band.id == id)
      return band;
    at = <u32>band.next;
  }
  if (bands > mask) widen();
  const made = changetype<Band>(allocZero(offsetof<Band>()));
  made.ofClass = ofClass;
  made.sourceAt = sourceAt;
  made.kind = kind;
  made.id = id;
  put(made);
  bands++;
  return made;
}

function slotOf(ofClass: u32, sourceAt: u32, kind: u32, id: u32): u32 {
  let hash = (ofClass * 0x9e3779b1) ^ (sourceAt * 0x85ebca6b) ^ (id * 0xc2b2ae35) ^ kind;
  hash = (hash ^ (hash >> 15)) * 0x27d4eb2f;
  return (hash ^ (hash >> 13)) & mask;
}

function put(band: Band): void {
  const slot = slotOf(band.ofClass, band.sourceAt, band.kind, band.id);
  band.next = u32At(heads, slot);
  setU32(heads, slot, <u32>changetype<usize>(band));
}

function widen(): void {
  const old = heads;
  const slots = mask + 1;
  mask = slots * 4 - 1;
  heads = allocZero((<usize>slots) << 4);
  for (let slot: u32 = 0; slot < slots; slot++) {
    for (let at = u32At(old, slot); at != 0; ) {
      const band = changetype<Band>(at);
      at = <u32>band.next;
      put(band);
    }
  }
}

let capacity: u32 = 0;

/**
 * Lists the turns of a band at what the parts of `count` target ranks want: of `senders` holders, or of the owners of a spread
 * one. The target groups at hand are others afterwards.
 */
export function listTurns(band: Band, ranks: usize, count: u32, senders: i64, items: Items, host: u32): void {
  band.senders = senders;
  band.count = 0;
  capacity = 64;
  band.keys = alloc(64 << 3);
  band.boxes = alloc(64 << 3);
  for (let index: u32 = 0; index < count; index++) {
    if (!enterTarget(u32At(ranks, index)) || isOwned(band.kind)) continue;
    const before = found;
    addWanted();
    if (found == before) continue;
    if (band.kind == SPREAD && band.entries == 0) listOwnersOf(band);
    for (let box = takeBack(before); box >= 0; box = takeBack(before)) {
      if (band.kind == NEAR) addItemsNear(band, items, box, host);
      else addItems(band, items, box, 0, eachOf(items, box), 1);
    }
  }
  band.order = alloc((<usize>band.count) << 2);
  for (let at: u32 = 0; at < band.count; at++) setU32(band.order, at, at);
  sortByKey(band.order, band.count, band.keys);
}

/** True if holders want what the target groups at hand want: these own it, and look for it by what they want. */
function isOwned(kind: u32): bool {
  if (kind == NEAR || !pattern.meeting) return false;
  enterHolders(sourceOrigin(), targetOrigin());
  return holderCount > 0;
}

/** The owners of what the target groups at hand want. */
function listOwnersOf(band: Band): void {
  listOwners(sourceOrigin(), targetOrigin());
  band.senders = ownersOfBox();
  band.entries = alloc((<usize>band.senders) << 2);
  for (let index: u32 = 0; index < <u32>band.senders; index++) {
    setU32(band.entries, index, ownerEntry(index));
  }
}

function eachOf(items: Items, box: i64): i64 {
  return i64At(items.values, valueOf(items, box));
}

/** The items of a box for the replicas of the target groups at hand that stand on a host. */
function addItemsNear(band: Band, items: Items, box: i64, host: u32): void {
  const each = eachOf(items, box);
  const at = targetOrigin();
  if (pattern.striping != DIRECT) {
    enterStripes(at);
    const groups = groupCount();
    const group = pattern.striping == HOST ? groupOf(targetReplica) : 0;
    addItems(band, items, box, group, each / groups, groups);
    if (!pattern.meeting) return;
    enterGroupHolders(at);
    if (!groupHolds(group)) return;
    // Its members are served one by one, by items that count on.
    const members = groupSize(group);
    for (let index: u32 = 1; index < members; index++) {
      addItems(band, items, box, group + index, each / groups, groups);
      if (<i64>index >= band.senders) break;
    }
    return;
  }
  const list = nearbyList(target, at);
  findHost(list, host);
  const end = foundEnd;
  for (let place = foundFirst; place < end; place++) {
    addItems(band, items, box, holderAt(list, place), each / target.replicas, target.replicas);
  }
}

function addItems(band: Band, items: Items, box: i64, first: i64, count: i64, step: i64): void {
  const senders = band.senders;
  const value = (<i64>valueOf(items, box)) << 32;
  let turn = ((box % senders) * (eachOf(items, box) % senders) + first) % senders;
  for (let index: i64 = 0; index < min(count, senders); index++) {
    if (band.count == capacity) {
      band.keys = grow(band.keys, (<usize>capacity) << 3);
      band.boxes = grow(band.boxes, (<usize>capacity) << 3);
      capacity <<= 1;
    }
    setI64(band.keys, band.count, value | turn);
    setI64(band.boxes, band.count++, box);
    turn = (turn + step) % senders;
  }
}

/** Says where a holder's entry stands among those of a band of several hosts; -1 if it is none of them. */
export function placeIn(band: Band, entry: u32): i64 {
  let low: u32 = 0;
  let high: u32 = band.entries == 0 ? 0 : <u32>band.senders;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (u32At(band.entries, middle) < entry) low = middle + 1;
    else high = middle;
  }
  return band.entries != 0 && low < <u32>band.senders && u32At(band.entries, low) == entry ? low : -1;
}

/** Adds the boxes of which the holder at a place of the band has an item. */
export function addTurnsOf(band: Band, place: i64, items: Items): void {
  const senders = band.senders;
  for (let value: u32 = 0; value < items.distinct; value++) {
    const rest = (place - rotationOf(i64At(items.values, value), senders)) % senders;
    const key = ((<i64>value) << 32) | (rest < 0 ? rest + senders : rest);
    let low: u32 = 0;
    let high = band.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (i64At(band.keys, u32At(band.order, middle)) < key) low = middle + 1;
      else high = middle;
    }
    for (; low < band.count && i64At(band.keys, u32At(band.order, low)) == key; low++) {
      addBox(i64At(band.boxes, u32At(band.order, low)));
    }
  }
}
