/**
 * Wants: which targets of the tensor at hand stand on a host, one of each group of replicas. Ranks of a host ask for the
 * same, so what is found for one is kept for the next.
 */
import { alloc, allocZero } from "./arena";
import { hosts, world } from "./model";
import { countNear, hostCount, nearbyList } from "./nearby";
import { enterTarget, hostOf, source, target, targetBase, targetOrigin } from "./tensor";
import { addU32, setU32, u32At } from "./words";

/** Wants of a host, from the holders of one origin. */
// @ts-ignore: decorator
@unmanaged
export class Wants {
  sourceAt: u32;
  sourceKind: u32;
  targetKind: u32;
  targetBase: u32;
  /** A rank of each group that stands on this host alone. */
  alone: usize;
  aloneCount: u32;
  /** A rank of each that stands on other hosts as well, and is not near all holders. */
  spread: usize;
  spreadCount: u32;
}

const NOWHERE: u32 = 0xffffffff;
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
}

/** The ranks of a rank's host are those at the places from the first to before the end. */
export function firstNear(rank: u32): u32 {
  listHosts();
  return u32At(hostPointers, hostOf(rank));
}
export function endNear(rank: u32): u32 {
  listHosts();
  return u32At(hostPointers, hostOf(rank) + 1);
}
export function rankNear(place: u32): u32 {
  return u32At(hostRanks, place);
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

/** What ranks on the host of `rank` want of the holders of `sourceAt`. The target groups at hand are others afterwards. */
export function wantsNear(rank: u32, sourceAt: u32): Wants {
  const first = firstNear(rank);
  const end = endNear(rank);
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
    wants.alone = alloc((<usize>ranks) << 2);
    wants.spread = alloc((<usize>ranks) << 2);
    setU32(slot, index, <u32>changetype<usize>(wants));
  }
  setU32(slot, KEPT, 0);
  setU32(slots, host, <u32>slot);
  return slot;
}

function list(wants: Wants, sourceAt: u32, first: u32, end: u32): void {
  const holders = source.replicas * source.contributions;
  wants.sourceAt = sourceAt;
  wants.sourceKind = source.kind;
  wants.targetKind = target.kind;
  wants.targetBase = targetBase;
  wants.aloneCount = 0;
  wants.spreadCount = 0;
  lists++;
  for (let place = first; place < end; place++) {
    const rank = rankNear(place);
    if (!enterTarget(rank)) continue;
    const at = targetOrigin();
    if (u32At(listed, at) == lists) continue;
    setU32(listed, at, lists);
    const group = nearbyList(target, at);
    if (hostCount(group) == 1) setU32(wants.alone, wants.aloneCount++, rank);
    else if (countNear(nearbyList(source, sourceAt), group) < holders) {
      setU32(wants.spread, wants.spreadCount++, rank);
    }
  }
}
