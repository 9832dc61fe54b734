import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { modelTensors, readModel } from "../../src/model/config.ts";
import { elementCount, type ModelTensor } from "../../src/model/tensor.ts";

const configs = join(import.meta.dirname, "configs");
const path = (name: string) => join(configs, `${name}.json`);
const text = (name: string) => readFileSync(path(name), "utf8");
const changed = (name: string, changes: Record<string, unknown>) =>
  JSON.stringify({ ...JSON.parse(text(name)), ...changes });

/** Elements by element type. */
function parameters(tensors: readonly ModelTensor[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { shape, dtype } of tensors) counts[dtype] = (counts[dtype] ?? 0) + elementCount(shape)!;
  return counts;
}

function shapeOf(tensors: readonly ModelTensor[], name: string): readonly number[] | undefined {
  return tensors.find((tensor) => tensor.name === name)?.shape;
}

function failure(run: () => unknown): TensorBusError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(TensorBusError);
    return error as TensorBusError;
  }
  throw new Error("it did not fail");
}

describe("published models", () => {
  // The counts that the model hub shows for the checkpoints; tensors as their headers list them.
  test.each([
    ["llama-3-8b", 291, { bfloat16: 8_030_261_248 }],
    ["qwen2.5-7b", 339, { bfloat16: 7_615_616_512 }],
    ["qwen3-8b", 399, { bfloat16: 8_190_735_360 }],
    ["qwen3-30b-a3b", 18_867, { bfloat16: 30_532_122_624 }],
    ["deepseek-v3", 45_395, { bfloat16: 671_026_419_200 - 58 * 256, float32: 58 * 256 }],
    ["kimi-k2", 69_975, { bfloat16: 1_026_408_232_448 - 60 * 384, float32: 60 * 384 }],
  ] as const)("%s has %i tensors", async (name, count, expected) => {
    const { tensors } = await readModel(path(name), { quantized: false });
    expect(tensors).toHaveLength(count);
    expect(new Set(tensors.map((tensor) => tensor.name)).size).toBe(count);
    expect(parameters(tensors)).toEqual(expected);
  });

  test("the float8 checkpoint of DeepSeek-V3, with its prediction layer, agrees type by type", async () => {
    const { tensors } = await readModel(path("deepseek-v3"), { mtp: true });
    expect(tensors).toHaveLength(91_991);
    expect(parameters(tensors)).toEqual({
      bfloat16: 3_918_786_560,
      float8_e4m3fn: 680_571_043_840,
      float32: 41_555_600,
    });
  });
});

