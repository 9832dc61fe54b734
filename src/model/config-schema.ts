import { z } from "zod";

/** The most that a size in a config.json may be: beyond it, products would not be exact. */
const maxSize = 2 ** 31;
const size = z.number().int().min(1).max(maxSize);
const count = z.number().int().min(0).max(maxSize);
const layers = z.number().int().min(1).max(4096);
const experts = z.number().int().min(1).max(65_536);

/** What every family needs. Unknown keys are Hugging Face's matter and ignored. */
const commonShape = {
  vocab_size: size,
  hidden_size: size,
  num_hidden_layers: layers,
  num_attention_heads: size,
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().default(false),
};

const denseShape = {
  ...commonShape,
  intermediate_size: size,
  num_key_value_heads: size.optional(),
  head_dim: size.nullish(),
};

/** `head_dim` and `num_key_value_heads` default to hidden_size / heads and to the heads, as in Hugging Face's classes. */
export const denseSchema = z.object({ ...denseShape, mlp_bias: z.boolean().default(false) });

export const qwen3MoeSchema = z.object({
  ...denseShape,
  moe_intermediate_size: size,
  num_experts: experts,
  decoder_sparse_step: size.default(1),
  mlp_only_layers: z.array(count).nullish(),
});

export const deepseekSchema = z.object({
  ...commonShape,
  intermediate_size: size,
  q_lora_rank: size.nullish(),
  kv_lora_rank: size,
  qk_nope_head_dim: size,
  qk_rope_head_dim: size,
  v_head_dim: size,
  n_routed_experts: experts.nullish(),
  n_shared_experts: size.nullish(),
  moe_intermediate_size: size,
  first_k_dense_replace: count.default(0),
  moe_layer_freq: size.default(1),
  topk_method: z.string().default("noaux_tc"),
  num_nextn_predict_layers: z.number().int().min(0).max(64).default(0),
});

export const headSchema = z.object({
  model_type: z.string(),
  torch_dtype: z.string().nullish(),
  dtype: z.string().nullish(),
  quantization_config: z
    .object({ weight_block_size: z.tuple([size, size]).nullish(), quant_method: z.string().nullish() })
    .nullish(),
});

export type DenseConfig = z.infer<typeof denseSchema>;
export type Qwen3MoeConfig = z.infer<typeof qwen3MoeSchema>;
export type DeepseekConfig = z.infer<typeof deepseekSchema>;
export type HeadConfig = z.infer<typeof headSchema>;
