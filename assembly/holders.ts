/**
 * Holders: ranks on both sides, which hold as sources what they want as targets, or contribute to it. Those of each pair of
 * parts are listed once, so that nobody looks for them among all replicas of a part.
 */
import { alloc, allocZero } from "./arena";
import { subMeshRank, subMeshSize } from "./homes";
import { classCount, Mesh, Side, tensorClass, tensorSourceBase, tensorTargetBase } from "./model";
import { sortByKey } from "./sort";
import { hostOf, source, target, tensor } from "./tensor";
import { i32At, i64At, NONE, setI64, setU32, u32At } from "./words";

/** The holders of all parts of two sides as they lie on their sub-meshes. */
// @ts-ignore: decorator
@unmanaged
class Holders {
  /** Whose they are: kinds of sides and where their sub-meshes begin. */
  sourceKind: u32;
  targetKind: u32;
  sourceBase: u32;
  targetBase: u32;
  /**
   * Pairs of parts that have holders, ascending. Those of pair p are `entries[first[p]]` up to `[first[p + 1]]`, each as
   * replica · contributions + contribution, ascending; their hosts, each once, `hosts[hostFirst[p]]` up to `[hostFirst[p + 1]]`.
   */
  count: u32;
  pairs: usize;
  first: usize;
  entries: usize;
  hostFirst: usize;
  hosts: usize;
  next: usize;
}

/** By class; and lists of all that were made, by the hash of whose they are. */
let ofClass: usize = 0;
let heads: usize = 0;
let mask: u32 = 0;

/** The holders of the two parts that were entered: where their entries stand, and how many they are; and their hosts. */
export let holderEntries: usize = 0;
export let holderCount: u32 = 0;
let hostList: usize = 0;
let hostFirst: u32 = 0;
let hostEnd: u32 = 0;

export function startHolders(): void {
  ofClass = 0;
}

/** Takes up the holders of what the parts at two origins share, of the tensor at hand. */
export function enterHolders(sourceAt: u32, targetAt: u32): void {
  const holders = holdersOf();
  const pair = pairOf(sourceAt, targetAt);
  let low: u32 = 0;
  let high = holders.count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (i64At(holders.pairs, middle) < pair) low = middle + 1;
    else high = middle;
  }
  const isThere = low < holders.count && i64At(holders.pairs, low) == pair;
  const first = isThere ? u32At(holders.first, low) : 0;
  holderEntries = holders.entries + ((<usize>first) << 2);
  holderCount = isThere ? u32At(holders.first, low + 1) - first : 0;
  hostList = holders.hosts;
  hostFirst = isThere ? u32At(holders.hostFirst, low) : 0;
  hostEnd = isThere ? u32At(holders.hostFirst, low + 1) : 0;
}

/** True if a rank of the host is one of them. */
export function hostHolds(host: u32): bool {
  let low = hostFirst;
  let high = hostEnd;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (u32At(hostList, middle) < host) low = middle + 1;
    else high = middle;
  }
  return low < hostEnd && u32At(hostList, low) == host;
}

function pairOf(sourceAt: u32, targetAt: u32): i64 {
  return ((<i64>sourceAt) << 32) | targetAt;
}

function holdersOf(): Holders {
  if (ofClass == 0) {
    ofClass = allocZero((<usize>classCount) << 2);
    mask = 1;
    while (mask < classCount) mask <<= 1;
    heads = allocZero((<usize>mask) << 2);
    mask--;
  }
  const own = tensorClass(tensor);
  if (u32At(ofClass, own) == 0) setU32(ofClass, own, <u32>findHolders());
  return changetype<Holders>(u32At(ofClass, own));
}

function findHolders(): usize {
  const sourceBase = tensorSourceBase(tensor);
  const targetBase = tensorTargetBase(tensor);
  const hash =
    (source.kind * 0x9e3779b1) ^
    (target.kind * 0x85ebca6b) ^
    (sourceBase * 0xc2b2ae35) ^
    (targetBase * 0x27d4eb2f);
  const slot = (hash ^ (hash >> 15)) & mask;
  for (let at = u32At(heads, slot); at != 0; at = <u32>changetype<Holders>(at).next) {
    const known = changetype<Holders>(at);
    const isOfSides = known.sourceKind == source.kind && known.targetKind == target.kind;
    if (isOfSides && known.sourceBase == sourceBase && known.targetBase == targetBase) return at;
  }
  const made = changetype<Holders>(alloc(offsetof<Holders>()));
  made.sourceKind = source.kind;
  made.targetKind = target.kind;
  made.sourceBase = sourceBase;
  made.targetBase = targetBase;
  made.next = u32At(heads, slot);
  setU32(heads, slot, <u32>changetype<usize>(made));
  list(made);
  return changetype<usize>(made);
}

