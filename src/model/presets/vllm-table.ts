/**
 * How vLLM's model classes hold the tensors of a checkpoint, family by family, right after `load_weights`: rows for the rules
 * of `docs/parts.md`. Compared with the layouts that vLLM's own loaders made (test/golden/vllm_layouts.jsonl); the facts of
 * Phi-3, Qwen2-MoE and GLM-4-MoE, and what the others refuse, are those of their classes in vLLM of the same commit.
 */
export interface EngineRow {
  readonly match: string;
  readonly into?: string;
  readonly aliases?: readonly string[];
  readonly order?: number;
  /**
   * `column` and `row`: dimension 0 or 1 over tensor parallelism; `keyValue`: as column, each head on several ranks if there
   * are fewer heads than ranks; `shared`: as column or row unless shared experts are replicated; `vocabulary`: padded rows.
   */
  readonly cut?: Cut;
  /** A condition, as those of a family's rows. */
  readonly when?: string;
  /** An expression of the config: rows that belong together. */
  readonly unit?: string;
  readonly dtype?: "float32";
  /** A range of dimension `dim`, from and length as expressions. */
  readonly slice?: { readonly dim: number; readonly start: string; readonly length: string };
  /** Experts: one tensor each, or along dimension 0 of the tensor. */
  readonly experts?: "each" | "axis";
  readonly axes?: readonly number[];
  /** Only the first rank of the experts' tensor parallelism holds it. */
  readonly firstRankOnly?: boolean;
  readonly constant?: number;
  readonly drop?: string;
}

export type Cut =
  | "replicate"
  | "column"
  | "row"
  | "keyValue"
  | "vocabulary"
  | "sharedColumn"
  | "sharedRow"
  | "experts"
  | "expertsDim0"
  | "expertsDim1"
  | "expertsDim2";

export interface EngineTable {
  /** What is called otherwise than in the checkpoint. */
  readonly embedding?: string;
  /** Rows of a layer. */
  readonly layer: readonly EngineRow[];
  /** Pipeline stages: each has only its ends, or all have the embedding, the last norm and the head. */
  readonly ends: "split" | "everywhere";
  /** The last stage holds the embedding too if the head is tied to it. */
  readonly tiedLast?: boolean;
  /** Heads of keys and values may be fewer than ranks. */
  readonly replicatesKeyValues: boolean;
  /** The class supports EPLB's redundant experts. */
  readonly redundantExperts?: boolean;
  /** The class refuses more ranks of tensor parallelism than experts. */
  readonly ranksWithinExperts?: boolean;
  /** The class stops where a stage, or the whole model, has no layer with experts. */
  readonly expertsInEachStage?: boolean;
  /** Its loader gives each rank the same number of experts. */
  readonly evenExperts?: boolean;
  /** The class asks for an intermediate size that all ranks together divide, even where none of them cuts it. */
  readonly dividesByWorld?: boolean;
  /**
   * What the class has built in, whatever a config says: the value of a key, or an expression of other keys. With another one
   * it would have parameters that the checkpoint does not fill, or none for what the checkpoint has.
   */
  readonly builtIn?: Readonly<Record<string, boolean | string>>;
  /** Keys without which the class has no parameters for what the family's checkpoints have: their values, and what for. */
  readonly needs?: Readonly<Record<string, { readonly value: string; readonly what: string }>>;
  readonly quantized: boolean;
}

const attn = "{L}.self_attn";

function qkv(to = attn): EngineRow[] {
  const into = `${to}.qkv_proj.{s}`;
  return [
    { match: `${attn}.q_proj.{s}`, into, order: 0, cut: "column", unit: "head_dim" },
    { match: `${attn}.k_proj.{s}`, into, order: 1, cut: "keyValue", unit: "head_dim" },
    { match: `${attn}.v_proj.{s}`, into, order: 2, cut: "keyValue", unit: "head_dim" },
    { match: `${attn}.o_proj.{s}`, into: `${to}.o_proj.{s}`, order: 0, cut: "row" },
  ];
}

/** An attention layer of a float8 model has four scalars, which say that the checkpoint has no scales of a cache. */
const cacheScales: readonly EngineRow[] = ["q", "k", "v", "prob"].map((name) => ({
  match: `${attn}.o_proj.weight`,
  into: `${attn}.attn.${name}_scale`,
  constant: -1,
  when: "fp8",
}));

