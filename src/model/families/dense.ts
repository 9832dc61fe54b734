import {
  attention,
  blockNorms,
  decoder,
  decoderKeys,
  denseMlp,
  evenHeads,
  type Family,
  flag,
  fusedMlp,
  gatedMlp,
  headDim,
  keyValueHeads,
  linear,
  norm,
} from "./table.ts";

const layer = "model.layers.{l}";
const bias = "attention_bias";

/** Llama: one switch for all four biases, another for the feed-forward block. */
export const llama: Family = {
  classes: ["Llama"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads("num_attention_heads"),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
    attention_bias: flag(false),
    mlp_bias: flag(false),
  },
  rows: decoder(
    attention({ bias, outputBias: bias }),
    gatedMlp(`${layer}.mlp`, "intermediate_size", "mlp_bias"),
    blockNorms,
  ),
  quantized: ["fp8"],
};

export const mistral: Family = {
  classes: ["Mistral"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads(8),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
  },
  rows: decoder(attention({}), denseMlp, blockNorms),
  quantized: ["fp8"],
};

export const ministral3: Family = {
  ...mistral,
  classes: ["Ministral3"],
  keys: { ...mistral.keys, head_dim: headDim(128) },
};

/** Qwen2 and Qwen2.5: biases on q, k and v, always. */
export const qwen2: Family = {
  classes: ["Qwen2"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads(32),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
  },
  rows: decoder(attention({ bias: "always" }), denseMlp, blockNorms),
  quantized: ["fp8"],
};

/** Qwen3: norms over each head of q and k. */
export const qwen3: Family = {
  classes: ["Qwen3"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads(32),
    head_dim: headDim(128),
    tie_word_embeddings: flag(false),
    attention_bias: flag(false),
  },
  rows: decoder(attention({ bias, outputBias: bias, norms: "head" }), denseMlp, blockNorms),
  quantized: ["fp8"],
};

/** Phi-3: q, k and v are one projection in the checkpoint itself, gate and up another. */
export const phi3: Family = {
  classes: ["Phi3"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads("num_attention_heads"),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
  },
  rows: decoder(
    linear(`${layer}.self_attn.o_proj`, "hidden_size", "num_attention_heads * head_dim"),
    linear(
      `${layer}.self_attn.qkv_proj`,
      "num_attention_heads * head_dim + 2 * num_key_value_heads * head_dim",
      "hidden_size",
    ),
    fusedMlp(`${layer}.mlp`, "intermediate_size"),
    blockNorms,
  ),
};

const gemmaKeys = {
  ...decoderKeys,
  head_dim: headDim(256),
  tie_word_embeddings: flag(true),
  attention_bias: flag(false),
};

export const gemma: Family = {
  classes: ["Gemma"],
  keys: { ...gemmaKeys, num_key_value_heads: keyValueHeads(16) },
  rows: decoder(attention({ bias, outputBias: bias }), denseMlp, blockNorms),
};

const feedForwardNorms = [
  norm(`${layer}.pre_feedforward_layernorm`),
  norm(`${layer}.post_feedforward_layernorm`),
];

export const gemma2: Family = {
  classes: ["Gemma2"],
  keys: { ...gemmaKeys, num_key_value_heads: keyValueHeads(4) },
  rows: decoder(attention({ bias, outputBias: bias }), denseMlp, blockNorms, feedForwardNorms),
};

/** Gemma 3's language model; norms over each head of q and k beside Gemma 2's. */
export const gemma3Text: Family = {
  classes: ["Gemma3", "Gemma3Text"],
  keys: { ...gemmaKeys, num_key_value_heads: keyValueHeads(4) },
  rows: decoder(attention({ bias, outputBias: bias, norms: "head" }), denseMlp, blockNorms, feedForwardNorms),
};

const glmKeys = {
  ...decoderKeys,
  num_key_value_heads: keyValueHeads(2),
  head_dim: headDim(128),
  tie_word_embeddings: flag(false),
  attention_bias: flag(true),
};

export const glm: Family = {
  classes: ["Glm"],
  keys: glmKeys,
  rows: decoder(attention({ bias }), fusedMlp(`${layer}.mlp`, "intermediate_size"), blockNorms),
};

/** GLM-4: two more norms, after attention and after the feed-forward block. */
export const glm4: Family = {
  classes: ["Glm4"],
  keys: glmKeys,
  rows: decoder(attention({ bias }), fusedMlp(`${layer}.mlp`, "intermediate_size"), blockNorms, [
    norm(`${layer}.post_self_attn_layernorm`),
    norm(`${layer}.post_mlp_layernorm`),
  ]),
};

const afterNorms = [norm(`${layer}.post_attention_layernorm`), norm(`${layer}.post_feedforward_layernorm`)];

/** OLMo 2 and 3: norms over all heads together, and after each block in place of before it. */
export const olmo2: Family = {
  classes: ["Olmo2"],
  keys: { ...llama.keys },
  rows: decoder(attention({ bias, outputBias: bias, norms: "all" }), denseMlp, afterNorms),
};
export const olmo3: Family = { ...olmo2, classes: ["Olmo3"] };

export const smollm3: Family = {
  classes: ["SmolLM3"],
  keys: { ...llama.keys, num_key_value_heads: keyValueHeads(4), tie_word_embeddings: flag(true) },
  rows: llama.rows,
};

export const granite: Family = { classes: ["Granite"], keys: llama.keys, rows: llama.rows };

export const seedOss: Family = {
  classes: ["SeedOss"],
  keys: {
    ...llama.keys,
    num_key_value_heads: keyValueHeads(8),
    head_dim: headDim(128),
    attention_bias: flag(true),
    attention_out_bias: flag(false),
  },
  rows: decoder(
    attention({ bias, outputBias: "attention_out_bias" }),
    gatedMlp(`${layer}.mlp`, "intermediate_size", "mlp_bias"),
    blockNorms,
  ),
};
