import { bytesOf, itemSize } from "../../layout/index.ts";
import type { NormalInput, Pattern } from "./normalize.ts";
import type { NormalSide } from "./sides.ts";
import { subMeshBase } from "./sides.ts";
import { hostOf, type NormalTopology, slowestOf } from "./topology.ts";

/** The ranks that exchange stripes: none, all replicas of a part, or the replicas on one host. */
export const groupings = ["none", "all", "host"] as const;
export type Grouping = (typeof groupings)[number];

export const reasons = ["asked for", "no topology", "no replicas", "lowest cost"] as const;
export type Reason = (typeof reasons)[number];

/** What each way is expected to take, in nanoseconds for all tensors of the pattern; `undefined` if it is no way. */
export interface Costs {
  readonly direct: bigint;
  readonly all: bigint | undefined;
  readonly host: bigint | undefined;
}

/** How a pattern's pieces travel, and why. */
export interface Routing {
  readonly strategy: "direct" | "striped";
  readonly groups: Grouping;
  readonly reason: Reason;
  readonly costs: Costs | undefined;
}

/** Decides how the tensors of a pattern travel. Integers only, and a function of the plan's input. */
export function route(input: NormalInput, pattern: Pattern): Routing {
  const { strategy, topology } = input;
  const direct = { strategy: "direct", groups: "none", costs: undefined } as const;
  if (strategy === "direct") return { ...direct, reason: "asked for" };
  if (replicasOf(pattern.target) === 1) return { ...direct, reason: "no replicas" };
  if (topology === undefined) {
    if (strategy === "auto") return { ...direct, reason: "no topology" };
    return { strategy: "striped", groups: "all", reason: "asked for", costs: undefined };
  }
  const costs = costsOf(input, pattern, topology);
  const striped =
    costs.host !== undefined && (costs.all === undefined || costs.host <= costs.all) ? "host" : "all";
  const cost = costs[striped]!;
  if (strategy === "auto" && costs.direct <= cost) return { ...direct, reason: "lowest cost", costs };
  return {
    strategy: "striped",
    groups: striped,
    reason: strategy === "auto" ? "lowest cost" : "asked for",
    costs,
  };
}

/**
 * The cost model. Every rank has one link to its own host and one to the network, each both ways at once; a stage takes as
 * long as its busiest rank, and a latency; stages follow each other. Sources share what they send evenly, as the rotation
 * does, and what a source finds on its own host does not use the network. Where links between hosts differ, the slowest
 * that a stage may use counts.
 */
function costsOf(input: NormalInput, pattern: Pattern, topology: NormalTopology): Costs {
  const spread = spreadOf(input, pattern, topology);
  const count = BigInt(pattern.count);
  const elements = pattern.shape.reduce((product, size) => product * BigInt(size), 1n) * count;
  const { dtype, targetDtype } = pattern;
  const wireType = itemSize(dtype) < itemSize(targetDtype) ? dtype : targetDtype;
  const wire = (count: bigint) => bytesOf(wireType, count);
  const item = (count: bigint) => bytesOf(targetDtype, count);
  // The part of a target rank, evenly cut.
  const part = ceilDiv(elements, BigInt(spread.targetGroups));
  const latency = BigInt(topology.latencyUs) * 1000n;
  const { sourceHosts, targetHosts } = spread;
  const speeds = {
    host: slowestOf(topology, targetHosts, targetHosts, true),
    across: slowestOf(topology, targetHosts, targetHosts, false),
    cross: slowestOf(topology, sourceHosts, targetHosts, spread.isNear),
  };
  const inHost = (bytes: bigint) => nanoseconds(bytes, speeds.host);
  const across = (bytes: bigint) => nanoseconds(bytes, speeds.across);
  const cross = (bytes: bigint) => nanoseconds(bytes, speeds.cross);
  /** Stage 1, if each part goes to `copies` ranks and a rank receives one of `shares` shares of it. */
  const crossing = (copies: number, shares: number): bigint => {
    const sent = wire(ceilDiv(elements * BigInt(copies), BigInt(spread.sources)));
    return max(cross(sent), cross(wire(ceilDiv(part, BigInt(shares))))) + latency;
  };
  const { replicas, hosts, most, fewest } = spread;
  const direct = crossing(replicas, 1);
  const all =
    hosts === 1 && most > 1
      ? undefined
      : crossing(1, replicas) +
        max(
          inHost(item(ceilDiv(part * BigInt(most - 1), BigInt(replicas)))),
          across(item(ceilDiv(part * BigInt(replicas - fewest), BigInt(replicas)))),
        ) +
        latency;
  const host =
    most === 1
      ? undefined
      : crossing(hosts, fewest) + inHost(item(ceilDiv(part * BigInt(most - 1), BigInt(most)))) + latency;
  return { direct, all, host };
}

