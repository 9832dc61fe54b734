/**
 * Groups of replicas that share a part by stripes: all that want it, or those on one host. They are the same for all tensors
 * of a layout and are kept, those of each part (`targetOrigin` of `tensor.ts`) from when it is first asked for.
 */
import { alloc, allocZero } from "./arena";
import { hosts, Mesh, Side, sideKindCount, world } from "./model";
import { NONE, setU32, u32At } from "./words";

// @ts-ignore: decorator
@unmanaged
export class Groups {
  count: u32;
  /** Members of the largest group. */
  largest: u32;
  /** Replicas in group g are `members[pointers[g]]` up to `members[pointers[g + 1]]`, ascending. */
  pointers: usize;
  members: usize;
  groupOf: usize;
}

/** For each kind of side its only group, and the groups by hosts of each origin; 0 where they were not made. */
let whole: usize = 0;
let byHost: usize = 0;
let hostGroup: usize = 0;

export function startGroups(): void {
  whole = 0;
  byHost = 0;
  hostGroup = 0;
}

/** The groups of the replicas of the part at an origin: one of all, or one of each host. */
export function groupsAt(side: Side, origin: u32, areByHost: bool): Groups {
  if (whole == 0) {
    whole = allocZero((<usize>sideKindCount) << 2);
    byHost = allocZero((<usize>sideKindCount) << 2);
  }
  if (!areByHost || hosts == 0) {
    // One group of all is the same wherever it stands.
    if (u32At(whole, side.kind) == 0) setU32(whole, side.kind, <u32>formGroups(side, origin, false));
    return changetype<Groups>(u32At(whole, side.kind));
  }
  let ofSide = <usize>u32At(byHost, side.kind);
  if (ofSide == 0) {
    ofSide = allocZero((<usize>changetype<Mesh>(side.mesh).size) << 2);
    setU32(byHost, side.kind, <u32>ofSide);
  }
  if (u32At(ofSide, origin) == 0) setU32(ofSide, origin, <u32>formGroups(side, origin, true));
  return changetype<Groups>(u32At(ofSide, origin));
}

/** Numbers groups by their first replicas; replicas stay in order within a group. */
function formGroups(side: Side, origin: u32, areByHost: bool): usize {
  const replicas = side.replicas;
  const made = changetype<Groups>(alloc(offsetof<Groups>()));
  made.groupOf = alloc((<usize>replicas) << 2);
  made.count = areByHost ? numberByHost(side, origin, made.groupOf) : 1;
  if (!areByHost) memory.fill(made.groupOf, 0, (<usize>replicas) << 2);
  made.pointers = allocZero((<usize>made.count + 1) << 2);
  made.members = alloc((<usize>replicas) << 2);
  for (let replica: u32 = 0; replica < replicas; replica++) {
    const next = u32At(made.groupOf, replica) + 1;
    setU32(made.pointers, next, u32At(made.pointers, next) + 1);
  }
  made.largest = 0;
  for (let group: u32 = 0; group < made.count; group++) {
    const size = u32At(made.pointers, group + 1);
    made.largest = max(made.largest, size);
    setU32(made.pointers, group + 1, u32At(made.pointers, group) + size);
  }
  // Filled from the back, so that the ends of groups become their beginnings, one group further.
  for (let replica = replicas; replica > 0; replica--) {
    const group = u32At(made.groupOf, replica - 1);
    const place = u32At(made.pointers, group + 1) - 1;
    setU32(made.members, place, replica - 1);
    setU32(made.pointers, group + 1, place);
  }
  for (let group: u32 = 0; group < made.count; group++) {
    setU32(made.pointers, group, u32At(made.pointers, group + 1));
  }
  setU32(made.pointers, made.count, replicas);
  return changetype<usize>(made);
}

function numberByHost(side: Side, origin: u32, groupOf: usize): u32 {
  const ranks = changetype<Mesh>(side.mesh).ranks;
  if (hostGroup == 0) hostGroup = alloc((<usize>world) << 2);
  for (let replica: u32 = 0; replica < side.replicas; replica++) {
    const rank = u32At(ranks, origin + u32At(side.replicaOffsets, replica));
    setU32(hostGroup, u32At(hosts, rank), NONE);
  }
  let count: u32 = 0;
  for (let replica: u32 = 0; replica < side.replicas; replica++) {
    const host = u32At(hosts, u32At(ranks, origin + u32At(side.replicaOffsets, replica)));
    if (u32At(hostGroup, host) == NONE) setU32(hostGroup, host, count++);
    setU32(groupOf, replica, u32At(hostGroup, host));
  }
  return count;
}
