/**
 * Wants: which targets of the tensor at hand stand on a host, one of each group of replicas. Ranks of a host ask for the
 * same, so what is found for one is kept for the next.
 */
import { alloc, allocZero } from "./arena";
import { hosts, world } from "./model";
import { countNear, hostCount, listedHost, nearbyList } from "./nearby";
import { sortByKey } from "./sort";
import { enterTarget, hostOf, source, sourceOrigin, target, targetBase, targetOrigin } from "./tensor";
import { addU32, i64At, NONE, setI64, setU32, u32At } from "./words";

/** Wants of a host, of a partial source from the holders of one origin. */
// @ts-ignore: decorator
@unmanaged
class Wants {
  sourceAt: u32;
  sourceKind: u32;
  targetKind: u32;
  targetBase: u32;
  /**
   * A rank of each group: first those of groups that stand on this host alone. For a partial source then those of groups that
   * stand on other hosts as well and are not near all holders, those of the same hosts together: of spread set s they are
   * `ranks[spreadFirst[s]]` up to `[spreadFirst[s + 1]]`. Last the others.
   */
  ranks: usize;
  count: u32;
  aloneCount: u32;
  spreadCount: u32;
  spreadFirst: usize;
  /** The least origin of a set; `NONE` if its groups do not stand on the same hosts. */
  spreadIds: usize;
}

const NOWHERE: u32 = 0xffffffff;
const ANYWHERE: u32 = 0xfffffffe;
/** Layouts take turns from tensor to tensor: so many lists are kept of a host. */
const KEPT: u32 = 8;

/** Ranks by host: those of host h are `hostRanks[hostPointers[h]]` up to `[hostPointers[h + 1]]`. */
let hostPointers: usize = 0;
let hostRanks: usize = 0;
/** For each host its kept wants, and which of them is made anew next; 0 if it was not asked about. */
let slots: usize = 0;
/** For each origin of targets the number of the last list that it is in. */
let listed: usize = 0;
let lists: u32 = 0;

export function startWants(): void {
  hostPointers = 0;
  room = 0;
}

function listHosts(): void {
  if (hostPointers != 0) return;
  let most: u32 = 0;
  for (let rank: u32 = 0; rank < world; rank++) most = max(most, u32At(hosts, rank));
  hostPointers = allocZero((<usize>most + 2) << 2);
  hostRanks = alloc((<usize>world) << 2);
  for (let rank: u32 = 0; rank < world; rank++) addU32(hostPointers, u32At(hosts, rank) + 1, 1);
  for (let host: u32 = 0; host <= most; host++) addU32(hostPointers, host + 1, u32At(hostPointers, host));
  const filled = alloc((<usize>most + 2) << 2);
  memory.copy(filled, hostPointers, (<usize>most + 2) << 2);
  for (let rank: u32 = 0; rank < world; rank++) {
    const host = u32At(hosts, rank);
    setU32(hostRanks, u32At(filled, host), rank);
    addU32(filled, host, 1);
  }
  slots = allocZero((<usize>most + 1) << 2);
  listed = allocZero((<usize>world) << 2);
  lists = 0;
}

/** What ranks on the host of `rank` want of the tensor at hand. The target groups at hand are others afterwards. */
export function wantsNear(rank: u32): Wants {
  // Only for a partial source it matters who is near which of its holders.
  const sourceAt = source.contributions > 1 ? sourceOrigin() : ANYWHERE;
  listHosts();
  const first = u32At(hostPointers, hostOf(rank));
  const end = u32At(hostPointers, hostOf(rank) + 1);
  const slot = slotOf(hostOf(rank), end - first);
  for (let index: u32 = 0; index < KEPT; index++) {
    const kept = changetype<Wants>(u32At(slot, index));
    if (
      kept.sourceAt == sourceAt &&
      kept.sourceKind == source.kind &&
      kept.targetKind == target.kind &&
      kept.targetBase == targetBase
    ) {
      return kept;
    }
  }
  const next = u32At(slot, KEPT);
  setU32(slot, KEPT, (next + 1) % KEPT);
  const wants = changetype<Wants>(u32At(slot, next));
  list(wants, sourceAt, first, end);
  return wants;
}

