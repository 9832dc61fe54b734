import type { DeepseekConfig } from "./config-schema.ts";
import type { TensorList } from "./tensor-list.ts";

/**
 * DeepSeek-V3 and Kimi-K2. Multi-token prediction layers follow the last layer, under the next numbers; like the
 * published checkpoints they repeat the embedding and the output head.
 */
export function deepseekTensors(list: TensorList, config: DeepseekConfig, mtp: boolean): void {
  const { hidden_size: hidden, vocab_size: vocabulary, num_hidden_layers: layers } = config;
  list.add("model.embed_tokens.weight", [vocabulary, hidden]);
  for (let layer = 0; layer < layers; layer++) decoderLayer(list, config, layer);
  for (let layer = layers; mtp && layer < layers + config.num_nextn_predict_layers; layer++) {
    const name = `model.layers.${layer}`;
    list.add(`${name}.embed_tokens.weight`, [vocabulary, hidden]);
    list.norm(`${name}.enorm`, hidden);
    list.norm(`${name}.hnorm`, hidden);
    list.add(`${name}.eh_proj.weight`, [hidden, 2 * hidden]);
    decoderLayer(list, config, layer);
    list.norm(`${name}.shared_head.norm`, hidden);
    list.add(`${name}.shared_head.head.weight`, [vocabulary, hidden]);
  }
  list.norm("model.norm", hidden);
  if (!config.tie_word_embeddings) list.add("lm_head.weight", [vocabulary, hidden]);
}

function decoderLayer(list: TensorList, config: DeepseekConfig, layer: number): void {
  const name = `model.layers.${layer}`;
  latentAttention(list, `${name}.self_attn`, config);
  if (hasExperts(config, layer)) mixtureOfExperts(list, `${name}.mlp`, config);
  else list.gatedMlp(`${name}.mlp`, config.hidden_size, config.intermediate_size);
  list.norm(`${name}.input_layernorm`, config.hidden_size);
  list.norm(`${name}.post_attention_layernorm`, config.hidden_size);
}

function hasExperts(config: DeepseekConfig, layer: number): boolean {
  const { n_routed_experts: experts, first_k_dense_replace: dense, moe_layer_freq: frequency } = config;
  return experts != null && layer >= dense && layer % frequency === 0;
}

/** Queries, keys and values come out of low-rank projections; the rotary part of the keys is shared by all heads. */
function latentAttention(list: TensorList, name: string, config: DeepseekConfig): void {
  const { hidden_size: hidden, num_attention_heads: heads, attention_bias: bias } = config;
  const { q_lora_rank: queryRank, kv_lora_rank: valueRank, v_head_dim: valueDim } = config;
  const queryDim = config.qk_nope_head_dim + config.qk_rope_head_dim;
  if (queryRank == null) {
    list.linear(`${name}.q_proj`, heads * queryDim, hidden);
  } else {
    list.linear(`${name}.q_a_proj`, queryRank, hidden, bias);
    list.norm(`${name}.q_a_layernorm`, queryRank);
    list.linear(`${name}.q_b_proj`, heads * queryDim, queryRank);
  }
  list.linear(`${name}.kv_a_proj_with_mqa`, valueRank + config.qk_rope_head_dim, hidden, bias);
  list.norm(`${name}.kv_a_layernorm`, valueRank);
  list.linear(`${name}.kv_b_proj`, heads * (config.qk_nope_head_dim + valueDim), valueRank);
  list.linear(`${name}.o_proj`, hidden, heads * valueDim, bias);
}

/** The router and its float32 correction are never quantized. */
function mixtureOfExperts(list: TensorList, name: string, config: DeepseekConfig): void {
  const { hidden_size: hidden, moe_intermediate_size: intermediate, n_shared_experts: shared } = config;
  const experts = config.n_routed_experts ?? 0;
  for (let expert = 0; expert < experts; expert++) {
    list.gatedMlp(`${name}.experts.${expert}`, hidden, intermediate);
  }
  list.add(`${name}.gate.weight`, [experts, hidden]);
  if (config.topk_method === "noaux_tc")
    list.add(`${name}.gate.e_score_correction_bias`, [experts], "float32");
  if (shared != null) list.gatedMlp(`${name}.shared_experts`, hidden, intermediate * shared);
}
