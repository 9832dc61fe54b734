import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { type ConfigOptions, type Model, modelOf } from "../../src/model/config.ts";
import { applyParts } from "../../src/model/parts/apply.ts";
import { describeParameter } from "../../src/model/parts/describe.ts";
import { LocalLayouts } from "../../src/model/parts/local.ts";
import { proveParts } from "../../src/model/parts/proof.ts";
import { rankParameters } from "../../src/model/parts/rank.ts";
import { presetSide } from "../../src/model/presets/side.ts";
import {
  configOf,
  presetOf,
  readGolden,
  type VllmCase,
  type VllmParameter,
  vllmCases,
} from "./kit/vllm-cases.ts";

/** vLLM's layouts, as its own loaders made them. */
function layoutsOf(model: Model, preset: string): LocalLayouts {
  return new LocalLayouts(applyParts(presetSide(preset, model), model.tensors, { modelDtype: model.dtype }));
}

const modelOfCase = (one: VllmCase) => modelOf(configOf(one), { form: one.hfForm });

/** Without order, and without what says nothing. */
function byName(parameters: Iterable<object>): Record<string, unknown> {
  return Object.fromEntries([...parameters].map((one) => [(one as VllmParameter).name, one]));
}

describe("vLLM's layouts", () => {
  test.each(vllmCases.map((one) => [one.case, one] as const))("%s", (_, one) => {
    const model = modelOfCase(one);
    const shapes = Object.fromEntries(model.tensors.map(({ name, shape }) => [name, shape]));
    expect(shapes).toEqual(one.hfTensors);
    const layouts = layoutsOf(model, presetOf(one));
    const proof = proveParts(layouts);
    expect([...layouts.side.dropped.keys()].sort()).toEqual([...one.hfUnused].sort());
    expect(layouts.side.ranks).toHaveLength(one.ranks.length);
    for (const [rank, { params }] of one.ranks.entries()) {
      const mine = Array.from(rankParameters(layouts, rank), (parameter) =>
        describeParameter(parameter, parameter.fixedDtype ? parameter.dtype : "model"),
      );
      expect(byName(mine), `rank ${rank}`).toEqual(byName(params));
    }
    const pieces = one.ranks.flatMap(({ params }) => params.flatMap(({ boxes }) => boxes));
    expect(proof.pieces).toBe(pieces.length);
  });

  interface RealShapes {
    readonly model: string;
    readonly parallel: { readonly tp: number; readonly ep?: boolean };
    readonly quant: string | null;
    readonly params: Readonly<Record<string, readonly [readonly number[], string]>>;
  }
  const files: Readonly<Record<string, string>> = {
    "Llama-3-8B": "llama-3-8b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b",
    "DeepSeek-V3": "deepseek-v3",
  };
  test.each(
    readGolden<RealShapes>("vllm_real_shapes").map(
      (one) => [`${one.model} ${JSON.stringify(one.parallel)} ${one.quant}`, one] as const,
    ),
  )("at real sizes: %s", (_, { model: name, parallel, quant, params }) => {
    const text = readFileSync(join(import.meta.dirname, "configs", `${files[name]}.json`), "utf8");
    const model = modelOf(text, { quantized: quant !== null });
    const layouts = layoutsOf(model, `vllm:tp=${parallel.tp}${parallel.ep === true ? ",ep" : ""}`);
    const mine = new Map(
      Array.from(rankParameters(layouts, 0), ({ name, shape, dtype }) => [name, [shape, dtype]]),
    );
    for (const [parameter, expected] of Object.entries(params)) {
      expect(mine.get(parameter), parameter).toEqual(expected);
    }
  });
});

