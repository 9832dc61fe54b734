import type { DenseConfig, Qwen3MoeConfig } from "./config-schema.ts";
import type { TensorList } from "./tensor-list.ts";

/** How the families differ that share Llama's skeleton. */
interface AttentionTraits {
  /** Biases on q, k and v; on o. */
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  /** A norm over each head of q and of k. */
  readonly headNorms: boolean;
}

/** Llama: one switch for all four biases, another for the feed-forward block. */
export function llamaTensors(list: TensorList, config: DenseConfig): void {
  const traits = { qkvBias: config.attention_bias, outputBias: config.attention_bias, headNorms: false };
  decoderTensors(list, config, traits, denseMlp(list, config, config.mlp_bias));
}

/** Qwen2 and Qwen2.5: biases on q, k and v, always. */
export function qwen2Tensors(list: TensorList, config: DenseConfig): void {
  decoderTensors(
    list,
    config,
    { qkvBias: true, outputBias: false, headNorms: false },
    denseMlp(list, config),
  );
}

/** Qwen3: norms over the heads of q and k. */
export function qwen3Tensors(list: TensorList, config: DenseConfig): void {
  decoderTensors(list, config, qwen3Traits(config), denseMlp(list, config));
}

/** Qwen3-MoE: every `decoder_sparse_step`-th layer has experts, unless it is named in `mlp_only_layers`. */
export function qwen3MoeTensors(list: TensorList, config: Qwen3MoeConfig): void {
  const dense = new Set(config.mlp_only_layers ?? []);
  decoderTensors(list, config, qwen3Traits(config), (name, layer) => {
    if (dense.has(layer) || (layer + 1) % config.decoder_sparse_step !== 0) {
      list.gatedMlp(name, config.hidden_size, config.intermediate_size);
      return;
    }
    list.add(`${name}.gate.weight`, [config.num_experts, config.hidden_size]);
    for (let expert = 0; expert < config.num_experts; expert++) {
      list.gatedMlp(`${name}.experts.${expert}`, config.hidden_size, config.moe_intermediate_size);
    }
  });
}

function qwen3Traits(config: { readonly attention_bias: boolean }): AttentionTraits {
  return { qkvBias: config.attention_bias, outputBias: config.attention_bias, headNorms: true };
}

function denseMlp(list: TensorList, config: DenseConfig, bias = false): (name: string) => void {
  return (name) => list.gatedMlp(name, config.hidden_size, config.intermediate_size, bias);
}

function decoderTensors(
  list: TensorList,
  config: DenseConfig | Qwen3MoeConfig,
  traits: AttentionTraits,
  mlp: (name: string, layer: number) => void,
): void {
  const { hidden_size: hidden, vocab_size: vocabulary } = config;
  list.add("model.embed_tokens.weight", [vocabulary, hidden]);
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const name = `model.layers.${layer}`;
    attention(list, `${name}.self_attn`, config, traits);
    mlp(`${name}.mlp`, layer);
    list.norm(`${name}.input_layernorm`, hidden);
    list.norm(`${name}.post_attention_layernorm`, hidden);
  }
  list.norm("model.norm", hidden);
  if (!config.tie_word_embeddings) list.add("lm_head.weight", [vocabulary, hidden]);
}

function attention(
  list: TensorList,
  name: string,
  config: DenseConfig | Qwen3MoeConfig,
  traits: AttentionTraits,
): void {
  const { hidden_size: hidden, num_attention_heads: heads } = config;
  const headDim = config.head_dim ?? hidden / heads;
  const keyValueHeads = config.num_key_value_heads ?? heads;
  list.linear(`${name}.q_proj`, heads * headDim, hidden, traits.qkvBias);
  list.linear(`${name}.k_proj`, keyValueHeads * headDim, hidden, traits.qkvBias);
  list.linear(`${name}.v_proj`, keyValueHeads * headDim, hidden, traits.qkvBias);
  list.linear(`${name}.o_proj`, hidden, heads * headDim, traits.outputBias);
  if (traits.headNorms) {
    list.norm(`${name}.q_norm`, headDim);
    list.norm(`${name}.k_norm`, headDim);
  }
}
