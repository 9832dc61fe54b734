/** Small configs with distinct values, to be listed by our tables and by transformers alike. */
export interface FamilyQuestion {
  readonly name: string;
  readonly config: Readonly<Record<string, unknown>>;
  /** The class of transformers that saves it. */
  readonly architecture: string;
}

const sizes = {
  vocab_size: 130,
  hidden_size: 48,
  intermediate_size: 80,
  num_hidden_layers: 2,
  num_attention_heads: 6,
  num_key_value_heads: 3,
  pad_token_id: 0,
};
const latent = {
  q_lora_rank: 20,
  kv_lora_rank: 12,
  qk_nope_head_dim: 10,
  qk_rope_head_dim: 4,
  v_head_dim: 14,
};
const grouped = {
  moe_intermediate_size: 24,
  n_routed_experts: 4,
  n_shared_experts: 1,
  first_k_dense_replace: 1,
  n_group: 2,
  topk_group: 1,
  num_experts_per_tok: 2,
};

type Variant = Readonly<Record<string, unknown>>;

/** By model_type: transformers' class, what each config of it needs, and what varies. */
const families: Readonly<Record<string, readonly [string, Variant, readonly Variant[]]>> = {
  llama: ["Llama", {}, [{ attention_bias: true }, { mlp_bias: true }, { head_dim: 20 }]],
  mistral: ["Mistral", {}, [{ head_dim: 20 }]],
  ministral3: ["Ministral3", {}, [{ head_dim: 20 }]],
  mixtral: ["Mixtral", { num_local_experts: 3 }, [{ head_dim: 20 }]],
  qwen2: ["Qwen2", {}, []],
  qwen2_moe: [
    "Qwen2Moe",
    { moe_intermediate_size: 24, shared_expert_intermediate_size: 40, num_experts: 3 },
    [{ mlp_only_layers: [0] }, { decoder_sparse_step: 2 }, { qkv_bias: false }],
  ],
  qwen3: ["Qwen3", {}, [{ head_dim: 20 }, { attention_bias: true }]],
  qwen3_moe: [
    "Qwen3Moe",
    { moe_intermediate_size: 24, num_experts: 3 },
    [{ mlp_only_layers: [1] }, { decoder_sparse_step: 2 }, { head_dim: 20, attention_bias: true }],
  ],
  phi3: ["Phi3", {}, []],
  gemma: ["Gemma", {}, [{ head_dim: 20, attention_bias: true }]],
  gemma2: ["Gemma2", {}, [{ head_dim: 20, attention_bias: true }]],
  gemma3_text: ["Gemma3", {}, [{ head_dim: 20, attention_bias: true }]],
  glm: ["Glm", {}, [{ head_dim: 20, attention_bias: false }]],
  glm4: ["Glm4", {}, [{ head_dim: 20, attention_bias: false }]],
  glm4_moe: [
    "Glm4Moe",
    grouped,
    [
      { use_qk_norm: true, attention_bias: true },
      { n_shared_experts: 2, head_dim: 20 },
    ],
  ],
  gpt_oss: ["GptOss", { num_local_experts: 3 }, [{ head_dim: 20, attention_bias: false }]],
  deepseek_v2: ["DeepseekV2", { ...latent, ...grouped }, [{ q_lora_rank: null }, { attention_bias: true }]],
  deepseek_v3: [
    "DeepseekV3",
    { ...latent, ...grouped },
    [{ q_lora_rank: null, n_shared_experts: 3 }, { attention_bias: true }, { first_k_dense_replace: 0 }],
  ],
  olmo2: ["Olmo2", {}, [{ attention_bias: true }]],
  olmo3: ["Olmo3", {}, [{ attention_bias: true }]],
  olmoe: ["Olmoe", { num_experts: 3 }, [{ attention_bias: true }]],
  granite: ["Granite", {}, [{ attention_bias: true, mlp_bias: true }]],
  smollm3: ["SmolLM3", {}, [{ attention_bias: true, mlp_bias: true }]],
  seed_oss: [
    "SeedOss",
    {},
    [{ attention_bias: false, attention_out_bias: true, mlp_bias: true, head_dim: 20 }],
  ],
};

/** Heads that transformers has no class of, by the family. */
const without: Readonly<Record<string, readonly string[]>> = {
  ForTokenClassification: ["gemma3_text", "glm4_moe", "deepseek_v2", "olmo2", "olmo3", "olmoe", "granite"],
  ForSequenceClassification: ["glm4_moe", "olmoe", "granite"],
};

/** Every family: as its class fills it in, each variant, tied or not, and with each head. */
export const familyQuestions: readonly FamilyQuestion[] = Object.entries(families).flatMap(
  ([model_type, [className, needed, variants]]) => {
    const base = { model_type, ...sizes, ...needed };
    const { num_key_value_heads: _, ...fewer } = base;
    const causal = `${className}ForCausalLM`;
    const questions: FamilyQuestion[] = [
      { name: `${model_type}`, config: base, architecture: causal },
      { name: `${model_type}, tied`, config: { ...base, tie_word_embeddings: true }, architecture: causal },
      {
        name: `${model_type}, untied`,
        config: { ...base, tie_word_embeddings: false },
        architecture: causal,
      },
      // Classes differ in how many heads of keys and values there are unless the config says.
      ...(/deepseek/.test(model_type)
        ? []
        : [
            {
              name: `${model_type}, heads by default`,
              config: { ...fewer, num_attention_heads: 32, hidden_size: 64 },
              architecture: causal,
            },
          ]),
      ...variants.map((variant) => ({
        name: `${model_type}, ${JSON.stringify(variant)}`,
        config: { ...base, ...variant },
        architecture: causal,
      })),
    ];
    const body = model_type === "gemma3_text" ? "Gemma3Text" : className;
    questions.push({ name: `${model_type}, base`, config: base, architecture: `${body}Model` });
    for (const head of ["ForSequenceClassification", "ForTokenClassification"]) {
      if (without[head]?.includes(model_type)) continue;
      questions.push({
        name: `${model_type}, ${head}`,
        config: { ...base, id2label: { 0: "a", 1: "b", 2: "c" } },
        architecture: `${head === "ForSequenceClassification" ? body : className}${head}`,
      });
    }
    if (model_type === "llama" || model_type === "qwen3") {
      questions.push({
        name: `${model_type}, ForQuestionAnswering`,
        config: base,
        architecture: `${className}ForQuestionAnswering`,
      });
    }
    return questions;
  },
);
