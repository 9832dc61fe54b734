import { describe, expect, test } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { type Model, modelOf } from "../../src/model/config.ts";
import { applyParts } from "../../src/model/parts/apply.ts";
import { LocalLayouts } from "../../src/model/parts/local.ts";
import { proveParts } from "../../src/model/parts/proof.ts";
import { rankParameters } from "../../src/model/parts/rank.ts";
import { presetSide } from "../../src/model/presets/side.ts";
import { fillParameter, numberedCheckpoint } from "./kit/parameter-memory.ts";
import { configOf, presetOf, vllmCases } from "./kit/vllm-cases.ts";
import { type NaiveParallel, type NaiveParameter, naiveRank } from "./kit/vllm-loader.ts";

/**
 * Phi-3, Qwen2-MoE and GLM-4-MoE have no recording of vLLM's own loaders, and those of the other families have few sizes: what
 * ranks hold is compared, element by element, with a naive loader, which the recordings prove right first.
 */
const layoutsOf = (model: Model, preset: string) =>
  new LocalLayouts(applyParts(presetSide(preset, model), model.tensors, { modelDtype: model.dtype }));

function compare(model: Model, preset: string, parallel: NaiveParallel): void {
  const layouts = layoutsOf(model, preset);
  proveParts(layouts);
  const checkpoint = numberedCheckpoint(model.tensors);
  const shapes = new Map(model.tensors.map(({ name, shape }) => [name, shape]));
  const naive = new Map(
    [...checkpoint].map(([name, data]) => [name, { shape: shapes.get(name)!, data: [...data] }]),
  );
  for (const rank of layouts.side.ranks) {
    const config = model.config as Readonly<Record<string, number | boolean | null>>;
    const expected = naiveRank(model.modelType, config, naive, parallel, rank);
    const found = new Map<string, NaiveParameter>();
    for (const parameter of rankParameters(layouts, rank)) {
      const { name, aliases, shape, dtype, fixedDtype } = parameter;
      const data = [...fillParameter(parameter, checkpoint, shapes)];
      found.set(name, { aliases, shape, data, dtype: fixedDtype ? (dtype as "float32") : "model" });
    }
    expect([...found.keys()].sort(), `rank ${rank}`).toEqual([...expected.keys()].sort());
    for (const [name, parameter] of expected) {
      // Elements are compared without the library, which takes its time for each.
      const { data, ...rest } = found.get(name)!;
      const { data: wanted, ...form } = parameter;
      expect(rest, `${name} on rank ${rank}`).toEqual(form);
      const wrong = wanted.findIndex((value, index) => data[index] !== value);
      expect(wrong, `${name} on rank ${rank}, element`).toBe(-1);
    }
  }
}

const presetText = ({ tp, dp = 1, pp = 1, ep, redundant = 0, roundRobin }: NaiveParallel) =>
  `vllm:tp=${tp},dp=${dp},pp=${pp}${ep ? ",ep" : ""}${redundant > 0 ? `,redundant=${redundant}` : ""}${roundRobin ? ",placement=round_robin" : ""}`;

describe("the naive loader is vLLM's, where that was recorded", () => {
  const plain = vllmCases.filter(({ quant }) => quant == null);
  test.each(plain.map((one) => [one.case, one] as const))("%s", (_, one) => {
    const { tp, dp, pp, enableExpertParallel: ep, redundantExperts: redundant } = one.parallel;
    const model = modelOf(configOf(one), { form: one.hfForm });
    // vLLM deals one by one where there are groups of experts alone.
    const roundRobin = one.parallel.expertPlacement === "round_robin" && "n_group" in one.config;
    compare(model, presetOf(one), { tp, dp, pp, ep, redundant, roundRobin });
  });
});

const sizes = {
  vocab_size: 150,
  hidden_size: 48,
  intermediate_size: 80,
  num_hidden_layers: 3,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  torch_dtype: "bfloat16",
};
const phi3 = { model_type: "phi3", ...sizes };
const qwen2Moe = {
  model_type: "qwen2_moe",
  ...sizes,
  num_experts: 10,
  moe_intermediate_size: 24,
  shared_expert_intermediate_size: 40,
};
const glm4Moe = {
  model_type: "glm4_moe",
  ...sizes,
  head_dim: 12,
  n_routed_experts: 10,
  n_shared_experts: 1,
  moe_intermediate_size: 24,
  first_k_dense_replace: 1,
};

