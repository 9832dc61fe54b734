/**
 * Route: who sends a piece, and who owns a partial one. Rotations in closed form over the tensor's ordinal,
 * the box, the piece and the target's replica, so that any rank can work out its own part alone, and both
 * ends agree.
 */
import { hosts, patternAt, patternCount, Side } from "./model";
import { alloc } from "./arena";
import { enterHolders, holderCount, holderEntries } from "./holders";
import {
  countNear,
  findHost,
  foundEnd,
  foundFirst,
  holderAt,
  holdersFrom,
  hostCount,
  listedHost,
  nearbyList,
  nearHosts,
} from "./nearby";
import { holdsSource, hostOf, ordinal, pattern, source, sourceRankAt, target } from "./tensor";
import { commonDivisor, setU32, u32At } from "./words";

/** The ranks that may own the pieces of a box of a pattern: the same for all that go from the same holders to the same. */
// @ts-ignore: decorator
@unmanaged
class Owners {
  sourceAt: u32;
  targetAt: u32;
  count: u32;
  /** Their entries stand here: in `list`, if they are on several hosts. */
  entries: usize;
  list: usize;
}

const NOWHERE: u32 = 0xffffffff;
let ownersOf: usize = 0;
let owners: usize = 0;
let ownerCount: u32 = 0;
/** All holders own pieces: `owners` was not filled in, since entry i is i. */
let allOwn: bool = false;

export function startRoutes(): void {
  ownersOf = alloc((<usize>patternCount) << 2);
  for (let index: u32 = 0; index < patternCount; index++) {
    const one = changetype<Side>(patternAt(index).source);
    setU32(ownersOf, index, 0);
    if (one.contributions == 1) continue;
    const made = changetype<Owners>(alloc(offsetof<Owners>()));
    made.sourceAt = NOWHERE;
    made.list = alloc((<usize>(one.replicas * one.contributions)) << 2);
    setU32(ownersOf, index, <u32>changetype<usize>(made));
  }
}

/** The box at hand: its number among the boxes of its source group, and how many those are. */
let box: i64 = 0;
let boxes: i64 = 1;
export function enterBox(number: i64, count: i64): void {
  box = number;
  boxes = count;
}

/** Says where the rotation over the members of a group of stripes begins: nowhere special if all get equally many. */
export function stripeRotation(cells: i64, members: i64): i64 {
  if (members == 1 || cells % members == 0) return 0;
  return (<i64>pattern.index + (ordinal % members) * hop(cells % members, members)) % members;
}

let cachedItems: i64 = -1;
let cachedSenders: i64 = -1;
let cachedHop: i64 = 0;

/**
 * How far the rotation moves from one tensor of a pattern to the next: as many places as a tensor has items,
 * so that tensors continue where the last one ended; and prime to the senders, so that any item visits all of
 * them.
 */
function hop(items: i64, senders: i64): i64 {
  if (items == cachedItems && senders == cachedSenders) return cachedHop;
  let step = max<i64>(items % senders, 1);
  while (senders > 1 && commonDivisor(step, senders) != 1) step++;
  cachedItems = items;
  cachedSenders = senders;
  cachedHop = step;
  return step;
}

/** Says where the rotation of the box at hand, of so many items, begins; its item i is `(start + i) mod senders`. */
export function rotation(items: i64, senders: i64): i64 {
  return (rotationOf(items, senders) + (box % senders) * (items % senders)) % senders;
}

/** Says where the rotation of the first box of the source group begins. */
export function rotationOf(items: i64, senders: i64): i64 {
  const step = hop(((boxes % senders) * (items % senders)) % senders, senders);
  return (<i64>pattern.index + (ordinal % senders) * step) % senders;
}