describe("tensors", () => {
  test("stand in the order of the modules", () => {
    const names = modelTensors(text("qwen3-8b")).map((tensor) => tensor.name);
    expect(names.slice(0, 13)).toEqual([
      "model.embed_tokens.weight",
      ...["q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"].map(
        (part) => `model.layers.0.self_attn.${part}.weight`,
      ),
      ...["gate_proj", "up_proj", "down_proj"].map((part) => `model.layers.0.mlp.${part}.weight`),
      "model.layers.0.input_layernorm.weight",
      "model.layers.0.post_attention_layernorm.weight",
      "model.layers.1.self_attn.q_proj.weight",
    ]);
    expect(names.slice(-2)).toEqual(["model.norm.weight", "lm_head.weight"]);
  });

  test("weights are (out, in), with fewer heads for keys and values", () => {
    const tensors = modelTensors(text("llama-3-8b"));
    expect(shapeOf(tensors, "model.layers.31.self_attn.q_proj.weight")).toEqual([4096, 4096]);
    expect(shapeOf(tensors, "model.layers.31.self_attn.k_proj.weight")).toEqual([1024, 4096]);
    expect(shapeOf(tensors, "model.layers.31.mlp.down_proj.weight")).toEqual([4096, 14336]);
  });

  test("latent attention, experts, router and shared experts of DeepSeek-V3", () => {
    const tensors = modelTensors(text("deepseek-v3"), { quantized: false });
    const attention = "model.layers.60.self_attn";
    expect(shapeOf(tensors, `${attention}.q_a_proj.weight`)).toEqual([1536, 7168]);
    expect(shapeOf(tensors, `${attention}.q_b_proj.weight`)).toEqual([128 * 192, 1536]);
    expect(shapeOf(tensors, `${attention}.kv_a_proj_with_mqa.weight`)).toEqual([576, 7168]);
    expect(shapeOf(tensors, `${attention}.kv_b_proj.weight`)).toEqual([128 * 256, 512]);
    expect(shapeOf(tensors, "model.layers.2.mlp.gate_proj.weight")).toEqual([18432, 7168]);
    expect(shapeOf(tensors, "model.layers.3.mlp.experts.255.down_proj.weight")).toEqual([7168, 2048]);
    expect(shapeOf(tensors, "model.layers.3.mlp.shared_experts.up_proj.weight")).toEqual([2048, 7168]);
    const bias = tensors.find(({ name }) => name === "model.layers.3.mlp.gate.e_score_correction_bias");
    expect(bias).toEqual({ name: bias?.name, shape: [256], dtype: "float32" });
    expect(tensors.some(({ name }) => name.startsWith("model.layers.61."))).toBe(false);
  });

  test("one scale stands for each block, the last ones of less", () => {
    const tensors = modelTensors(text("deepseek-v3"), { quantized: true });
    const scale = tensors.find(({ name }) =>
      name.endsWith("layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"),
    );
    expect(scale).toMatchObject({ shape: [5, 56], dtype: "float32" });
    const router = tensors.find(({ name }) => name === "model.layers.3.mlp.gate.weight");
    expect(router?.dtype).toBe("bfloat16");
  });

  test("options of the config: tied embeddings, biases, q_lora_rank null, dense layers", () => {
    const tied = modelTensors(changed("qwen3-8b", { tie_word_embeddings: true }));
    expect(shapeOf(tied, "lm_head.weight")).toBeUndefined();
    const biased = modelTensors(changed("llama-3-8b", { attention_bias: true, mlp_bias: true }));
    expect(shapeOf(biased, "model.layers.0.self_attn.o_proj.bias")).toEqual([4096]);
    expect(shapeOf(biased, "model.layers.0.mlp.down_proj.bias")).toEqual([4096]);
    const qwen2 = modelTensors(text("qwen2.5-7b"));
    expect(shapeOf(qwen2, "model.layers.0.self_attn.k_proj.bias")).toEqual([512]);
    expect(shapeOf(qwen2, "model.layers.0.self_attn.o_proj.bias")).toBeUndefined();
    const noRank = modelTensors(changed("deepseek-v3", { q_lora_rank: null }));
    expect(shapeOf(noRank, "model.layers.0.self_attn.q_proj.weight")).toEqual([128 * 192, 7168]);
    const mixed = modelTensors(changed("qwen3-30b-a3b", { mlp_only_layers: [1], decoder_sparse_step: 2 }));
    expect(shapeOf(mixed, "model.layers.0.mlp.gate_proj.weight")).toEqual([6144, 2048]);
    expect(shapeOf(mixed, "model.layers.1.mlp.gate_proj.weight")).toEqual([6144, 2048]);
    expect(shapeOf(mixed, "model.layers.3.mlp.gate.weight")).toEqual([128, 2048]);
  });

  test("the element type comes from torch_dtype, dtype, or the caller", () => {
    const first = (config: string, options = {}) => modelTensors(config, options)[0]!.dtype;
    expect(first(changed("llama-3-8b", { torch_dtype: "float16" }))).toBe("float16");
    expect(first(changed("llama-3-8b", { torch_dtype: undefined, dtype: "torch.float32" }))).toBe("float32");
    expect(first(text("llama-3-8b"), { dtype: "float64" })).toBe("float64");
    const deepseek = modelTensors(text("deepseek-v3"), { dtype: "float16", quantized: false });
    expect(Object.keys(parameters(deepseek)).sort()).toEqual(["float16", "float32"]);
  });
});

describe("bad input", () => {
  test.each([
    [
      "an unknown family",
      changed("llama-3-8b", { model_type: "gpt2" }),
      /model_type "gpt2" is unknown; known are llama,/,
    ],
    [
      "a family by the name of a built-in",
      changed("llama-3-8b", { model_type: "constructor" }),
      /is unknown/,
    ],
    [
      "a missing field",
      changed("llama-3-8b", { hidden_size: undefined }),
      /hidden_size must be a number, and is missing/,
    ],
    [
      "a fraction",
      changed("llama-3-8b", { num_attention_heads: 1.5 }),
      /num_attention_heads must be an integer, not 1\.5/,
    ],
    [
      "uneven heads",
      changed("llama-3-8b", { num_attention_heads: 33 }),
      /4096 is not a multiple of num_attention_heads 33/,
    ],
    [
      "an unknown element type",
      changed("llama-3-8b", { torch_dtype: "int4" }),
      /torch_dtype "int4" is unknown/,
    ],
    ["no element type", changed("llama-3-8b", { torch_dtype: undefined }), /torch_dtype is missing/],
    [
      "too many layers",
      changed("llama-3-8b", { num_hidden_layers: 1e9 }),
      /num_hidden_layers must be 4096 or less, not 1000000000/,
    ],
    ["too many experts", changed("deepseek-v3", { n_routed_experts: 60_000 }), /60000 experts are more than/],
    ["no JSON", "{", /is not JSON/],
    ["no object", "[]", /config\.json: it must be a map, not \[\]/],
  ])("%s", (_, config, message) => {
    const error = failure(() => modelTensors(config));
    expect(error.code).toBe("TB_MODEL_CONFIG");
    expect(error.message).toMatch(message);
  });

  test("quantized tensors are refused where their form is not known", () => {
    const error = failure(() => modelTensors(text("llama-3-8b"), { quantized: true }));
    expect(error.code).toBe("TB_MODEL_CONFIG");
    expect(error.message).toContain("deepseek_v3");
  });

  test("a missing file is named", async () => {
    const error = await readModel(path("none")).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: "TB_FILE", details: { path: path("none") } });
  });
});