const headNorms = [replicated(`${attn}.q_norm.weight`), replicated(`${attn}.k_norm.weight`)];
const norms = (...names: readonly string[]) => names.map((name) => replicated(`{L}.${name}.weight`));
const blockNorms = norms("input_layernorm", "post_attention_layernorm");

function replicated(match: string, more: Partial<EngineRow> = {}): EngineRow {
  return { match, into: match, cut: "replicate", ...more };
}

function gatedMlp(name: string, cuts: readonly [Cut, Cut] = ["column", "row"], alias?: string): EngineRow[] {
  const aliases = (part: string) => (alias === undefined ? {} : { aliases: [`${alias}.${part}.{s}`] });
  const into = `${name}.gate_up_proj.{s}`;
  return [
    { match: `${name}.gate_proj.{s}`, into, order: 0, cut: cuts[0], ...aliases("gate_up_proj") },
    { match: `${name}.up_proj.{s}`, into, order: 1, cut: cuts[0], ...aliases("gate_up_proj") },
    {
      match: `${name}.down_proj.{s}`,
      into: `${name}.down_proj.{s}`,
      order: 0,
      cut: cuts[1],
      ...aliases("down_proj"),
    },
  ];
}

const mlp = "{L}.mlp";

/** Experts one by one: gate and up of an expert are one, under each other. */
function singleExperts(
  from: string,
  to: string,
  [gate, up, down]: readonly [string, string, string],
): EngineRow[] {
  const at = `${to}.experts.routed_experts`;
  const one = `${from}.experts.{e}`;
  return [
    { match: `${one}.${gate}.input_scale`, drop: "the engine keeps that of the other half" },
    { match: `${one}.${up}.input_scale`, into: `${at}.w13_input_scale`, cut: "experts", experts: "each" },
    { match: `${one}.${gate}.{s}`, into: `${at}.w13_{s}`, order: 0, cut: "expertsDim0", experts: "each" },
    { match: `${one}.${up}.{s}`, into: `${at}.w13_{s}`, order: 1, cut: "expertsDim0", experts: "each" },
    { match: `${one}.${down}.{s}`, into: `${at}.w2_{s}`, cut: "expertsDim1", experts: "each" },
  ];
}

/** The same out of three dimensions, as transformers 5 holds them. */
function fusedExperts(from: string, to: string, intermediate: string): EngineRow[] {
  const into = `${to}.experts.routed_experts.w13_weight`;
  const match = `${from}.experts.gate_up_proj`;
  const half = { match, into, cut: "expertsDim1", experts: "axis" } as const;
  return [
    { ...half, order: 0, slice: { dim: 1, start: "0", length: intermediate } },
    { ...half, order: 1, slice: { dim: 1, start: intermediate, length: intermediate } },
    {
      match: `${from}.experts.down_proj`,
      into: `${to}.experts.routed_experts.w2_weight`,
      cut: "expertsDim2",
      experts: "axis",
    },
  ];
}

const gates = ["gate_proj", "up_proj", "down_proj"] as const;
const llamaMlp = gatedMlp(mlp);

const llama: EngineTable = {
  layer: [...qkv(), ...cacheScales, ...llamaMlp, ...blockNorms],
  ends: "split",
  tiedLast: true,
  replicatesKeyValues: true,
  quantized: true,
};

/** Biases that a checkpoint with `attention_bias` has and the class does not: vLLM's loader passes over them. */
function withoutBias(...modules: readonly string[]): EngineRow[] {
  return modules.map((name) => ({
    match: `${attn}.${name}.bias`,
    drop: "vLLM's class has no bias there, and its loader passes over it",
    when: "attention_bias",
  }));
}

const qwen2: EngineTable = { ...llama, builtIn: { head_dim: "hidden_size / num_attention_heads" } };

const qwen3: EngineTable = {
  ...llama,
  layer: [...withoutBias("o_proj"), ...qkv(), ...cacheScales, ...headNorms, ...llamaMlp, ...blockNorms],
};

const qwen3Moe: EngineTable = {
  ...qwen3,
  layer: [
    ...withoutBias("o_proj"),
    ...qkv(),
    ...cacheScales,
    ...headNorms,
    replicated(`${mlp}.gate.weight`, { aliases: [`${mlp}.experts.gate.weight`] }),
    ...singleExperts(mlp, mlp, gates),
    ...fusedExperts(mlp, mlp, "moe_intermediate_size"),
    ...llamaMlp,
    ...blockNorms,
  ],
  ends: "everywhere",
  redundantExperts: true,
  ranksWithinExperts: true,
  expertsInEachStage: true,
};