/** The rank that sends item `item` of the box at hand to a target rank. Sources without Partial only. */
export function senderOf(origin: u32, item: i64, items: i64, rank: u32): u32 {
  if (pattern.meeting && holdsSource(rank)) return rank;
  const senders = source.replicas;
  if (senders == 1) return sourceRankAt(origin, 0, 0);
  if (hosts != 0) {
    const nearby = nearbyList(source, origin);
    const near = findHost(nearby, hostOf(rank));
    if (near > 0) {
      const place = foundFirst + <u32>((rotation(items, near) + item) % near);
      return sourceRankAt(origin, holderAt(nearby, place), 0);
    }
  }
  return sourceRankAt(origin, <u32>((rotation(items, senders) + item) % senders), 0);
}

/**
 * Lists who may own the pieces of the box at hand: holders that want it themselves, else those on a host of a
 * target, else all holders, by (replica, contribution). An entry is replica · contributions + contribution.
 */
export function listOwners(sourceAt: u32, targetAt: u32): void {
  const holders = source.replicas * source.contributions;
  if (pattern.meeting) {
    enterHolders(sourceAt, targetAt);
    if (holderCount > 0) {
      owners = holderEntries;
      ownerCount = holderCount;
      allOwn = false;
      return;
    }
  }
  const known = changetype<Owners>(u32At(ownersOf, pattern.index));
  if (known.sourceAt == sourceAt && known.targetAt == targetAt) {
    owners = known.entries;
    ownerCount = known.count;
    allOwn = ownerCount == 0;
    if (allOwn) ownerCount = holders;
    return;
  }
  ownerCount = 0;
  owners = known.list;
  if (hosts != 0) listNearTargets(sourceAt, targetAt, holders);
  known.sourceAt = sourceAt;
  known.targetAt = targetAt;
  known.count = ownerCount;
  known.entries = owners;
  allOwn = ownerCount == 0;
  if (allOwn) ownerCount = holders;
}

/** Holders on a host of a target; none are listed if all of them are. */
function listNearTargets(sourceAt: u32, targetAt: u32, holders: u32): void {
  const all = nearbyList(source, sourceAt);
  const targets = nearbyList(target, targetAt);
  const near = countNear(all, targets);
  if (near == holders) return;
  if (nearHosts == 1) {
    owners = holdersFrom(all, foundFirst);
    ownerCount = near;
    return;
  }
  for (let index: u32 = 0; index < hostCount(targets); index++) {
    if (findHost(all, listedHost(targets, index)) == 0) continue;
    for (let place = foundFirst; place < foundEnd; place++)
      setU32(owners, ownerCount++, holderAt(all, place));
  }
  sortEntries();
}

/** Sorts the owners ascending: heaps of their numbers, in place. */
function sortEntries(): void {
  for (let half = ownerCount >> 1; half > 0; half--) sink(half - 1, ownerCount);
  for (let end = ownerCount; end > 1; end--) {
    const last = u32At(owners, end - 1);
    setU32(owners, end - 1, u32At(owners, 0));
    setU32(owners, 0, last);
    sink(0, end - 1);
  }
}

function sink(from: u32, end: u32): void {
  let at = from;
  for (let below = at * 2 + 1; below < end; below = at * 2 + 1) {
    if (below + 1 < end && u32At(owners, below + 1) > u32At(owners, below)) below++;
    const value = u32At(owners, at);
    if (value >= u32At(owners, below)) return;
    setU32(owners, at, u32At(owners, below));
    setU32(owners, below, value);
    at = below;
  }
}

/** How many may own the pieces of the box at hand, and the entry of each. */
export function ownersOfBox(): u32 {
  return ownerCount;
}
export function ownerEntry(index: u32): u32 {
  return allOwn ? index : u32At(owners, index);
}

/** The entry (see `listOwners`) that owns a piece of the box at hand; `start` is `ownerRotation()`. */
export function ownerOf(start: i64, piece: i64): u32 {
  return ownerEntry(<u32>((start + piece) % ownerCount));
}

export function ownerRotation(pieces: i64): i64 {
  return rotation(pieces, ownerCount);
}

export function ownerRank(origin: u32, entry: u32): u32 {
  return sourceRankAt(origin, entry / source.contributions, entry % source.contributions);
}