describe("what vLLM's classes hold of families without a recording", () => {
  const cases: readonly (readonly [string, object, NaiveParallel, "state_dict"?])[] = [
    ["phi3, one rank", phi3, { tp: 1 }],
    ["phi3, a head of keys each", phi3, { tp: 2 }],
    ["phi3, fewer heads of keys than ranks", phi3, { tp: 8 }],
    ["phi3, one head of keys", { ...phi3, num_key_value_heads: 1 }, { tp: 4 }],
    ["phi3, as many heads of keys", { ...phi3, num_key_value_heads: 8, vocab_size: 64 }, { tp: 8 }],
    ["phi3, ranks of padding alone", { ...phi3, vocab_size: 65 }, { tp: 4 }],
    ["phi3, tied", { ...phi3, tie_word_embeddings: true }, { tp: 2 }],
    ["phi3, tied, in stages", { ...phi3, tie_word_embeddings: true }, { tp: 2, pp: 2 }],
    ["phi3, engines and uneven stages", { ...phi3, num_hidden_layers: 5 }, { tp: 2, dp: 2, pp: 3 }],
    ["qwen2_moe, one rank", qwen2Moe, { tp: 1 }],
    ["qwen2_moe, experts cut", qwen2Moe, { tp: 8 }],
    ["qwen2_moe, experts cut over engines", qwen2Moe, { tp: 4, dp: 2 }],
    ["qwen2_moe, uneven experts", qwen2Moe, { tp: 4, ep: true }],
    ["qwen2_moe, uneven experts of engines", qwen2Moe, { tp: 2, dp: 3, ep: true }],
    ["qwen2_moe, round robin without groups", qwen2Moe, { tp: 4, ep: true }],
    ["qwen2_moe, tied, in stages", { ...qwen2Moe, tie_word_embeddings: true }, { tp: 2, pp: 2, ep: true }],
    ["qwen2_moe, dense layers between", { ...qwen2Moe, decoder_sparse_step: 2 }, { tp: 2 }],
    ["qwen2_moe, a dense layer by name", { ...qwen2Moe, mlp_only_layers: [1] }, { tp: 4, ep: true }],
    ["qwen2_moe, experts in three dimensions", qwen2Moe, { tp: 4 }, "state_dict"],
    ["qwen2_moe, and dealt", qwen2Moe, { tp: 4, ep: true }, "state_dict"],
    ["glm4_moe, one rank", glm4Moe, { tp: 1 }],
    ["glm4_moe, experts cut", glm4Moe, { tp: 4 }],
    ["glm4_moe, norms and biases", { ...glm4Moe, use_qk_norm: true, attention_bias: true }, { tp: 4 }],
    ["glm4_moe, two shared experts", { ...glm4Moe, n_shared_experts: 2 }, { tp: 8, ep: true }],
    ["glm4_moe, no dense layer", { ...glm4Moe, first_k_dense_replace: 0 }, { tp: 2, ep: true }],
    ["glm4_moe, shared experts cut beside dealt ones", glm4Moe, { tp: 2, dp: 2, ep: true }],
    ["glm4_moe, redundant experts", glm4Moe, { tp: 4, ep: true, redundant: 2 }],
    ["glm4_moe, more ranks than experts cut", { ...glm4Moe, n_routed_experts: 4 }, { tp: 8 }],
    ["glm4_moe, one by one", { ...glm4Moe, n_group: 2 }, { tp: 4, ep: true, roundRobin: true }],
    ["glm4_moe, stages", { ...glm4Moe, num_hidden_layers: 5 }, { tp: 2, pp: 2, ep: true }],
    ["glm4_moe, stages of engines", glm4Moe, { tp: 2, dp: 2, pp: 2, ep: true }],
    ["glm4_moe, experts in three dimensions", glm4Moe, { tp: 4, ep: true }, "state_dict"],
    ["glm4_moe, those cut over engines", glm4Moe, { tp: 2, dp: 2 }, "state_dict"],
  ];
  test.each(cases.map((one) => ({ name: one[0], one })))("$name", ({ one: [, config, parallel, form] }) => {
    const model = modelOf(JSON.stringify(config), { form: form ?? "checkpoint" });
    compare(model, presetText(parallel), parallel);
  });

  const llama = { model_type: "llama", ...sizes };
  const mixtral = { model_type: "mixtral", ...sizes, num_hidden_layers: 2, num_local_experts: 10 };
  const gemma3 = { model_type: "gemma3_text", ...sizes, head_dim: 12 };
  const gptOss = {
    model_type: "gpt_oss",
    ...sizes,
    num_hidden_layers: 2,
    head_dim: 12,
    num_key_value_heads: 8,
    num_local_experts: 10,
  };
  const qwen3Moe = { model_type: "qwen3_moe", ...sizes, num_experts: 10, moe_intermediate_size: 24 };
  const deepseek = {
    model_type: "deepseek_v3",
    topk_method: "noaux_tc",
    ...sizes,
    q_lora_rank: 20,
    kv_lora_rank: 28,
    qk_nope_head_dim: 10,
    qk_rope_head_dim: 6,
    v_head_dim: 14,
    n_routed_experts: 10,
    n_shared_experts: 1,
    moe_intermediate_size: 24,
    first_k_dense_replace: 1,
    n_group: 2,
  };
  const tied = { tie_word_embeddings: true };
  const sizedCases: readonly (readonly [string, object, NaiveParallel, "state_dict"?])[] = [
    [
      "llama, one head of keys on eight ranks, tied, in stages",
      { ...llama, ...tied, num_key_value_heads: 1 },
      { tp: 8, pp: 3 },
    ],
    ["llama, ranks of padding alone in two engines", { ...llama, vocab_size: 65 }, { tp: 4, dp: 2, pp: 2 }],
    [
      "llama, three ranks",
      { ...llama, num_attention_heads: 6, num_key_value_heads: 3, intermediate_size: 81 },
      { tp: 3 },
    ],
    ["qwen2, stages of one layer, tied", { ...llama, model_type: "qwen2", ...tied }, { tp: 4, pp: 3 }],
    [
      "qwen3, uneven stages",
      { ...llama, model_type: "qwen3", head_dim: 12, num_hidden_layers: 7 },
      { tp: 2, pp: 4 },
    ],
    ["mixtral, uneven experts of engines in stages", mixtral, { tp: 2, dp: 2, pp: 2, ep: true }],
    ["mixtral, experts cut over engines", mixtral, { tp: 2, dp: 4 }],
    ["mixtral, redundant experts", mixtral, { tp: 4, ep: true, redundant: 2 }],
    ["mixtral, tied", { ...mixtral, ...tied }, { tp: 8, pp: 2 }],
    ["mixtral, experts in three dimensions", mixtral, { tp: 2, dp: 2, ep: true }, "state_dict"],
    ["gemma3, fewer heads of keys than ranks, in stages", gemma3, { tp: 8, pp: 2 }],
    [
      "gemma3, biases and a head of its own",
      { ...gemma3, attention_bias: true, tie_word_embeddings: false },
      { tp: 2 },
    ],
    ["gemma3, ranks of padding alone", { ...gemma3, vocab_size: 65 }, { tp: 4, dp: 2 }],
    ["gpt-oss, experts cut over engines", gptOss, { tp: 2, dp: 2 }],
    ["gpt-oss, dealt over engines", gptOss, { tp: 1, dp: 2, ep: true }],
    ["gpt-oss, stages", gptOss, { tp: 4, pp: 2 }],
    ["gpt-oss, stages of engines", { ...gptOss, num_local_experts: 12 }, { tp: 2, dp: 2, pp: 2, ep: true }],
    ["gpt-oss, as transformers holds it", gptOss, { tp: 4 }, "state_dict"],
    [
      "qwen3_moe, dense layers between, in stages of engines",
      { ...qwen3Moe, decoder_sparse_step: 2, num_hidden_layers: 5 },
      { tp: 2, dp: 2, pp: 2, ep: true },
    ],
    [
      "qwen3_moe, redundant experts of engines",
      { ...qwen3Moe, mlp_only_layers: [1] },
      { tp: 2, dp: 3, ep: true, redundant: 2 },
    ],
    ["qwen3_moe, tied, one head of keys", { ...qwen3Moe, ...tied, num_key_value_heads: 1 }, { tp: 8 }],
    ["deepseek, stages of engines", { ...deepseek, num_hidden_layers: 5 }, { tp: 2, dp: 2, pp: 2, ep: true }],
    ["deepseek, experts cut over engines", deepseek, { tp: 4, dp: 2 }],
    ["deepseek, engines of one rank", deepseek, { tp: 1, dp: 3, ep: true }],
    ["deepseek, redundant experts of engines", deepseek, { tp: 2, dp: 3, ep: true, redundant: 2 }],
    ["deepseek, one by one, uneven", deepseek, { tp: 4, ep: true, roundRobin: true }],
    ["deepseek, no shared experts", { ...deepseek, n_shared_experts: null }, { tp: 2 }],
    [
      "deepseek, every other layer dense",
      { ...deepseek, moe_layer_freq: 2, num_hidden_layers: 4 },
      { tp: 2, ep: true },
    ],
    ["deepseek, queries without a rank", { ...deepseek, q_lora_rank: null }, { tp: 8 }],
    ["deepseek, experts in three dimensions of engines", deepseek, { tp: 2, dp: 2, ep: true }, "state_dict"],
    [
      "deepseek, shared experts that nobody cuts",
      { ...deepseek, moe_intermediate_size: 25 },
      { tp: 2, dp: 2, ep: true },
    ],
    ["deepseek, more ranks than experts", { ...deepseek, n_routed_experts: 4 }, { tp: 8 }],
    ["deepseek, biases that the class lacks", { ...deepseek, attention_bias: true }, { tp: 2 }],
    ["mixtral, more ranks than experts", { ...mixtral, num_local_experts: 4 }, { tp: 8 }],
    [
      "qwen3, a bias that the class lacks",
      { ...llama, model_type: "qwen3", head_dim: 12, attention_bias: true },
      { tp: 2 },
    ],
    ["qwen3_moe, a bias that the class lacks", { ...qwen3Moe, attention_bias: true }, { tp: 4 }],
    ["kimi", { ...deepseek, model_type: "kimi_k2" }, { tp: 2, dp: 2, ep: true }],
  ];
  test.each(sizedCases.map((one) => ({ name: one[0], one })))("at other sizes: $name", ({
    one: [, config, parallel, form],
  }) => {
    const model = modelOf(JSON.stringify(config), { form: form ?? "checkpoint" });
    compare(model, presetText(parallel), parallel);
  });

  test("biases that a class lacks are dropped, with the reason", () => {
    const model = modelOf(JSON.stringify({ ...qwen3Moe, attention_bias: true }));
    const { dropped } = layoutsOf(model, "vllm:tp=2").side;
    expect([...dropped.keys()]).toEqual(
      [0, 1, 2].map((layer) => `model.layers.${layer}.self_attn.o_proj.bias`),
    );
    expect(dropped.values().next().value).toContain("its loader passes over it");
  });

  test.each([
    ["allgather_reducescatter", 48],
    ["pplx", 48],
    ["deepep_v2", 24],
    ["flashinfer_nvlink_one_sided", 24],
  ])("rows of shared experts that a rank has beside %s: %d", (all2all, rows) => {
    const layouts = layoutsOf(modelOf(JSON.stringify(deepseek)), `vllm:tp=2,dp=2,ep,all2all=${all2all}`);
    const shared = [...rankParameters(layouts, 1)].find(({ name }) =>
      name.endsWith("shared_experts.gate_up_proj.weight"),
    );
    expect(shared!.shape).toEqual([rows, 48]);
  });

  test("the rows that a checkpoint holds as one are one box where they stay so", () => {
    const boxesOf = (tp: number, rank: number) => {
      const layouts = layoutsOf(modelOf(JSON.stringify(phi3)), `vllm:tp=${tp}`);
      const qkv = [...rankParameters(layouts, rank)].find(({ name }) =>
        name.endsWith("0.self_attn.qkv_proj.weight"),
      );
      return qkv!.boxes.map(({ start, length, at }) => [start[0], length[0], at[0]]);
    };
    expect(boxesOf(1, 0)).toEqual([[0, 72, 0]]);
    expect(boxesOf(2, 0)).toEqual([
      [0, 24, 0],
      [48, 6, 24],
      [60, 6, 30],
    ]);
  });

  test("layers that predict further tokens are dropped, with the reason", () => {
    const model = modelOf(JSON.stringify({ ...glm4Moe, num_nextn_predict_layers: 1 }), { mtp: true });
    const { dropped } = layoutsOf(model, "vllm:tp=2").side;
    expect(dropped.size).toBeGreaterThan(10);
    for (const [name, why] of dropped) {
      expect(name).toMatch(/^model\.layers\.3\./);
      expect(why).toContain("predict further tokens");
    }
  });

  const float8 = (...weight_block_size: readonly [number, number]) => ({
    quantization_config: { quant_method: "fp8", weight_block_size },
  });
  const fp8 = float8(16, 16);
  test.each<readonly [string, object, string, RegExp]>([
    [
      "a tied head that the class has of its own",
      { ...glm4Moe, tie_word_embeddings: true },
      "vllm:tp=2",
      /glm4_moe has tie_word_embeddings false built in, and the config has true/,
    ],
    [
      "attention without the biases of the class",
      { ...qwen2Moe, qkv_bias: false },
      "vllm:tp=2",
      /qwen2_moe has qkv_bias true built in/,
    ],
    [
      "heads of another size",
      { ...qwen2Moe, head_dim: 16 },
      "vllm:tp=2",
      /qwen2_moe has head_dim 6 built in, and the config has 16/,
    ],
    [
      "heads of another size of Qwen2",
      { model_type: "qwen2", ...sizes, head_dim: 16 },
      "vllm:tp=2",
      /qwen2 has head_dim 6 built in, and the config has 16/,
    ],
    [
      "a router without the correction that the checkpoint has",
      { ...deepseek, topk_method: "group_limited_greedy" },
      "vllm:tp=2",
      /has mlp\.gate\.e_score_correction_bias only with topk_method noaux_tc, and the config has group_limited_greedy/,
    ],
    [
      "a router of Kimi of which the config says nothing",
      { ...deepseek, model_type: "kimi_k2", topk_method: undefined },
      "vllm:tp=2",
      /only with topk_method noaux_tc, and the config has none/,
    ],
    [
      "gpt-oss's experts that do not deal out",
      gptOss,
      "vllm:tp=4,ep",
      /10 experts over 4 ranks are uneven, which vLLM does not load/,
    ],
    [
      "gpt-oss's intermediate size that not all ranks divide",
      { ...gptOss, num_local_experts: 8, intermediate_size: 36 },
      "vllm:tp=2,dp=2,pp=2,ep",
      /the experts' intermediate size 36 over 8 ranks is uneven/,
    ],
    [
      "shared experts that are cut within a block of float8",
      {
        ...deepseek,
        ...float8(8, 8),
        n_shared_experts: 3,
        v_head_dim: 16,
        qk_rope_head_dim: 6,
        q_lora_rank: 24,
      },
      "vllm:tp=2,ep",
      /the shared experts' intermediate size of 72 over 2 ranks would split a block of 8/,
    ],
    [
      "redundant experts that the class does not balance",
      qwen2Moe,
      "vllm:tp=2,ep,redundant=2",
      /balances no redundant experts for qwen2_moe/,
    ],
    [
      "more ranks than experts",
      { ...qwen2Moe, num_experts: 4, num_key_value_heads: 8 },
      "vllm:tp=8",
      /tp=8 is more than the 4 experts/,
    ],
    [
      "a shared expert that does not divide",
      { ...qwen2Moe, shared_expert_intermediate_size: 42 },
      "vllm:tp=4",
      /the shared experts' intermediate size 42 over 4 ranks/,
    ],
    [
      "ranks without an expert",
      { ...glm4Moe, n_routed_experts: 4 },
      "vllm:tp=8,ep",
      /4 experts for 8 ranks leave ranks without any/,
    ],
    [
      "a stage of GLM-4-MoE without experts",
      glm4Moe,
      "vllm:tp=2,pp=3",
      /stage 0 of 3 has no layer with experts/,
    ],
    [
      "a stage of Qwen3-MoE without experts",
      { ...qwen3Moe, mlp_only_layers: [2] },
      "vllm:tp=2,pp=2,partition=2:1",
      /stage 1 of 2 has no layer with experts/,
    ],
    ["Qwen3-MoE without experts", { ...qwen3Moe, mlp_only_layers: [0, 1, 2] }, "vllm:tp=2", /stage 0 of 1/],
    ["heads that do not divide", phi3, "vllm:tp=3", /8 heads over tp=3 ranks would split a head/],
    [
      "heads of keys that do not fit",
      { ...phi3, num_key_value_heads: 3, num_attention_heads: 12 },
      "vllm:tp=4",
      /3 heads of keys and values over tp=4/,
    ],
    [
      "a fused projection that does not divide",
      { ...phi3, intermediate_size: 81 },
      "vllm:tp=2",
      /intermediate_size 81 over 2 ranks/,
    ],
  ])("%s is refused", (_, config, preset, why) => {
    const model = modelOf(JSON.stringify(config));
    expect(codeOf(() => layoutsOf(model, preset))).toEqual(["TB_PRESET", expect.stringMatching(why)]);
  });

  test.each([
    phi3,
    qwen2Moe,
    glm4Moe,
  ])("float8 of $model_type is refused before anything is laid out", (config) => {
    const text = JSON.stringify({ ...config, ...fp8 });
    expect(codeOf(() => modelOf(text))).toEqual([
      "TB_MODEL_CONFIG",
      expect.stringContaining("quantized: false"),
    ]);
    expect(() => layoutsOf(modelOf(text, { quantized: false }), "vllm:tp=2")).not.toThrow();
  });
});

function codeOf(run: () => unknown): [string, string] | undefined {
  try {
    run();
  } catch (error) {
    if (error instanceof TensorBusError) return [error.code, error.message];
    throw error;
  }
  return undefined;
}
