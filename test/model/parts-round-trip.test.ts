import { describe, expect, test } from "vitest";
import { modelOf } from "../../src/model/config.ts";
import { applyParts } from "../../src/model/parts/apply.ts";
import { joinSides } from "../../src/model/parts/join.ts";
import { LocalLayouts } from "../../src/model/parts/local.ts";
import type { PartedSide } from "../../src/model/parts/parted.ts";
import { rankParameters } from "../../src/model/parts/rank.ts";
import { partViews } from "../../src/model/parts/views.ts";
import { presetSide } from "../../src/model/presets/side.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { plainValue, simulate } from "../plan/kit/simulator.ts";
import { elements, fillParameter, numberedCheckpoint, product, stridesOf } from "./kit/parameter-memory.ts";
import { configOf, presetOf, vllmCases } from "./kit/vllm-cases.ts";

describe("from a checkpoint to a layout and back, byte for byte", () => {
  test.each(vllmCases.map((one) => [one.case, one] as const))("%s", (_, one) => {
    const model = modelOf(configOf(one), { form: one.hfForm });
    const layouts = new LocalLayouts(applyParts(presetSide(presetOf(one), model), model.tensors));
    const checkpoint = numberedCheckpoint(model.tensors);
    const shapes = new Map(model.tensors.map(({ name, shape }) => [name, shape]));
    const back = new Map([...checkpoint].map(([name, values]) => [name, new Int32Array(values.length)]));
    for (const rank of layouts.side.ranks) {
      for (const parameter of rankParameters(layouts, rank)) {
        const memory = fillParameter(parameter, checkpoint, shapes);
        for (const box of parameter.boxes) {
          const values = back.get(box.tensor)!;
          for (const [to, from] of elements(box, shapes.get(box.tensor)!, parameter.shape))
            values[to] = memory[from]!;
        }
      }
    }
    for (const [name, values] of back) {
      if (layouts.side.dropped.has(name)) continue;
      expect(
        Buffer.compare(Buffer.from(values.buffer), Buffer.from(checkpoint.get(name)!.buffer)),
        name,
      ).toBe(0);
    }
  });
});

const tiny = {
  vocab_size: 70,
  hidden_size: 8,
  intermediate_size: 8,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 4,
};
const experts = { moe_intermediate_size: 4, num_experts: 6 };
const latent = { q_lora_rank: 6, kv_lora_rank: 4, qk_nope_head_dim: 4, qk_rope_head_dim: 2, v_head_dim: 4 };
const routed = { n_routed_experts: 8, moe_intermediate_size: 4, first_k_dense_replace: 1, n_group: 2 };
type Form = "checkpoint" | "state_dict";

