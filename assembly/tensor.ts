/** The tensor at hand: its pattern, sides and sub-meshes, and where ranks stand in them. */
import { Axis } from "./axis";
import {
  hosts,
  Mesh,
  Pattern,
  patternAt,
  Side,
  tensorOrdinal,
  tensorPattern,
  tensorSourceBase,
  tensorTargetBase,
} from "./model";
import { Overlap } from "./overlap";
import { i32At, i64At, setU32, u32At } from "./words";

export let tensor: u32 = 0;
export let pattern: Pattern = changetype<Pattern>(0);
export let source: Side = changetype<Side>(0);
export let target: Side = changetype<Side>(0);
let sourceRanks: usize = 0;
let targetRanks: usize = 0;
export let ordinal: i64 = 0;
let sourceBase: u32 = 0;
export let targetBase: u32 = 0;

export function enter(index: u32): void {
  tensor = index;
  pattern = patternAt(tensorPattern(index));
  source = changetype<Side>(pattern.source);
  target = changetype<Side>(pattern.target);
  sourceRanks = changetype<Mesh>(source.mesh).ranks;
  targetRanks = changetype<Mesh>(target.mesh).ranks;
  sourceBase = tensorSourceBase(index);
  targetBase = tensorTargetBase(index);
  ordinal = tensorOrdinal(index);
}

/**
 * Shard groups of the rank that `locate` found, one a tensor dimension; its replica and contribution numbers.
 */
export const sourceGroups: usize = memory.data(32, 8);
export const targetGroups: usize = memory.data(32, 8);
const otherGroups: usize = memory.data(32, 8);
/** The replica number of the rank that was asked about last, if it is on the side. */
export let foundReplica: u32 = 0;
let foundContribution: u32 = 0;

function locate(side: Side, base: u32, rank: u32, groups: usize): bool {
  const mesh = changetype<Mesh>(side.mesh);
  const position = i32At(mesh.indexOf, rank);
  if (position < 0) return false;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) setU32(groups, dim, 0);
  foundReplica = 0;
  foundContribution = 0;
  let rest = <u32>position;
  let baseRest = base;
  for (let dim: u32 = 0; dim < mesh.ndim; dim++) {
    const stride = u32At(mesh.strides, dim);
    const first = baseRest / stride;
    const coordinate = rest / stride - first;
    rest %= stride;
    baseRest %= stride;
    // Unsigned: a coordinate before the sub-mesh is beyond its size too.
    if (coordinate >= u32At(side.shape, dim)) return false;
    const shards = i32At(side.shards, dim);
    const step = coordinate * u32At(side.weights, dim);
    if (shards >= 0) setU32(groups, shards, u32At(groups, shards) + step);
    else if (shards == -1) foundReplica += step;
    else foundContribution += step;
  }
  return true;
}

export let sourceReplica: u32 = 0;
export let sourceContribution: u32 = 0;

/** True if the rank is a source of this tensor; if so its groups, replica and contribution are set. */
export function enterSource(rank: u32): bool {
  if (!locate(source, sourceBase, rank, sourceGroups)) return false;
  sourceReplica = foundReplica;
  sourceContribution = foundContribution;
  return true;
}

export let targetReplica: u32 = 0;

export function enterTarget(rank: u32): bool {
  if (!locate(target, targetBase, rank, targetGroups)) return false;
  targetReplica = foundReplica;
  return true;
}

/** True if the rank holds, as a source, what the groups in `sourceGroups` hold. */
export function holdsSource(rank: u32): bool {
  return locate(source, sourceBase, rank, otherGroups) && sameGroups(sourceGroups);
}

/** True if the rank wants, as a target, what the groups in `targetGroups` want. */
export function wantsTarget(rank: u32): bool {
  return locate(target, targetBase, rank, otherGroups) && sameGroups(targetGroups);
}

function sameGroups(groups: usize): bool {
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    if (u32At(otherGroups, dim) != u32At(groups, dim)) return false;
  }
  return true;
}

/** Index in the mesh's ranks of replica 0, contribution 0 of the groups. */
export function sourceOrigin(): u32 {
  let at = sourceBase;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    at += u32At(u32At(source.groupOffsets, dim), u32At(sourceGroups, dim));
  }
  return at;
}

export function targetOrigin(): u32 {
  let at = targetBase;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    at += u32At(u32At(target.groupOffsets, dim), u32At(targetGroups, dim));
  }
  return at;
}

// @ts-ignore: decorator
@inline
export function sourceRankAt(origin: u32, replica: u32, contribution: u32): u32 {
  const offset = u32At(source.replicaOffsets, replica) + u32At(source.contributionOffsets, contribution);
  return u32At(sourceRanks, origin + offset);
}

// @ts-ignore: decorator
@inline
export function targetRankAt(origin: u32, replica: u32): u32 {
  return u32At(targetRanks, origin + u32At(target.replicaOffsets, replica));
}

// @ts-ignore: decorator
@inline
export function overlapAt(dim: u32): Overlap {
  return changetype<Overlap>(u32At(pattern.overlaps, dim));
}

/** Local length of the groups in `sourceGroups` or `targetGroups` along a tensor dimension. */
export function sourceLength(dim: u32): i64 {
  return i64At(changetype<Axis>(u32At(source.axes, dim)).locals, u32At(sourceGroups, dim));
}
export function targetLength(dim: u32): i64 {
  return i64At(changetype<Axis>(u32At(target.axes, dim)).locals, u32At(targetGroups, dim));
}

/** The host of a rank; without a topology every rank is its own. */
// @ts-ignore: decorator
@inline
export function hostOf(rank: u32): u32 {
  return hosts == 0 ? rank : u32At(hosts, rank);
}
