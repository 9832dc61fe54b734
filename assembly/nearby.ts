/**
 * The holders of one part, by hosts: its replicas, or of a partial source the holders of contributions to it, numbered as
 * replica · contributions + contribution. What is the same for all tensors of a layout is kept: a list for each origin
 * (`tensor.ts`), made when it is first asked for.
 */
import { alloc, allocZero } from "./arena";
import { hosts, Mesh, Side, sideKindCount } from "./model";
import { sortByKey } from "./sort";
import { setI64, setU32, u32At } from "./words";

/** For each kind of side, where the list of each origin stands; 0 if it was not made. */
let lists: usize = 0;

export function startNearby(): void {
  lists = hosts == 0 ? 0 : allocZero((<usize>sideKindCount) << 2);
}

/** A list, u32 words: hosts, ascending; where each begins among the holders, and the end; holders by host. */
export function nearbyList(side: Side, origin: u32): usize {
  let ofSide = <usize>u32At(lists, side.kind);
  if (ofSide == 0) {
    ofSide = allocZero((<usize>changetype<Mesh>(side.mesh).size) << 2);
    setU32(lists, side.kind, <u32>ofSide);
  }
  let list = <usize>u32At(ofSide, origin);
  if (list == 0) {
    list = makeList(side, origin);
    setU32(ofSide, origin, <u32>list);
  }
  return list;
}

function makeList(side: Side, origin: u32): usize {
  const ranks = changetype<Mesh>(side.mesh).ranks;
  const count = side.replicas * side.contributions;
  const keys = alloc((<usize>count) << 3);
  const order = alloc((<usize>count) << 2);
  for (let holder: u32 = 0; holder < count; holder++) {
    const offset = u32At(side.contributionOffsets, holder % side.contributions);
    const rank = u32At(ranks, origin + u32At(side.replicaOffsets, holder / side.contributions) + offset);
    setI64(keys, holder, u32At(hosts, rank));
    setU32(order, holder, holder);
  }
  sortByKey(order, count, keys);
  return writeList(order, keys, count);
}

function writeList(order: usize, keys: usize, count: u32): usize {
  let distinct: u32 = 0;
  for (let place: u32 = 0; place < count; place++) {
    if (place == 0 || keyAt(keys, order, place) != keyAt(keys, order, place - 1)) distinct++;
  }
  const list = alloc((<usize>distinct * 2 + 2 + count) << 2);
  setU32(list, 0, distinct);
  let slot: u32 = 0;
  for (let place: u32 = 0; place < count; place++) {
    if (place == 0 || keyAt(keys, order, place) != keyAt(keys, order, place - 1)) {
      setU32(list, 1 + slot, keyAt(keys, order, place));
      setU32(list, 1 + distinct + slot++, place);
    }
    setU32(list, 2 + 2 * distinct + place, u32At(order, place));
  }
  setU32(list, 1 + 2 * distinct, count);
  return list;
}

function keyAt(keys: usize, order: usize, place: u32): u32 {
  return u32At(keys, u32At(order, place) << 1);
}

/** The first place and the end of the holders on the host that `findHost` found. */
export let foundFirst: u32 = 0;
export let foundEnd: u32 = 0;

/** How many holders of a list stand on a host. */
export function findHost(list: usize, host: u32): u32 {
  const distinct = u32At(list, 0);
  let low: u32 = 0;
  let high = distinct;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (u32At(list, 1 + middle) < host) low = middle + 1;
    else high = middle;
  }
  if (low == distinct || u32At(list, 1 + low) != host) return 0;
  foundFirst = u32At(list, 1 + distinct + low);
  foundEnd = u32At(list, 2 + distinct + low);
  return foundEnd - foundFirst;
}

/** How many hosts a list has, and each of them. */
export function hostCount(list: usize): u32 {
  return u32At(list, 0);
}
export function listedHost(list: usize, index: u32): u32 {
  return u32At(list, 1 + index);
}

/** How many holders of a list stand on hosts of another, and on how many of these; the last is at `foundFirst`. */
export let nearHosts: u32 = 0;
export function countNear(list: usize, others: usize): u32 {
  let near: u32 = 0;
  let at: u32 = 0;
  nearHosts = 0;
  for (let index: u32 = 0; index < hostCount(others); index++) {
    const here = findHost(list, listedHost(others, index));
    if (here == 0) continue;
    near += here;
    at = foundFirst;
    nearHosts++;
  }
  foundFirst = at;
  return near;
}

/** The holder at a place of a list. */
export function holderAt(list: usize, place: u32): u32 {
  return u32At(holdersFrom(list, place), 0);
}

/** The holders of a list from a place on: those of a host stand together, ascending. */
export function holdersFrom(list: usize, place: u32): usize {
  return list + ((<usize>2 + 2 * u32At(list, 0) + place) << 2);
}

/** The number of a holder among those of the host that `findHost` found. */
export function indexOnHost(list: usize, holder: u32): u32 {
  let low = foundFirst;
  let high = foundEnd;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holderAt(list, middle) < holder) low = middle + 1;
    else high = middle;
  }
  return low - foundFirst;
}
