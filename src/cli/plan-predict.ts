import { TensorBusError } from "../errors.ts";
import type { Bucket, Plan, Stage, TopologyInput } from "../plan/index.ts";

/** How long a plan takes at least, if every link runs at its rate. */
export interface Prediction {
  readonly seconds: number;
  /** Bytes between ranks of one host, and across hosts. */
  readonly hostBytes: bigint;
  readonly networkBytes: bigint;
}

interface Load {
  host: number;
  network: number;
}

/**
 * A lower bound from the topology of the spec: in each stage the busiest link end of any rank, its bytes within the host
 * and across hosts each at their rate, and one latency a wave; stages follow each other. Undefined where the plan has
 * too many buckets to look at each.
 */
export function predict(plan: Plan, topology: TopologyInput): Prediction | undefined {
  const stages = new Map<Stage, { readonly ends: Map<string, Load>; readonly waves: Set<number> }>();
  let hostBytes = 0n;
  let networkBytes = 0n;
  try {
    for (const bucket of plan.buckets()) {
      if (bucket.srcRank === bucket.dstRank) continue;
      const near = hostOf(topology, bucket.srcRank) === hostOf(topology, bucket.dstRank);
      if (near) hostBytes += bucket.bytes;
      else networkBytes += bucket.bytes;
      const stage = entryOf(stages, bucket.stage, () => ({
        ends: new Map<string, Load>(),
        waves: new Set<number>(),
      }));
      stage.waves.add(bucket.wave);
      addLoad(stage.ends, bucket, near);
    }
  } catch (error) {
    if (error instanceof TensorBusError && error.code === "TB_PLAN_TOO_LARGE") return undefined;
    throw error;
  }
  let seconds = 0;
  for (const { ends, waves } of stages.values()) {
    const busiest = Math.max(...[...ends.values()].map((load) => linkSeconds(load, topology)));
    seconds += busiest + (waves.size * topology.latencyUs) / 1e6;
  }
  return { seconds, hostBytes, networkBytes };
}

/** A link carries both directions at once: what a rank sends and what it receives are two ends. */
function addLoad(ends: Map<string, Load>, { srcRank, dstRank, bytes }: Bucket, near: boolean): void {
  for (const end of [`out ${srcRank}`, `in ${dstRank}`]) {
    const load = entryOf(ends, end, () => ({ host: 0, network: 0 }));
    load[near ? "host" : "network"] += Number(bytes);
  }
}

function linkSeconds({ host, network }: Load, topology: TopologyInput): number {
  return Math.max(host / (topology.hostMBps * 1e6), network / (topology.networkMBps * 1e6));
}

function hostOf({ hosts, ranksPerHost }: TopologyInput, rank: number): number | undefined {
  return ranksPerHost === undefined ? hosts?.[rank] : Math.floor(rank / ranksPerHost);
}

function entryOf<K, V>(map: Map<K, V>, key: K, make: () => V): V {
  const found = map.get(key);
  if (found !== undefined) return found;
  const made = make();
  map.set(key, made);
  return made;
}