/** The shared expert's gate is part of it, and of the experts that run it. */
const qwen2Moe: EngineTable = {
  ...llama,
  layer: [
    ...qkv(),
    replicated(`${mlp}.gate.weight`),
    replicated(`${mlp}.shared_expert_gate.weight`, {
      aliases: [
        `${mlp}.shared_expert.expert_gate.weight`,
        `${mlp}.experts._shared_experts._layer.expert_gate.weight`,
      ],
    }),
    ...gatedMlp(`${mlp}.shared_expert`, ["column", "row"], `${mlp}.experts._shared_experts._layer`),
    ...singleExperts(mlp, mlp, gates),
    ...fusedExperts(mlp, mlp, "moe_intermediate_size"),
    ...llamaMlp,
    ...blockNorms,
  ],
  ends: "everywhere",
  ranksWithinExperts: true,
  builtIn: { qkv_bias: true, head_dim: "hidden_size / num_attention_heads" },
  quantized: false,
};

const sparseMoe = "{L}.block_sparse_moe";
const mixtral: EngineTable = {
  layer: [
    ...qkv(),
    replicated(`${sparseMoe}.gate.weight`),
    { match: `${mlp}.gate.weight`, into: `${sparseMoe}.gate.weight`, cut: "replicate" },
    ...singleExperts(sparseMoe, sparseMoe, ["w1", "w3", "w2"]),
    ...fusedExperts(mlp, sparseMoe, "intermediate_size"),
    ...blockNorms,
  ],
  ends: "everywhere",
  replicatesKeyValues: true,
  redundantExperts: true,
  quantized: false,
};

/** q, k and v out of one tensor of the checkpoint, gate and up out of another: each range is cut by itself. */
const phi3: EngineTable = {
  ...llama,
  layer: [
    ...(
      [
        ["column", "0", "num_attention_heads * head_dim"],
        ["keyValue", "num_attention_heads * head_dim", "num_key_value_heads * head_dim"],
        [
          "keyValue",
          "num_attention_heads * head_dim + num_key_value_heads * head_dim",
          "num_key_value_heads * head_dim",
        ],
      ] as const
    ).map(
      ([cut, start, length], order): EngineRow => ({
        match: `${attn}.qkv_proj.weight`,
        into: `${attn}.qkv_proj.weight`,
        order,
        cut,
        unit: "head_dim",
        slice: { dim: 0, start, length },
      }),
    ),
    { match: `${attn}.o_proj.weight`, into: `${attn}.o_proj.weight`, order: 0, cut: "row" },
    ...["0", "intermediate_size"].map(
      (start, order): EngineRow => ({
        match: `${mlp}.gate_up_proj.weight`,
        into: `${mlp}.gate_up_proj.weight`,
        order,
        cut: "column",
        slice: { dim: 0, start, length: "intermediate_size" },
      }),
    ),
    { match: `${mlp}.down_proj.weight`, into: `${mlp}.down_proj.weight`, order: 0, cut: "row" },
    ...blockNorms,
  ],
  quantized: false,
};

const gemma3: EngineTable = {
  layer: [
    ...qkv(),
    ...headNorms,
    ...llamaMlp,
    ...blockNorms,
    ...norms("pre_feedforward_layernorm", "post_feedforward_layernorm"),
  ],
  ends: "everywhere",
  replicatesKeyValues: true,
  quantized: false,
};

/** Other names, experts transposed with gate and up interleaved as in the checkpoint, a bias that is added once. */
const gptOss: EngineTable = {
  embedding: "model.embedding.weight",
  layer: [
    { match: `${attn}.sinks`, into: "{L}.attn.sinks", cut: "column" },
    ...qkv("{L}.attn"),
    replicated(`${mlp}.router.weight`),
    replicated(`${mlp}.router.bias`),
    ...(
      [
        ["gate_up_proj", "w13_weight", "expertsDim2", [0, 2, 1]],
        ["gate_up_proj_bias", "w13_bias", "expertsDim1", undefined],
        ["down_proj", "w2_weight", "expertsDim1", [0, 2, 1]],
      ] as const
    ).map(
      ([from, to, cut, axes]): EngineRow => ({
        match: `${mlp}.experts.${from}`,
        into: `${mlp}.experts.routed_experts.${to}`,
        cut,
        experts: "axis",
        ...(axes !== undefined && { axes }),
      }),
    ),
    {
      match: `${mlp}.experts.down_proj_bias`,
      into: `${mlp}.experts.routed_experts.w2_bias`,
      cut: "experts",
      experts: "axis",
      firstRankOnly: true,
    },
    ...blockNorms,
  ],
  ends: "everywhere",
  replicatesKeyValues: false,
  evenExperts: true,
  dividesByWorld: true,
  builtIn: { attention_bias: true, tie_word_embeddings: false },
  quantized: false,
};

