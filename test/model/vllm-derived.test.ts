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
 * Phi-3, Qwen2-MoE and GLM-4-MoE have no recording of vLLM's own loaders: what their ranks hold is compared, element by element,
 * with a naive loader, which the recordings of the other families prove right first.
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
  const plain = vllmCases.filter(
    ({ family, quant }) => ["llama", "qwen2", "qwen3", "qwen3_moe"].includes(family) && quant == null,
  );
  test.each(plain.map((one) => [one.case, one] as const))("%s", (_, one) => {
    const { tp, dp, pp, enableExpertParallel: ep, redundantExperts: redundant } = one.parallel;
    const model = modelOf(configOf(one), { form: one.hfForm });
    compare(model, presetOf(one), { tp, dp, pp, ep, redundant });
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

  const fp8 = { quantization_config: { quant_method: "fp8", weight_block_size: [16, 16] } };
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
      "a bias that the class lacks",
      { model_type: "qwen3", ...sizes, attention_bias: true },
      "vllm:tp=2",
      /qwen3 has attention_bias false built in/,
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
