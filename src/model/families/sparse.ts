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
  type Row,
  size,
} from "./table.ts";

const layer = "model.layers.{l}";
const mlp = `${layer}.mlp`;
const maxExperts = 65_536;

/** The number of experts, under each name that it has had. */
export const expertCount = (absent: number, ...aliases: readonly string[]): Key =>
  size(absent, { none: null, most: maxExperts, aliases });

/** Every `decoder_sparse_step`-th layer has experts, unless it is named in `mlp_only_layers`. */
function sparseByStep(config: Config, index: number): boolean {
  const dense = config.mlp_only_layers as readonly number[] | null;
  return (
    !dense?.includes(index) &&
    (config.num_experts as number) > 0 &&
    (index + 1) % (config.decoder_sparse_step as number) === 0
  );
}

const stepKeys = {
  decoder_sparse_step: size(1),
  mlp_only_layers: { kind: "list", absent: null, none: null },
} as const satisfies Record<string, Key>;

const router = (count: string): Row => ({
  name: `${mlp}.gate.weight`,
  shape: [count, "hidden_size"],
  when: "sparse",
});

export const qwen3Moe: Family = {
  classes: ["Qwen3Moe"],
  keys: {
    ...decoderKeys,
    ...stepKeys,
    num_key_value_heads: keyValueHeads(4),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
    attention_bias: flag(false),
    moe_intermediate_size: size(768),
    num_experts: expertCount(128, "num_local_experts"),
  },
  rows: decoder(
    attention({ bias: "attention_bias", outputBias: "attention_bias", norms: "head" }),
    gatedMlp(mlp, "intermediate_size", undefined, "!sparse"),
    [router("num_experts")],
    experts({
      checkpoint: { at: mlp, names: gateNames },
      count: "num_experts",
      intermediate: "moe_intermediate_size",
    }),
    blockNorms,
  ),
  experts: "num_experts",
  sparse: sparseByStep,
  quantized: ["fp8"],
};

/** Qwen1.5-MoE and Qwen2-MoE: one shared expert behind a gate of its own. */
export const qwen2Moe: Family = {
  classes: ["Qwen2Moe"],
  keys: {
    ...decoderKeys,
    ...stepKeys,
    num_key_value_heads: keyValueHeads(16),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
    qkv_bias: flag(true),
    moe_intermediate_size: size(1408),
    shared_expert_intermediate_size: size(5632),
    num_experts: expertCount(60, "num_local_experts"),
  },
  rows: decoder(
    attention({ bias: "qkv_bias" }),
    gatedMlp(mlp, "intermediate_size", undefined, "!sparse"),
    [router("num_experts")],
    experts({
      checkpoint: { at: mlp, names: gateNames },
      count: "num_experts",
      intermediate: "moe_intermediate_size",
    }),
    gatedMlp(`${mlp}.shared_expert`, "shared_expert_intermediate_size", undefined, "sparse"),
    [{ name: `${mlp}.shared_expert_gate.weight`, shape: ["1", "hidden_size"], when: "sparse" }],
    blockNorms,
  ),
  experts: "num_experts",
  sparse: sparseByStep,
};

/** Mixtral: published names differ from those in memory, for the router too. */
export const mixtral: Family = {
  classes: ["Mixtral"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads(8),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
    num_local_experts: expertCount(8, "num_experts"),
  },
  rows: decoder(
    attention({}),
    [
      {
        name: `${layer}.block_sparse_moe.gate.weight`,
        shape: ["num_local_experts", "hidden_size"],
        form: "checkpoint",
      },
      { ...router("num_local_experts"), form: "state_dict" },
    ],
    experts({
      checkpoint: { at: `${layer}.block_sparse_moe`, names: ["w1", "w3", "w2"] },
      count: "num_local_experts",
      intermediate: "intermediate_size",
    }),
    blockNorms,
  ),
  experts: "num_local_experts",
  sparse: () => true,
};

export const olmoe: Family = {
  classes: ["Olmoe"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads("num_attention_heads"),
    head_dim: headDim(evenHeads),
    tie_word_embeddings: flag(false),
    attention_bias: flag(false),
    num_experts: expertCount(64, "num_local_experts"),
  },
  rows: decoder(
    attention({ bias: "attention_bias", outputBias: "attention_bias", norms: "all" }),
    [router("num_experts")],
    experts({
      checkpoint: { at: mlp, names: gateNames },
      count: "num_experts",
      intermediate: "intermediate_size",
    }),
    blockNorms,
  ),
  experts: "num_experts",
  sparse: () => true,
};

/** gpt-oss: experts are three-dimensional in the checkpoint too, (in, out), gate and up interleaved. */
export const gptOss: Family = {
  classes: ["GptOss"],
  keys: {
    ...decoderKeys,
    num_key_value_heads: keyValueHeads(8),
    head_dim: headDim(64),
    tie_word_embeddings: flag(false),
    attention_bias: flag(true),
    num_local_experts: expertCount(128, "num_experts"),
  },
  rows: decoder(
    [{ name: `${layer}.self_attn.sinks`, shape: ["num_attention_heads"] }],
    attention({ bias: "attention_bias", outputBias: "attention_bias" }),
    [
      { name: `${mlp}.router.weight`, shape: ["num_local_experts", "hidden_size"] },
      { name: `${mlp}.router.bias`, shape: ["num_local_experts"] },
      ...packed("gate_up_proj", "2 * intermediate_size", "hidden_size"),
      ...packed("down_proj", "hidden_size", "intermediate_size"),
    ],
    blockNorms,
  ),
  experts: "num_local_experts",
  sparse: () => true,
  quantized: ["mxfp4"],
  refuse: (config) =>
    config.mxfp4 === true &&
    ((config.hidden_size as number) % 32 !== 0 || (config.intermediate_size as number) % 32 !== 0)
      ? "MXFP4 packs 32 numbers a block, and hidden_size or intermediate_size is not a multiple of 32"
      : undefined,
};

/** Plain, or as MXFP4 is published: blocks of 32 numbers in 16 bytes, (out, in), and a byte of scale for each. */
function packed(name: string, out: string, into: string): Row[] {
  const at = `${mlp}.experts.${name}`;
  return [
    { name: at, shape: ["num_local_experts", into, out], when: "!mxfp4" },
    {
      name: `${at}_blocks`,
      shape: ["num_local_experts", out, `${into} / 32`, "16"],
      when: "mxfp4",
      dtype: "uint8",
    },
    {
      name: `${at}_scales`,
      shape: ["num_local_experts", out, `${into} / 32`],
      when: "mxfp4",
      dtype: "uint8",
    },
    { name: `${at}_bias`, shape: ["num_local_experts", out] },
  ];
}
