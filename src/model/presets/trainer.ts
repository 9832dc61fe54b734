import type { DeviceMesh, Placement } from "../../layout/index.ts";
import type { Model } from "../config.ts";
import type { PartRule, SideRules } from "../parts/rule.ts";
import { type MeshDim, meshOf, replicate, shard } from "./meshes.ts";
import { OptionReader, type PresetText } from "./options.ts";
import { expertCount, hasExperts } from "./vllm-requirements.ts";

/** Whole tensors, cut by their first dimension over N ranks. */
export function hfSide(preset: PresetText, firstRank = 0): SideRules {
  const count = preset.options.size === 1 ? [...preset.options.keys()][0]! : "";
  const plain = /^\d+$/.test(count) ? { ...preset, options: new Map([["ranks", count]]) } : preset;
  const reader = new OptionReader(plain);
  const ranks = reader.count("ranks", undefined);
  reader.finish(["ranks"]);
  const { mesh, placements } = meshOf(firstRank, [{ size: ranks, stride: 1, placement: shard(0) }]);
  return {
    ranks: [...mesh.ranks],
    meshes: { ranks: mesh },
    parameters: [{ match: "{*}", into: "{*}", mesh: "ranks", placements }],
  };
}

interface TrainerOptions {
  readonly dp: number;
  readonly tp: number;
  readonly ep: number;
  readonly replicas: number;
}

/**
 * What a trainer holds with `fully_shard`: the first dimension of every tensor over dp ranks, on each of `replicas` copies
 * (HSDP); with tp, the projections of attention and feed-forward blocks over tp ranks before that; with ep, each expert on
 * one coordinate of ep ranks. Ranks count replicas outermost, then dp, then tp.
 */
export function fsdp2Side(preset: PresetText, model: Model, firstRank = 0): SideRules {
  const reader = new OptionReader(preset);
  const options: TrainerOptions = {
    dp: reader.count("dp", undefined),
    tp: reader.count("tp", 1),
    ep: reader.count("ep", 1),
    replicas: reader.count("replicas", 1),
  };
  reader.finish(["dp", "tp", "ep", "replicas"]);
  const { dp, tp, ep, replicas } = options;
  if (ep > 1 && (dp * tp) % ep !== 0) {
    throw reader.error(`deals experts over ep=${ep} of ${dp * tp} ranks, which is uneven`, {
      ep,
      ranks: dp * tp,
    });
  }
  if (ep > 1 && (!hasExperts(model) || expertCount(model) % ep !== 0)) {
    throw reader.error(
      `cannot deal ${hasExperts(model) ? expertCount(model) : "no"} experts over ep=${ep} ranks evenly`,
      {
        ep,
      },
    );
  }
  const meshes: Record<string, DeviceMesh> = {};
  const rule = (
    match: string,
    name: string,
    dims: readonly MeshDim[],
    more: Partial<PartRule> = {},
  ): PartRule => {
    const { mesh, placements } = meshOf(firstRank, dims);
    meshes[name] ??= mesh;
    // The order in which FSDP2 cuts: tensor parallelism first, then data parallelism within it.
    return { match, into: match, mesh: name, placements, stridedShard: "order", ...more };
  };
  const dense = (match: string, overTp: Placement): PartRule => {
    const strided = overTp.kind === "shard" && overTp.dim === 0 && tp > 1;
    return rule(match, "ranks", [
      { size: replicas, stride: dp * tp, placement: replicate },
      {
        size: dp,
        stride: tp,
        placement: strided ? { kind: "stridedShard", dim: 0, splitFactor: tp } : shard(0),
      },
      { size: tp, stride: 1, placement: overTp },
    ]);
  };
  return {
    ranks: Array.from({ length: replicas * dp * tp }, (_, rank) => firstRank + rank),
    parameters: [
      ...(ep > 1 ? expertRules(model, options, rule) : []),
      ...(tp > 1 ? tensorParallelRules(dense) : []),
      dense("{*}", replicate),
    ],
    meshes,
  };
}

type MakeRule = (match: string, name: string, dims: readonly MeshDim[], more?: Partial<PartRule>) => PartRule;

/** Experts on their owners; what is left of the ranks cuts each, as FSDP2 does. */
function expertRules(model: Model, { dp, tp, ep, replicas }: TrainerOptions, rule: MakeRule): PartRule[] {
  const rest = (dp * tp) / ep;
  const of = expertCount(model);
  const outer: MeshDim = { size: replicas, stride: dp * tp, placement: replicate };
  const kept = [replicas, rest].filter((size) => size > 1).length;
  const single = (match: string): PartRule =>
    rule(
      match,
      "experts",
      [outer, { size: rest, stride: ep, placement: shard(0) }, { size: ep, stride: 1, placement: replicate }],
      { select: { dim: kept, index: "{e}", of } },
    );
  // More ranks than experts: what is left over cuts the next dimension.
  const within: Placement = dp * tp > of ? shard(1) : { kind: "stridedShard", dim: 0, splitFactor: ep };
  const fused = (match: string): PartRule =>
    rule(match, "experts", [
      outer,
      { size: rest, stride: ep, placement: within },
      { size: ep, stride: 1, placement: shard(0) },
    ]);
  return [
    single("{L}.mlp.experts.{e}.{*}"),
    single("{L}.block_sparse_moe.experts.{e}.{*}"),
    fused("{L}.mlp.experts.{*}"),
  ];
}

const columns = [
  "self_attn.q_proj",
  "self_attn.k_proj",
  "self_attn.v_proj",
  "self_attn.q_b_proj",
  "self_attn.kv_b_proj",
];
const gates = ["mlp.gate_proj", "mlp.up_proj", "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"];
const shared = ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"];
const rows = [
  "self_attn.o_proj",
  "mlp.down_proj",
  "mlp.shared_experts.down_proj",
  "mlp.shared_expert.down_proj",
];

/** Column-parallel and row-parallel projections, the embedding and the head; all else is the same on tp ranks. */
function tensorParallelRules(dense: (match: string, overTp: Placement) => PartRule): PartRule[] {
  return [
    ...[...columns, ...gates, ...shared].map((name) => dense(`{L}.${name}.{s}`, shard(0))),
    ...rows.map((name) => dense(`{L}.${name}.{s}`, shard(1))),
    dense("model.embed_tokens.weight", shard(0)),
    dense("lm_head.weight", shard(0)),
  ];
}