describe("what the config says beside sizes", () => {
  test("both names of the experts' number are read, and must agree", () => {
    const renamed = changed("qwen3-30b-a3b", { num_experts: undefined, num_local_experts: 128 });
    expect(modelTensors(renamed)).toEqual(modelTensors(text("qwen3-30b-a3b")));
    const both = failure(() => modelTensors(changed("qwen3-30b-a3b", { num_local_experts: 64 })));
    expect(both.message).toContain("num_experts and num_local_experts mean the same and differ");
  });

  test.each([
    "awq",
    "gptq",
    "bitsandbytes",
    "compressed-tensors",
    "modelopt",
    "fbgemm_fp8",
  ])("a checkpoint in %s is refused, and its plain weights are listed if asked", (quant_method) => {
    const config = changed("llama-3-8b", { quantization_config: { quant_method, bits: 4 } });
    const error = failure(() => modelTensors(config));
    expect(error.code).toBe("TB_MODEL_CONFIG");
    expect(error.message).toContain(`tensorbus does not know how ${quant_method} stores weights`);
    expect(modelTensors(config, { quantized: false })).toEqual(modelTensors(text("llama-3-8b")));
  });

  test("float8 per tensor has a scale of each weight, and of each input if static; layers can be left out", () => {
    const quantization_config = {
      quant_method: "fp8",
      activation_scheme: "static",
      modules_to_not_convert: ["lm_head", "model.layers.0.mlp"],
    };
    const tensors = modelTensors(changed("llama-3-8b", { quantization_config }));
    const attention = tensors.filter(({ name }) => name.startsWith("model.layers.0.self_attn.q_proj."));
    expect(attention.map(({ name, shape, dtype }) => [name.split(".").at(-1), shape, dtype])).toEqual([
      ["weight", [4096, 4096], "float8_e4m3fn"],
      ["weight_scale", [], "float32"],
      ["input_scale", [], "float32"],
    ]);
    const left = tensors.filter(({ name }) => name.startsWith("model.layers.0.mlp."));
    expect(left.map(({ dtype }) => dtype)).toEqual(["bfloat16", "bfloat16", "bfloat16"]);
  });

  test("gpt-oss as it is published, in MXFP4", () => {
    const config = JSON.stringify({
      model_type: "gpt_oss",
      architectures: ["GptOssForCausalLM"],
      vocab_size: 201088,
      hidden_size: 2880,
      intermediate_size: 2880,
      num_hidden_layers: 24,
      num_attention_heads: 64,
      num_local_experts: 32,
      torch_dtype: "bfloat16",
      quantization_config: { quant_method: "mxfp4" },
    });
    const tensors = modelTensors(config);
    expect(shapeOf(tensors, "model.layers.0.mlp.experts.gate_up_proj_blocks")).toEqual([32, 5760, 90, 16]);
    expect(shapeOf(tensors, "model.layers.0.mlp.experts.down_proj_scales")).toEqual([32, 2880, 90]);
    expect(shapeOf(tensors, "model.layers.0.mlp.experts.down_proj")).toBeUndefined();
    expect(tensors).toHaveLength(459);
  });

  test("an architecture that is not known is refused: a value head is no class of transformers", () => {
    const config = changed("llama-3-8b", { architectures: ["LlamaForCausalLMWithValueHead"] });
    expect(failure(() => modelTensors(config)).message).toMatch(
      /LlamaForCausalLMWithValueHead, whose tensors are not known/,
    );
  });

  test("a multimodal model names its language model's family, and the way out", () => {
    const config = changed("llama-3-8b", {
      model_type: "gemma3",
      text_config: { model_type: "gemma3_text" },
    });
    const { message } = failure(() => modelTensors(config));
    expect(message).toContain("its text_config is of the family gemma3_text, which is known");
    expect(message).toContain("`safetensors` or `tensors`");
  });
});