function list(made: Holders): void {
  const isBySource = subMeshSize(source) <= subMeshSize(target);
  const side = isBySource ? source : target;
  const base = isBySource ? made.sourceBase : made.targetBase;
  const size = subMeshSize(side);
  const order = alloc((<usize>size) << 2);
  const keys = alloc((<usize>size) << 3);
  const hosts = alloc((<usize>size) << 3);
  const pairs = alloc((<usize>size) << 3);
  let found: u32 = 0;
  for (let index: u32 = 0; index < size; index++) {
    const rank = subMeshRank(side, base, index);
    const targetAt = originOf(target, made.targetBase, rank);
    const sourceAt = originOf(source, made.sourceBase, rank);
    if (sourceAt == NONE || targetAt == NONE) continue;
    setI64(keys, found, lastEntry);
    setI64(hosts, found, hostOf(rank));
    setI64(pairs, found, pairOf(sourceAt, targetAt));
    setU32(order, found, found);
    found++;
  }
  made.pairs = alloc((<usize>found) << 3);
  made.first = alloc((<usize>found + 1) << 2);
  made.entries = alloc((<usize>found) << 2);
  sortByKey(order, found, keys);
  sortByKey(order, found, pairs);
  made.count = 0;
  for (let at: u32 = 0; at < found; at++) {
    const holder = u32At(order, at);
    if (made.count == 0 || i64At(made.pairs, made.count - 1) != i64At(pairs, holder)) {
      setI64(made.pairs, made.count, i64At(pairs, holder));
      setU32(made.first, made.count++, at);
    }
    setU32(made.entries, at, <u32>i64At(keys, holder));
  }
  setU32(made.first, made.count, found);
  made.hosts = alloc((<usize>found) << 2);
  made.hostFirst = alloc((<usize>made.count + 1) << 2);
  listHosts(made, order, hosts);
}

/** Sorts the holders of each pair by host. */
function listHosts(made: Holders, order: usize, hosts: usize): void {
  let listed: u32 = 0;
  for (let pair: u32 = 0; pair < made.count; pair++) {
    const first = u32At(made.first, pair);
    const end = u32At(made.first, pair + 1);
    setU32(made.hostFirst, pair, listed);
    sortByKey(order + ((<usize>first) << 2), end - first, hosts);
    for (let at = first; at < end; at++) {
      const host = <u32>i64At(hosts, u32At(order, at));
      if (at > first && u32At(made.hosts, listed - 1) == host) continue;
      setU32(made.hosts, listed++, host);
    }
  }
  setU32(made.hostFirst, made.count, listed);
}

/** The entry of the rank that `originOf` was asked about last. */
let lastEntry: u32 = 0;

/** The index in the mesh at which the part of a rank begins, as `sourceOrigin` and `targetOrigin` say it; `NONE` if it has none. */
function originOf(side: Side, base: u32, rank: u32): u32 {
  const mesh = changetype<Mesh>(side.mesh);
  const position = i32At(mesh.indexOf, rank);
  if (position < 0) return NONE;
  let rest = <u32>position;
  let baseRest = base;
  let origin = base;
  let replica: u32 = 0;
  let contribution: u32 = 0;
  for (let dim: u32 = 0; dim < mesh.ndim; dim++) {
    const stride = u32At(mesh.strides, dim);
    // Unsigned: a coordinate before the sub-mesh is beyond its size too.
    const coordinate = rest / stride - baseRest / stride;
    if (coordinate >= u32At(side.shape, dim)) return NONE;
    const shards = i32At(side.shards, dim);
    if (shards >= 0) origin += coordinate * stride;
    else if (shards == -1) replica += coordinate * u32At(side.weights, dim);
    else contribution += coordinate * u32At(side.weights, dim);
    rest %= stride;
    baseRest %= stride;
  }
  lastEntry = replica * side.contributions + contribution;
  return origin;
}
