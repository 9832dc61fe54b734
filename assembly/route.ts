/**
 * Route: who sends a piece, and who owns a partial one. Rotations in closed form over the tensor's ordinal,
 * the box, the piece and the target's replica, so that any rank can work out its own part alone, and both
 * ends agree.
 */
import { hosts, holdersMost } from "./model";
import { alloc } from "./arena";
import {
  foundContribution,
  foundReplica,
  holdsSource,
  hostOf,
  ordinal,
  pattern,
  source,
  sourceRankAt,
  target,
  targetRankAt,
  wantsTarget,
} from "./tensor";
import { commonDivisor, setU32, u32At } from "./words";

let owners: usize = 0;
let ownerCount: u32 = 0;
/** All holders own pieces: `owners` was not filled in, since entry i is i. */
let allOwn: bool = false;

export function startRoutes(): void {
  owners = alloc(<usize>holdersMost << 2);
}

/** The box at hand: its number among the boxes of its source group, and how many those are. */
let box: i64 = 0;
let boxes: i64 = 1;
export function enterBox(number: i64, count: i64): void {
  box = number;
  boxes = count;
}

/** Where the rotation over the members of a group of stripes begins: nowhere special if all get equally many. */
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

/** Where the rotation of the box at hand, of so many items, begins; its item i is `(start + i) mod senders`. */
export function rotation(items: i64, senders: i64): i64 {
  const step = hop(((boxes % senders) * (items % senders)) % senders, senders);
  return (<i64>pattern.index + (ordinal % senders) * step + (box % senders) * (items % senders)) % senders;
}

/** The rank that sends item `item` of the box at hand to a target rank. Sources without Partial only. */
export function senderOf(origin: u32, item: i64, items: i64, rank: u32): u32 {
  if (pattern.meeting && holdsSource(rank)) return rank;
  const senders = source.replicas;
  if (senders == 1) return sourceRankAt(origin, 0, 0);
  if (hosts != 0) {
    const near = countOnHost(origin, hostOf(rank));
    if (near > 0) {
      const at = <u32>((rotation(items, near) + item) % near);
      return nthOnHost(origin, hostOf(rank), at);
    }
  }
  return sourceRankAt(origin, <u32>((rotation(items, senders) + item) % senders), 0);
}

function countOnHost(origin: u32, host: u32): u32 {
  let count: u32 = 0;
  for (let replica: u32 = 0; replica < source.replicas; replica++) {
    if (hostOf(sourceRankAt(origin, replica, 0)) == host) count++;
  }
  return count;
}

function nthOnHost(origin: u32, host: u32, index: u32): u32 {
  let left = index;
  for (let replica: u32 = 0; replica < source.replicas; replica++) {
    const rank = sourceRankAt(origin, replica, 0);
    if (hostOf(rank) != host) continue;
    if (left == 0) return rank;
    left--;
  }
  return 0;
}

/**
 * Lists who may own the pieces of the box at hand: holders that want it themselves, else those on a host of a
 * target, else all holders, by (replica, contribution). An entry is replica · contributions + contribution.
 */
export function listOwners(sourceAt: u32, targetAt: u32): void {
  const holders = source.replicas * source.contributions;
  ownerCount = 0;
  if (pattern.meeting) {
    if (target.replicas < holders) listMeetingReplicas(targetAt);
    else listMeetingHolders(sourceAt, holders);
  }
  if (ownerCount == 0 && hosts != 0) {
    for (let entry: u32 = 0; entry < holders; entry++) {
      if (isNearTarget(ownerRank(sourceAt, entry), targetAt)) setU32(owners, ownerCount++, entry);
    }
  }
  allOwn = ownerCount == 0;
  if (allOwn) ownerCount = holders;
}

function listMeetingHolders(sourceAt: u32, holders: u32): void {
  for (let entry: u32 = 0; entry < holders; entry++) {
    if (wantsTarget(ownerRank(sourceAt, entry))) setU32(owners, ownerCount++, entry);
  }
}

/** As `listMeetingHolders`, where there are fewer replicas to ask. */
function listMeetingReplicas(targetAt: u32): void {
  for (let replica: u32 = 0; replica < target.replicas; replica++) {
    if (!holdsSource(targetRankAt(targetAt, replica))) continue;
    const entry = foundReplica * source.contributions + foundContribution;
    let at = ownerCount++;
    for (; at > 0 && u32At(owners, at - 1) > entry; at--) setU32(owners, at, u32At(owners, at - 1));
    setU32(owners, at, entry);
  }
}

function isNearTarget(rank: u32, targetAt: u32): bool {
  for (let replica: u32 = 0; replica < target.replicas; replica++) {
    if (hostOf(targetRankAt(targetAt, replica)) == hostOf(rank)) return true;
  }
  return false;
}

/** The entry (see `listOwners`) that owns a piece of the box at hand; `start` is `ownerRotation()`. */
export function ownerOf(start: i64, piece: i64): u32 {
  const at = <u32>((start + piece) % ownerCount);
  return allOwn ? at : u32At(owners, at);
}

export function ownerRotation(pieces: i64): i64 {
  return rotation(pieces, ownerCount);
}

export function ownerRank(origin: u32, entry: u32): u32 {
  return sourceRankAt(origin, entry / source.contributions, entry % source.contributions);
}
