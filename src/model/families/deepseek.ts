import { expertCount } from "./sparse.ts";
import {
  attention,
  blockNorms,
  type Config,
  decoder,
  decoderKeys,
  evenHeads,
  experts,
  type Family,
  flag,
  gatedMlp,
  gateNames,
  headDim,
  type Key,
  keyValueHeads,
  linear,
  norm,
  type Row,
  size,
} from "./table.ts";

const layer = "model.layers.{l}";
const attn = `${layer}.self_attn`;
const mlp = `${layer}.mlp`;

/** The first layers are dense, all others have experts. */
function sparseAfterFirst(config: Config, index: number): boolean {
  return (
    config.n_routed_experts !== null &&
    index >= (config.first_k_dense_replace as number) &&
    index % ((config.moe_layer_freq as number | undefined) ?? 1) === 0
  );
}

/** Queries, keys and values come out of low-rank projections; the rotary part of the keys is shared by all heads. */
const latentAttention: readonly Row[] = [
  ...linear(
    `${attn}.q_proj`,
    "num_attention_heads * qk_nope_head_dim + num_attention_heads * qk_rope_head_dim",
    "hidden_size",
    undefined,
    "!q_lora_rank",
  ),
  ...linear(`${attn}.q_a_proj`, "q_lora_rank", "hidden_size", "attention_bias", "q_lora_rank"),
  norm(`${attn}.q_a_layernorm`, "q_lora_rank", "q_lora_rank"),
  ...linear(
    `${attn}.q_b_proj`,
    "num_attention_heads * qk_nope_head_dim + num_attention_heads * qk_rope_head_dim",
    "q_lora_rank",
    undefined,
    "q_lora_rank",
  ),
  ...linear(`${attn}.kv_a_proj_with_mqa`, "kv_lora_rank + qk_rope_head_dim", "hidden_size", "attention_bias"),
  norm(`${attn}.kv_a_layernorm`, "kv_lora_rank"),
  ...linear(
    `${attn}.kv_b_proj`,
    "num_attention_heads * qk_nope_head_dim + num_attention_heads * v_head_dim",
    "kv_lora_rank",
  ),
  ...linear(`${attn}.o_proj`, "hidden_size", "num_attention_heads * v_head_dim", "attention_bias"),
];

/** The router and its float32 correction are never quantized. */
const routedExperts: readonly Row[] = [
  ...gatedMlp(mlp, "intermediate_size", undefined, "!sparse"),
  ...experts({
    checkpoint: { at: mlp, names: gateNames },
    count: "n_routed_experts",
    intermediate: "moe_intermediate_size",
  }),
  { name: `${mlp}.gate.weight`, shape: ["n_routed_experts", "hidden_size"], when: "sparse" },
];
const correction: Row = {
  name: `${mlp}.gate.e_score_correction_bias`,
  shape: ["n_routed_experts"],
  when: "sparse",
  dtype: "float32",
};
const sharedExperts = gatedMlp(
  `${mlp}.shared_experts`,
  "moe_intermediate_size * n_shared_experts",
  undefined,
  "sparse n_shared_experts",
);

/**
 * Layers that predict further tokens follow the last layer, under the next numbers; like the published checkpoints they
 * repeat the embedding and the output head.
 */
const before: readonly Row[] = [
  { name: `${layer}.embed_tokens.weight`, shape: ["vocab_size", "hidden_size"], prediction: true },
  { ...norm(`${layer}.enorm`), prediction: true },
  { ...norm(`${layer}.hnorm`), prediction: true },
  { name: `${layer}.eh_proj.weight`, shape: ["hidden_size", "2 * hidden_size"], prediction: true },
];
const after: readonly Row[] = [
  { ...norm(`${layer}.shared_head.norm`), prediction: true },
  { name: `${layer}.shared_head.head.weight`, shape: ["vocab_size", "hidden_size"], prediction: true },
];
/** transformers' classes say 1, but have no such layers: what a config does not say it does not have. */
const predictionCount: Key = { kind: "count", absent: 0, none: 0, most: 64, aliases: ["num_mtp_layers"] };

/** DeepSeek-V3 and R1, and Kimi-K2, which is built alike. */
export const deepseekV3: Family = {
  classes: ["DeepseekV3"],
  keys: {
    ...decoderKeys,
    tie_word_embeddings: flag(false),
    attention_bias: flag(false),
    q_lora_rank: size(1536, { none: null }),
    kv_lora_rank: size(512),
    qk_nope_head_dim: size(128),
    qk_rope_head_dim: size(64),
    v_head_dim: size(128),
    moe_intermediate_size: size(2048),
    n_routed_experts: expertCount(256, "num_local_experts", "num_experts"),
    n_shared_experts: size(1, { none: null }),
    first_k_dense_replace: { kind: "count", absent: 3, none: 0 },
    moe_layer_freq: size(1),
    n_group: size(8, { none: null }),
    topk_method: { kind: "text", absent: null, none: null },
    num_nextn_predict_layers: predictionCount,
  },
  rows: decoder(before, latentAttention, routedExperts, [correction], sharedExperts, blockNorms, after),
  experts: "n_routed_experts",
  sparse: sparseAfterFirst,
  predictionLayers: "num_nextn_predict_layers",
  quantized: ["fp8"],
};

/** DeepSeek-V2: its router has no correction. */
export const deepseekV2: Family = {
  classes: ["DeepseekV2"],
  keys: {
    ...deepseekV3.keys,
    moe_intermediate_size: size(1407),
    n_routed_experts: expertCount(64, "num_local_experts", "num_experts"),
    n_shared_experts: size(2, { none: null }),
    first_k_dense_replace: { kind: "count", absent: 0, none: 0 },
    n_group: size(null, { none: null }),
  },
  rows: decoder(latentAttention, routedExperts, sharedExperts, blockNorms),
  experts: "n_routed_experts",
  sparse: sparseAfterFirst,
};

/** GLM-4.5 and later: DeepSeek's experts behind grouped-query attention. */
export const glm4Moe: Family = {
  classes: ["Glm4Moe"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads(8),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
    attention_bias: flag(false),
    use_qk_norm: flag(false),
    moe_intermediate_size: size(1408),
    n_routed_experts: expertCount(128, "num_local_experts", "num_experts"),
    n_shared_experts: size(1),
    first_k_dense_replace: { kind: "count", absent: 1 },
    n_group: size(1, { none: null }),
    num_nextn_predict_layers: predictionCount,
  },
  rows: decoder(
    before,
    attention({ bias: "attention_bias", norms: "head", normsWhen: "use_qk_norm" }),
    routedExperts,
    [correction],
    sharedExperts,
    blockNorms,
    after,
  ),
  experts: "n_routed_experts",
  sparse: sparseAfterFirst,
  predictionLayers: "num_nextn_predict_layers",
};
