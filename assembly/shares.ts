/**
 * Shares: which boxes of its source group a rank has to do with, if several ranks hold the same. Senders take turns
 * by a rotation over the items of a box, so that the boxes of a rank are found without a look at those of others: the
 * work follows what is sent.
 */
import { ALONE, addTurnsOf, bandOf, listTurns, NEAR, placeIn, SPREAD, startBands } from "./bands";
import { addBox, addWanted, finishBoxes, openBoxes, startBoxes } from "./boxes";
import { Items, itemsOf, startItems } from "./items";
import { DIRECT, hosts } from "./model";
import { findHost, indexOnHost, nearbyList } from "./nearby";
import { enterBox, rotationOf } from "./route";
import {
  enterTarget,
  hostOf,
  pattern,
  source,
  sourceContribution,
  sourceOrigin,
  sourceRankAt,
  sourceReplica,
} from "./tensor";
import { startWants, wantsNear } from "./wants";
import { i64At, NONE, u32At } from "./words";

export function startShares(): void {
  startItems();
  startBands();
  startWants();
  openBoxes();
}

/** All boxes were found, in turns that come to each of them. */
let hasAll: bool = false;

/** True if several ranks hold the same of the tensor at hand, so that `findOwn` tells what is whose. */
export function isShared(): bool {
  return source.replicas > 1;
}

/**
 * Finds the boxes, of the `boxes` of the source group at hand, that `rank` may send from: all that it does, and few
 * others. With `contributions` also those with which it contributes to what others of its replica own.
 */
export function findOwn(rank: u32, boxes: i64, contributions: bool): void {
  startBoxes();
  hasAll = false;
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
    finishBoxes();
    return;
  }
  // A group that holds the box itself is served member by member, by items beyond the last.
  const beyond = pattern.striping != DIRECT && pattern.meeting ? items.largest : 0;
  addTurns(items, source.replicas, replica, 1, beyond);
  if (pattern.meeting && enterTarget(rank)) addWanted();
  if (hosts != 0) addNear(rank, items, replica, beyond);
  finishBoxes();
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
  const nearby = nearbyList(source, sourceOrigin());
  const holders = source.replicas * source.contributions;
  // If all holders are near, they take turns as if none were.
  if (findHost(nearby, hostOf(rank)) == holders) return;
  const entry = sourceReplica * source.contributions + position;
  const wants = wantsNear(rank);
  for (let index: u32 = 0; index < wants.spreadCount; index++) {
    const first = u32At(wants.spreadFirst, index);
    const count = u32At(wants.spreadFirst, index + 1) - first;
    const ranks = wants.ranks + ((<usize>first) << 2);
    addServed(rank, SPREAD, u32At(wants.spreadIds, index), ranks, count, holders, entry, items, 0);
  }
  // Whoever is on no other host is served by the holders of this one, in turns.
  const near: i64 = findHost(nearby, hostOf(rank));
  addServed(
    rank,
    ALONE,
    hostOf(rank),
    wants.ranks,
    wants.aloneCount,
    near,
    indexOnHost(nearby, entry),
    items,
    0,
  );
}

/** Boxes of targets on the rank's own host, which its sources serve. */
function addNear(rank: u32, items: Items, replica: u32, beyond: u32): void {
  const nearby = nearbyList(source, sourceOrigin());
  const near = findHost(nearby, hostOf(rank));
  if (near == source.replicas) return;
  const index = indexOnHost(nearby, replica);
  const wants = wantsNear(rank);
  addServed(rank, NEAR, hostOf(rank), wants.ranks, wants.count, near, index, items, beyond);
}

/**
 * Adds boxes that `count` targets want which holders of a band serve in turns, among them `rank`: by its place, or its entry if
 * the band is spread. All that they want is looked at, or all boxes of the rank's turns, until listing the turns costs no more.
 */
function addServed(
  rank: u32,
  kind: u32,
  id: u32,
  ranks: usize,
  count: u32,
  senders: i64,
  place: i64,
  items: Items,
  beyond: i64,
): void {
  if (count == 0) return;
  if (id == NONE) {
    addWantedBy(ranks, count);
    return;
  }
  const band = bandOf(kind, id);
  if (band.keys == 0) {
    const turns = min(items.boxes, items.distinct + (items.boxes * (items.most + beyond)) / senders);
    const isByTurns = kind != SPREAD && turns < <i64>count;
    band.spent += isByTurns ? turns : <i64>count;
    if (band.spent <= <i64>count * min(items.most + beyond, senders)) {
      if (isByTurns) addTurns(items, senders, place, 1, beyond);
      else addWantedBy(ranks, count);
      return;
    }
    listTurns(band, ranks, count, senders, items, hostOf(rank));
  }
  const at = kind == SPREAD ? placeIn(band, <u32>place) : place;
  if (at >= 0) addTurnsOf(band, at, items);
}

function addWantedBy(ranks: usize, count: u32): void {
  for (let index: u32 = 0; index < count; index++) {
    if (enterTarget(u32At(ranks, index))) addWanted();
  }
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
        if ((origin + (box % senders) * each) % senders < window) addBox(box);
      }
    }
  }
}

function addAll(items: Items, value: u32): void {
  if (items.distinct == 1) {
    hasAll = true;
    for (let box: i64 = 0; box < items.boxes; box++) addBox(box);
    return;
  }
  for (let place = u32At(items.pointers, value); place < u32At(items.pointers, value + 1); place++) {
    addBox(u32At(items.list, place));
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
      if (items.distinct == 1 || u32At(items.valueOf, <u32>box) == value) addBox(box);
    }
  }
}