/** What is planned and moved arrives where the boxes of the layout say, through the views of its parameters. */
describe("a planned transfer fills the parameters in place", () => {
  test.each<readonly [string, object, string, string, Form]>([
    ["fused and replicated heads", { model_type: "llama", ...tiny }, "fsdp2:dp=3", "vllm:tp=4", "checkpoint"],
    [
      "tensor parallelism on both sides",
      { model_type: "qwen2", ...tiny, head_dim: 2 },
      "fsdp2:dp=2,tp=2",
      "vllm:tp=2,dp=2",
      "checkpoint",
    ],
    [
      "stages, and a tied head",
      { model_type: "llama", ...tiny, tie_word_embeddings: true },
      "hf:3",
      "vllm:tp=2,pp=2",
      "checkpoint",
    ],
    ["ranges of one tensor", { model_type: "phi3", ...tiny }, "fsdp2:dp=3", "vllm:tp=2", "checkpoint"],
    [
      "uneven experts",
      { model_type: "qwen3_moe", ...tiny, ...experts },
      "fsdp2:dp=3",
      "vllm:tp=4,ep",
      "checkpoint",
    ],
    [
      "experts out of three dimensions",
      { model_type: "qwen3_moe", ...tiny, ...experts },
      "fsdp2:dp=4",
      "vllm:tp=4,ep",
      "state_dict",
    ],
    [
      "experts dealt on both sides",
      { model_type: "qwen3_moe", ...tiny, ...experts },
      "fsdp2:dp=4,ep=2",
      "vllm:tp=2",
      "state_dict",
    ],
    [
      "single experts on their owners",
      { model_type: "qwen3_moe", ...tiny, ...experts },
      "fsdp2:dp=4,ep=2",
      "vllm:tp=2,dp=2",
      "checkpoint",
    ],
    [
      "redundant experts",
      { model_type: "qwen3_moe", ...tiny, ...experts },
      "hf:2",
      "vllm:tp=4,ep,redundant=2",
      "state_dict",
    ],
    [
      "transposed experts, a bias added once",
      { model_type: "gpt_oss", ...tiny, num_local_experts: 4 },
      "fsdp2:dp=3",
      "vllm:tp=2",
      "checkpoint",
    ],
    [
      "experts dealt one by one",
      { model_type: "deepseek_v3", topk_method: "noaux_tc", ...tiny, ...latent, ...routed },
      "fsdp2:dp=2",
      "vllm:tp=4,ep,placement=round_robin",
      "checkpoint",
    ],
    [
      "one by one, out of three dimensions",
      { model_type: "deepseek_v3", topk_method: "noaux_tc", ...tiny, ...latent, ...routed },
      "fsdp2:dp=2",
      "vllm:tp=4,ep,placement=round_robin",
      "state_dict",
    ],
    [
      "from engine to engine",
      { model_type: "qwen3_moe", ...tiny, ...experts },
      "vllm:tp=4,ep",
      "vllm:tp=2,dp=2",
      "checkpoint",
    ],
    [
      "from a shared gate",
      // Its class shares the hidden size out among the heads, whatever the config says.
      { model_type: "qwen2_moe", ...tiny, head_dim: 2, ...experts, shared_expert_intermediate_size: 8 },
      "fsdp2:dp=3",
      "vllm:tp=2,ep",
      "checkpoint",
    ],
    [
      "a router in float32",
      { model_type: "glm4_moe", ...tiny, ...routed },
      "fsdp2:dp=2,replicas=2",
      "vllm:tp=2,ep",
      "checkpoint",
    ],
  ])("%s", async (_, config, from, to, form) => {
    const model = modelOf(JSON.stringify({ torch_dtype: "float32", ...config }), { form });
    const parted = (preset: string, first: number): PartedSide =>
      applyParts(presetSide(preset, model, first), model.tensors, { modelDtype: model.dtype });
    const source = parted(from, 0);
    const target = parted(to, source.ranks.length);
    const joined = joinSides(source, target);
    const { pairs, tensors } = joined;
    const plan = await planTransfer({ pairs, tensors });
    plan.verify();
    const moved = simulate(plan.input, plan.chunks(), plan.buckets());
    const checkpoint = numberedCheckpoint(model.tensors);
    const shapes = new Map(model.tensors.map(({ name, shape }) => [name, shape]));
    const layouts = new LocalLayouts(target);
    for (const rank of target.ranks) {
      const memory = new Map<string, Int32Array>();
      const parameters = [...rankParameters(layouts, rank)];
      for (const { name, shape } of parameters) memory.set(name, new Int32Array(product(shape)));
      for (const view of partViews(joined, layouts, "target", rank)) {
        const planned = joined.parts[view.index]!;
        const { name, shape } = model.tensors[planned.tensor]!;
        const values = moved[view.index]!.get(rank)!;
        expect(values).toHaveLength(product(view.shape));
        const local = stridesOf(view.shape);
        values.forEach((value, index) => {
          const at = view.strides.reduce(
            (sum, stride, dim) => sum + (Math.floor(index / local[dim]!) % view.shape[dim]!) * stride,
            view.offset,
          );
          // The simulator numbers a planned tensor's elements: the same element of the checkpoint's.
          const id = value - plainValue(view.index, 0);
          const within = stridesOf(planned.length);
          const element = stridesOf(shape).reduce(
            (sum, stride, dim) =>
              sum + (planned.start[dim]! + (Math.floor(id / within[dim]!) % planned.length[dim]!)) * stride,
            0,
          );
          memory.get(view.parameter)![at] = checkpoint.get(name)![element]!;
        });
      }
      for (const parameter of parameters) {
        expect(memory.get(parameter.name), `${parameter.name} on rank ${rank}`).toEqual(
          fillParameter(parameter, checkpoint, shapes),
        );
      }
    }
  });

  test("what the target drops stays, what only the source lacks is named", () => {
    const model = modelOf(JSON.stringify({ model_type: "llama", ...tiny }));
    const whole = applyParts(presetSide("hf:2", model), model.tensors);
    const without = { ...whole, parts: whole.parts.filter(({ tensor }) => tensor > 0) };
    expect(() => joinSides(without, whole)).toThrow(
      /the source is without 1 tensors that the target has: model\.embed/,
    );
    expect(joinSides(whole, without).tensors).toHaveLength(model.tensors.length - 1);
  });
});