describe("what vLLM refuses is refused with a reason, and what only its loader cannot do is not", () => {
  const small = {
    hidden_size: 96,
    num_attention_heads: 12,
    num_key_value_heads: 12,
    intermediate_size: 96,
    vocab_size: 130,
    num_hidden_layers: 2,
    head_dim: 16,
  };
  const latent = {
    q_lora_rank: 24,
    kv_lora_rank: 32,
    qk_nope_head_dim: 16,
    qk_rope_head_dim: 8,
    v_head_dim: 16,
  };
  const moe = { moe_intermediate_size: 32, num_experts: 6, num_attention_heads: 8, num_key_value_heads: 8 };
  // What each line of vllm_refusals.jsonl names, as a config and a preset; the reason if it is refused.
  const configurations: readonly (readonly [object, string, (RegExp | undefined)?, ConfigOptions?])[] = [
    [
      { model_type: "llama", num_key_value_heads: 3 },
      "vllm:tp=4",
      /3 heads of keys and values over tp=4 ranks: neither/,
    ],
    [
      { model_type: "llama", num_key_value_heads: 3 },
      "vllm:tp=2",
      /3 heads of keys and values over tp=2 ranks: neither/,
    ],
    [{ model_type: "llama" }, "vllm:tp=3"],
    [
      { model_type: "llama", vocab_size: 100 },
      "vllm:tp=3",
      /128 rows of the vocabulary .* over tp=3 ranks are uneven/,
    ],
    [
      { model_type: "llama", intermediate_size: 97 },
      "vllm:tp=2",
      /intermediate_size 97 over 2 ranks is uneven/,
    ],
    [
      { model_type: "qwen3_moe", ...moe, moe_intermediate_size: 34 },
      "vllm:tp=4",
      /the experts' intermediate size 34 over 4 ranks is uneven/,
    ],
    [{ model_type: "qwen3_moe", ...moe }, "vllm:tp=8,ep", /tp=8 is more than the 6 experts/],
    [
      { model_type: "qwen3_moe", ...moe, num_experts: 10 },
      "vllm:tp=4,ep,redundant=3",
      /10 experts and 3 redundant ones over 4 ranks are uneven, which EPLB does not serve/,
    ],
    // Limits of the loader of checkpoints: the layout is what it is.
    [
      {
        model_type: "deepseek_v3",
        topk_method: "noaux_tc",
        ...latent,
        moe_intermediate_size: 32,
        n_routed_experts: 8,
        first_k_dense_replace: 1,
      },
      "vllm:tp=4",
      undefined,
      { form: "state_dict" },
    ],
    [{ model_type: "mixtral", num_local_experts: 8 }, "vllm:tp=4", undefined, { form: "state_dict" }],
    [
      { model_type: "gpt_oss", num_key_value_heads: 2, num_local_experts: 8 },
      "vllm:tp=4",
      /2 heads of keys and values over tp=4 ranks: it does not replicate them/,
    ],
    [{ model_type: "gpt_oss", intermediate_size: 100, num_local_experts: 8 }, "vllm:tp=2"],
  ];
  const lines = readGolden<{ readonly what: string; readonly loads: boolean }>("vllm_refusals");

  test.each(lines.map(({ what, loads }, index) => [what, loads, index] as const))("%s", (_, loads, index) => {
    const [config, preset, reason, options] = configurations[index]!;
    const model = modelOf(JSON.stringify({ ...small, ...config }), options ?? {});
    if (reason === undefined) {
      proveParts(layoutsOf(model, preset));
      expect(loads || options !== undefined).toBe(true);
      return;
    }
    expect(loads).toBe(false);
    const error = failure(() => layoutsOf(model, preset));
    expect(error.code).toBe("TB_PRESET");
    expect(error.message).toMatch(reason);
  });

  test.each([
    ["an unknown preset", "sglang:tp=2", /"sglang" is not a preset; there are fsdp2/],
    ["an unknown option", "vllm:tp=2,pq=3", /has no option "pq"; it has tp, dp/],
    ["a number that is none", "vllm:tp=two", /needs a number of 1 or more for tp, not "two"/],
    ["an option twice", "vllm:tp=2,tp=4", /option tp appears twice/],
    ["redundant experts of a dense model", "vllm:tp=2,redundant=2", /the model has no experts/],
    ["more stages than layers", "vllm:pp=4", /2 layers leave stage \d of 4 without a layer/],
    ["a partition of other layers", "vllm:pp=2,partition=2:1", /does not share 2 layers out/],
    ["a trainer without ranks", "fsdp2:tp=2", /needs dp=N/],
  ])("%s", (_, preset, message) => {
    const model = modelOf(JSON.stringify({ model_type: "llama", ...small }));
    const error = failure(() => layoutsOf(model, preset));
    expect(error.code).toBe("TB_PRESET");
    expect(error.message).toMatch(message);
  });

  test("a family that was never compared, another head, and a cut inside a block of float8", () => {
    const glm = modelOf(JSON.stringify({ model_type: "glm4", ...small }));
    expect(failure(() => layoutsOf(glm, "vllm:tp=2")).message).toContain("was never compared");
    const reward = { model_type: "llama", architectures: ["LlamaForSequenceClassification"], ...small };
    expect(failure(() => layoutsOf(modelOf(JSON.stringify(reward)), "vllm:tp=2")).message).toContain(
      "other heads",
    );
    const quantization_config = { quant_method: "fp8", weight_block_size: [32, 32] };
    const blocks = modelOf(JSON.stringify({ model_type: "qwen3", ...small, quantization_config }));
    expect(failure(() => layoutsOf(blocks, "vllm:tp=2")).message).toMatch(/would split a block of 32/);
  });
});

function failure(run: () => unknown): TensorBusError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(TensorBusError);
    return error as TensorBusError;
  }
  throw new Error("it did not fail");
}
