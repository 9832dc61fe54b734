import { OptionReader, type PresetText } from "./options.ts";

/** What all ranks of an engine are started with. Ranks count dp outermost, then pp, then tp. */
export interface VllmOptions {
  readonly text: string;
  readonly tp: number;
  readonly dp: number;
  readonly pp: number;
  /** True if experts are dealt over tp x dp ranks in place of being cut. */
  readonly ep: boolean;
  readonly placement: "linear" | "round_robin";
  /** EPLB's redundant experts. */
  readonly redundant: number;
  readonly all2all: All2all;
  /** Layers of each pipeline stage. */
  readonly partition: readonly number[] | undefined;
}

const all2allBackends = [
  "allgather_reducescatter",
  "naive",
  "pplx",
  "deepep_high_throughput",
  "deepep_low_latency",
  "deepep_v2",
  "mori_high_throughput",
  "mori_low_latency",
  "nixl_ep",
  "flashinfer_all2allv",
  "flashinfer_nvlink_two_sided",
  "flashinfer_nvlink_one_sided",
] as const;
type All2all = (typeof all2allBackends)[number];

/**
 * Back ends with which the ranks of tensor parallelism share tokens out: each then has shared experts whole. vLLM takes the
 * first one in place of `naive` and `pplx`.
 */
const sequenceParallel = new Set<All2all>([
  "allgather_reducescatter",
  "naive",
  "pplx",
  "deepep_high_throughput",
  "deepep_low_latency",
  "mori_high_throughput",
  "mori_low_latency",
  "nixl_ep",
]);

const vllmOptionNames = ["tp", "dp", "pp", "ep", "placement", "redundant", "all2all", "partition"];

export function readVllmOptions(preset: PresetText): VllmOptions {
  const reader = new OptionReader(preset);
  const options = {
    text: preset.text,
    tp: reader.count("tp", 1),
    dp: reader.count("dp", 1),
    pp: reader.count("pp", 1),
    ep: reader.flag("ep"),
    placement: reader.choice("placement", ["linear", "round_robin"] as const, "linear"),
    redundant: reader.count("redundant", 0, 0),
    all2all: reader.choice("all2all", all2allBackends, "allgather_reducescatter"),
    partition: reader.counts("partition"),
  };
  reader.finish(vllmOptionNames);
  return options;
}

/** Ranks over which experts are dealt: 1 if each rank has all of them. */
export function expertRanks({ ep, tp, dp }: VllmOptions): number {
  return ep ? tp * dp : 1;
}

/** Ranks over which each expert is cut. */
export function expertTensorRanks({ ep, tp, dp }: VllmOptions): number {
  return ep ? 1 : tp * dp;
}

/**
 * True if experts are dealt one by one: vLLM does so only for models with groups of experts and without redundant ones, and
 * between data-parallel engines only with the back ends that can look slots up; it falls back to runs otherwise.
 */
export function dealsRoundRobin(options: VllmOptions, groups: number): boolean {
  const usesAll2all = options.ep && options.dp > 1;
  return (
    options.placement === "round_robin" &&
    groups > 1 &&
    options.redundant === 0 &&
    (!usesAll2all || options.all2all === "deepep_low_latency" || options.all2all === "nixl_ep") &&
    expertRanks(options) > 1
  );
}

/** True if each rank has the shared experts whole. */
export function replicatesShared({ ep, tp, dp, all2all }: VllmOptions): boolean {
  return ep && tp > 1 && dp > 1 && sequenceParallel.has(all2all);
}

/** The first layer of each stage, and one past the last of all: uneven ones are given to stages before the last. */
export function stageBounds(options: VllmOptions, layers: number): number[] {
  const { pp, partition } = options;
  const sizes = partition ?? Array.from({ length: pp }, () => Math.floor(layers / pp));
  if (partition === undefined) {
    for (let more = 0; more < layers % pp; more++) (sizes as number[])[pp - 2 - more]! += 1;
  }
  const bounds = [0];
  for (const size of sizes) bounds.push(bounds.at(-1)! + size);
  return bounds;
}