const router = (...gateAliases: readonly string[]): EngineRow[] => [
  replicated(`${mlp}.gate.e_score_correction_bias`, {
    dtype: "float32",
    aliases: [
      ...gateAliases.map((alias) => `${alias}.e_score_correction_bias`),
      `${mlp}.experts.routed_experts.e_score_correction_bias`,
    ],
  }),
  ...gatedMlp(
    `${mlp}.shared_experts`,
    ["sharedColumn", "sharedRow"],
    `${mlp}.experts._shared_experts._layer`,
  ),
  ...singleExperts(mlp, mlp, gates),
  ...fusedExperts(mlp, mlp, "moe_intermediate_size"),
  ...llamaMlp,
  ...blockNorms,
];

/** Parameters of latent attention are those of the module that runs it, too. */
function latent(name: string, cut: Cut, more: Partial<EngineRow> = {}): EngineRow {
  const into = more.into ?? name;
  return {
    match: `${attn}.${name}.{s}`,
    order: 0,
    cut,
    ...more,
    into: `${attn}.${into}.{s}`,
    aliases: [`${attn}.mla_attn.${into}.{s}`],
  };
}

const deepseekV3: EngineTable = {
  layer: [
    ...withoutBias("q_a_proj", "kv_a_proj_with_mqa", "o_proj"),
    latent("q_a_proj", "replicate", { into: "fused_qkv_a_proj", when: "q_lora_rank" }),
    latent("kv_a_proj_with_mqa", "replicate", { into: "fused_qkv_a_proj", order: 1, when: "q_lora_rank" }),
    latent("q_proj", "column", { when: "!q_lora_rank" }),
    latent("kv_a_proj_with_mqa", "replicate", { when: "!q_lora_rank" }),
    latent("q_a_layernorm", "replicate"),
    latent("q_b_proj", "column", { unit: "qk_nope_head_dim + qk_rope_head_dim" }),
    latent("kv_a_layernorm", "replicate"),
    latent("kv_b_proj", "column", { unit: "qk_nope_head_dim + v_head_dim" }),
    latent("o_proj", "row"),
    replicated(`${mlp}.gate.weight`, { aliases: [`${mlp}.experts.gate.weight`] }),
    ...router(`${mlp}.experts.gate`),
  ],
  ends: "split",
  replicatesKeyValues: true,
  redundantExperts: true,
  builtIn: { tie_word_embeddings: false },
  needs: { topk_method: { value: "noaux_tc", what: "mlp.gate.e_score_correction_bias" } },
  quantized: true,
};

/** Its router computes in float32, whatever the model's type; its shared experts are never replicated. */
const glm4Moe: EngineTable = {
  layer: [
    ...qkv(),
    ...headNorms,
    replicated(`${mlp}.gate.weight`, { dtype: "float32" }),
    ...router().map(
      (row): EngineRow =>
        row.cut === "sharedColumn" || row.cut === "sharedRow"
          ? { ...row, cut: row.cut === "sharedColumn" ? "column" : "row" }
          : row,
    ),
  ],
  ends: "split",
  replicatesKeyValues: true,
  redundantExperts: true,
  expertsInEachStage: true,
  builtIn: { tie_word_embeddings: false },
  quantized: false,
};

/** By `model_type`. */
export const vllmTables: Readonly<Record<string, EngineTable>> = {
  llama,
  mistral: llama,
  qwen2,
  qwen3,
  qwen3_moe: qwen3Moe,
  qwen2_moe: qwen2Moe,
  mixtral,
  phi3,
  gemma3_text: gemma3,
  gpt_oss: gptOss,
  glm4_moe: glm4Moe,
  deepseek_v3: deepseekV3,
  kimi_k2: deepseekV3,
};