/** Says where the ranks of a pattern's first tensor stand. */
interface Spread {
  /** Ranks that send, and the parts that the target is sharded into. */
  readonly sources: number;
  readonly targetGroups: number;
  readonly replicas: number;
  /** The most hosts of the replicas of a part; the most and the fewest replicas of a part on one host. */
  readonly hosts: number;
  readonly most: number;
  readonly fewest: number;
  readonly sourceHosts: ReadonlySet<number>;
  readonly targetHosts: ReadonlySet<number>;
  /** On every host of the target, all of the source can be had. */
  readonly isNear: boolean;
}

function spreadOf(input: NormalInput, pattern: Pattern, topology: NormalTopology): Spread {
  const source = [...positions(pattern.source, input.sourceIndices[pattern.first]!)];
  const target = [...positions(pattern.target, input.targetIndices[pattern.first]!)];
  const perPart = new Map<number, Map<number, number>>();
  for (const { rank, part } of target) {
    const host = hostOf(topology, rank);
    const counts = perPart.get(part) ?? new Map<number, number>();
    perPart.set(part, counts);
    counts.set(host, (counts.get(host) ?? 0) + 1);
  }
  const partsOf = new Map<number, Set<number>>();
  for (const { rank, part } of source) {
    const host = hostOf(topology, rank);
    const parts = partsOf.get(host) ?? new Set<number>();
    partsOf.set(host, parts.add(part));
  }
  const allParts = new Set(source.map(({ part }) => part)).size;
  const counts = [...perPart.values()];
  const sizes = counts.flatMap((hosts) => [...hosts.values()]);
  const isWhole = ({ rank }: Position) => partsOf.get(hostOf(topology, rank))?.size === allParts;
  return {
    sources: source.length,
    targetGroups: perPart.size,
    replicas: replicasOf(pattern.target),
    hosts: counts.reduce((most, { size }) => Math.max(most, size), 0),
    most: sizes.reduce((a, b) => Math.max(a, b)),
    fewest: sizes.reduce((a, b) => Math.min(a, b)),
    sourceHosts: new Set(partsOf.keys()),
    targetHosts: new Set(counts.flatMap((hosts) => [...hosts.keys()])),
    isNear: target.every(isWhole),
  };
}

interface Position {
  readonly rank: number;
  /** Equal for ranks that hold the same indices of every tensor. */
  readonly part: number;
}

/** The ranks of a side's sub-mesh. */
function* positions(side: NormalSide, index: number): Generator<Position, void, undefined> {
  const { mesh } = side.layout;
  const base = subMeshBase(side, index);
  const size = side.subShape.reduce((product, extent) => product * extent, 1);
  for (let number = 0; number < size; number++) {
    let rest = number;
    let stride = 1;
    let weight = 1;
    let at = base;
    let part = 0;
    for (let dim = mesh.ndim - 1; dim >= 0; dim--) {
      const extent = side.subShape[dim]!;
      const coordinate = rest % extent;
      rest = Math.floor(rest / extent);
      at += coordinate * stride;
      stride *= mesh.shape[dim]!;
      const { kind } = side.placements[dim]!;
      if (kind === "replicate" || kind === "partial") continue;
      part += coordinate * weight;
      weight *= extent;
    }
    yield { rank: mesh.ranks[at]!, part };
  }
}

function replicasOf(side: NormalSide): number {
  return side.placements.reduce(
    (product, { kind }, dim) => (kind === "replicate" ? product * side.subShape[dim]! : product),
    1,
  );
}

/** A megabyte a second is a byte a microsecond. */
function nanoseconds(bytes: bigint, megabytesPerSecond: number): bigint {
  return ceilDiv(bytes * 1000n, BigInt(megabytesPerSecond));
}

function ceilDiv(a: bigint, b: bigint): bigint {
  return (a + b - 1n) / b;
}

function max(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}