function slotOf(host: u32, ranks: u32): usize {
  if (u32At(slots, host) != 0) return u32At(slots, host);
  const slot = alloc((<usize>KEPT + 1) << 2);
  for (let index: u32 = 0; index < KEPT; index++) {
    const wants = changetype<Wants>(alloc(offsetof<Wants>()));
    wants.sourceAt = NOWHERE;
    wants.ranks = alloc((<usize>ranks) << 2);
    wants.spreadFirst = alloc((<usize>ranks + 1) << 2);
    wants.spreadIds = alloc((<usize>ranks) << 2);
    setU32(slot, index, <u32>changetype<usize>(wants));
  }
  setU32(slot, KEPT, 0);
  setU32(slots, host, <u32>slot);
  return slot;
}

/** Room to sort what a host wants: the groups' ranks, origins and keys. */
let room: u32 = 0;
let listedRanks: usize = 0;
let origins: usize = 0;
let keys: usize = 0;
let order: usize = 0;

function list(wants: Wants, sourceAt: u32, first: u32, end: u32): void {
  const isPartial = source.contributions > 1;
  wants.sourceAt = sourceAt;
  wants.sourceKind = source.kind;
  wants.targetKind = target.kind;
  wants.targetBase = targetBase;
  makeRoom(end - first);
  let count: u32 = 0;
  lists++;
  for (let place = first; place < end; place++) {
    const rank = u32At(hostRanks, place);
    if (!enterTarget(rank)) continue;
    const at = targetOrigin();
    if (u32At(listed, at) == lists) continue;
    setU32(listed, at, lists);
    setU32(listedRanks, count, rank);
    setU32(origins, count, at);
    setU32(order, count, count);
    setI64(keys, count++, isPartial ? keyOf(sourceAt, at) : ON_ONE);
  }
  sortByKey(order, count, keys);
  wants.count = count;
  wants.aloneCount = 0;
  wants.spreadCount = 0;
  for (let index: u32 = 0; index < count; index++) {
    const group = u32At(order, index);
    setU32(wants.ranks, index, u32At(listedRanks, group));
    const key = i64At(keys, group);
    if (key == ON_ONE) wants.aloneCount++;
    else if (key < NEAR_ALL) addSpread(wants, index, key);
  }
}

function makeRoom(ranks: u32): void {
  if (ranks <= room) return;
  room = ranks;
  listedRanks = alloc((<usize>ranks) << 2);
  origins = alloc((<usize>ranks) << 2);
  keys = alloc((<usize>ranks) << 3);
  order = alloc((<usize>ranks) << 2);
}

/** What groups are sorted by: on one host, on the same few hosts, near all holders. */
const ON_ONE: i64 = -1;
const NEAR_ALL: i64 = i64.MAX_VALUE;

function keyOf(sourceAt: u32, targetAt: u32): i64 {
  const group = nearbyList(target, targetAt);
  if (hostCount(group) == 1) return ON_ONE;
  if (countNear(nearbyList(source, sourceAt), group) == source.replicas * source.contributions)
    return NEAR_ALL;
  let hash: u64 = 0xcbf29ce484222325;
  for (let index: u32 = 0; index < hostCount(group); index++) {
    hash = (hash ^ listedHost(group, index)) * 0x100000001b3;
  }
  return <i64>(hash >> 2);
}

/** Adds the group at an index to the last set if that is of the same hosts, else to one of its own. */
function addSpread(wants: Wants, index: u32, key: i64): void {
  const at = u32At(origins, u32At(order, index));
  const last = wants.spreadCount;
  const isNew = last == 0 || i64At(keys, u32At(order, index - 1)) != key;
  if (isNew) {
    setU32(wants.spreadFirst, last, index);
    setU32(wants.spreadIds, last, at);
    wants.spreadCount++;
  } else {
    const before = u32At(wants.spreadIds, last - 1);
    const isSame = before != NONE && sameHosts(at, u32At(origins, u32At(order, index - 1)));
    setU32(wants.spreadIds, last - 1, isSame ? min(before, at) : NONE);
  }
  setU32(wants.spreadFirst, wants.spreadCount, index + 1);
}

/** True if the replicas of two groups stand on the same hosts. */
function sameHosts(one: u32, other: u32): bool {
  const a = nearbyList(target, one);
  const b = nearbyList(target, other);
  const count = hostCount(a);
  if (hostCount(b) != count) return false;
  for (let index: u32 = 0; index < count; index++) {
    if (listedHost(a, index) != listedHost(b, index)) return false;
  }
  return true;
}
