import { describe, expect, test } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { DeviceMesh, Replicate, Shard } from "../../src/layout/index.ts";
import { modelOf } from "../../src/model/config.ts";
import { applyParts } from "../../src/model/parts/apply.ts";
import { LocalLayouts } from "../../src/model/parts/local.ts";
import type { Part, PartedSide, PartKind } from "../../src/model/parts/parted.ts";
import { proveParts } from "../../src/model/parts/proof.ts";
import type { PartRule, SideRules } from "../../src/model/parts/rule.ts";
import { fillTemplate, parseTemplate } from "../../src/model/parts/template.ts";
import { presetSide } from "../../src/model/presets/side.ts";
import { configOf, presetOf, vllmCases } from "./kit/vllm-cases.ts";

function failure(run: () => unknown): TensorBusError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(TensorBusError);
    return error as TensorBusError;
  }
  throw new Error("it did not fail");
}

describe("templates", () => {
  const match = (template: string, name: string) => parseTemplate(template).match(name, name.split("."));

  test("{L} is a layer's prefix, {e} an expert, {s} a weight, a bias or a scale, {*} the rest", () => {
    expect(
      match("{L}.mlp.experts.{e}.gate_proj.{s}", "model.layers.12.mlp.experts.7.gate_proj.weight_scale_inv"),
    ).toEqual({
      prefix: "model.layers.12",
      layer: 12,
      expert: 7,
      suffix: "weight_scale_inv",
    });
    expect(match("{L}.{*}", "model.layers.3.enorm.weight")).toMatchObject({ layer: 3, rest: "enorm.weight" });
    expect(match("{*}", "a.b")).toEqual({ rest: "a.b" });
    expect(match("model.norm.weight", "model.norm.weight")).toEqual({});
  });

  test.each([
    ["{L}.self_attn.q_proj.{s}", "model.norm.weight"],
    ["{L}.self_attn.q_proj.{s}", "model.layers.x.self_attn.q_proj.weight"],
    ["{L}.self_attn.q_proj.{s}", "model.layers.0.self_attn.q_proj.data"],
    ["{L}.mlp.experts.{e}.up_proj.{s}", "model.layers.0.mlp.experts.one.up_proj.weight"],
    ["model.norm.{s}", "model.norms.weight"],
    ["{L}.{*}", "model.layers.0"],
  ])("%s does not match %s", (template, name) => expect(match(template, name)).toBeUndefined());

  test("fill other names", () => {
    const captures = match("{L}.mlp.experts.{e}.down_proj.{s}", "m.layers.0.mlp.experts.3.down_proj.weight")!;
    expect(fillTemplate("{L}.mlp.w2_{s}", captures)).toBe("m.layers.0.mlp.w2_weight");
  });
});

const small = {
  vocab_size: 130,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 2,
  num_attention_heads: 8,
  num_key_value_heads: 2,
};
const more = [
  ["phi3", { model_type: "phi3", ...small }, "vllm:tp=2"],
  [
    "qwen2_moe",
    {
      model_type: "qwen2_moe",
      ...small,
      num_experts: 6,
      moe_intermediate_size: 32,
      shared_expert_intermediate_size: 48,
    },
    "vllm:tp=4,ep",
  ],
  [
    "glm4_moe",
    {
      model_type: "glm4_moe",
      ...small,
      num_hidden_layers: 4,
      n_routed_experts: 6,
      moe_intermediate_size: 32,
      use_qk_norm: true,
    },
    "vllm:tp=2,pp=2",
  ],
] as const;

/** One layout of each family and kind, and of each preset of trainers. */
const layouts: readonly (readonly [string, PartedSide])[] = [
  ...[
    "llama-tp2-pp2",
    "qwen2-tp2",
    "qwen3-fp8block-tp2",
    "qwen3moe-ep4-10experts",
    "qwen3moe-ep4-statedict-fused3d-10experts",
    "qwen3moe-ep4-eplb-redundant4",
    "qwen3moe-fp8tensor-tp2",
    "deepseekv3-ep4-roundrobin",
    "deepseekv3-fp8block-tp2",
    "gemma3-tp2",
    "gptoss-tp2",
    "gptoss-ep4",
    "mixtral-ep4",
  ].map((name) => {
    const one = vllmCases.find((candidate) => candidate.case === name)!;
    return [name, sideOf(configOf(one), presetOf(one), one.hfForm)] as const;
  }),
  ...more.map(([name, config, preset]) => [name, sideOf(JSON.stringify(config), preset)] as const),
  ["a trainer", sideOf(JSON.stringify(more[1][1]), "fsdp2:dp=4,tp=2")] as const,
];

function sideOf(
  config: string,
  preset: string,
  form: "checkpoint" | "state_dict" = "checkpoint",
): PartedSide {
  const model = modelOf(config, { form });
  return applyParts(presetSide(preset, model), model.tensors, { modelDtype: model.dtype });
}

describe("the proof", () => {
  test.each(layouts)("of %s holds", (_, side) => {
    const proof = proveParts(new LocalLayouts(side));
    expect(proof.pieces).toBeGreaterThan(0);
  });

  /** A change of one part, `undefined` if it has no such change. */
  type Mutation = (part: Part, side: PartedSide) => readonly Part[] | undefined;
  const withKind = (part: Part, change: Partial<PartKind>): Part => ({
    ...part,
    // A kind of its own number: nothing is taken for what is known of the old one.
    kind: { ...part.kind, ...change, id: 1e6 + part.kind.id },
  });
  const changed = (values: readonly number[], at: number, by: number) =>
    values.map((value, index) => (index === at ? value + by : value));
  const mutations: Readonly<Record<string, Mutation>> = {
    dropped: () => [],
    doubled: (part) => [part, part],
    shifted: (part) =>
      part.kind.shape.length === 0 ? undefined : [withKind(part, { start: changed(part.kind.start, 0, 1) })],
    "cut one shorter": (part) =>
      part.kind.shape.length === 0
        ? undefined
        : [withKind(part, { length: changed(part.kind.length, 0, -1) })],
    "put behind its place": (part) => [withKind(part, { order: part.kind.order + 1 })],
    "put into another slot": (part, { parameters }) => {
      const { deal } = parameters[part.parameter]!;
      return deal === undefined ? undefined : [{ ...part, slot: (part.slot + 1) % deal.count }];
    },
    "cut at another row": (part) => {
      const { layout } = part.kind;
      const dim = layout.placements.findIndex((one) => one.kind === "shard" && one.sizes !== undefined);
      const placement = layout.placements[dim];
      if (placement?.kind !== "shard" || placement.sizes === undefined) return undefined;
      const from = placement.sizes.findIndex((size) => size > 0);
      const to = from + 1 < placement.sizes.length ? from + 1 : from - 1;
      if (to < 0) return undefined;
      const sizes = changed(changed(placement.sizes, from, -1), to, 1);
      const placements = layout.placements.map((one, index) =>
        index === dim ? { ...placement, sizes } : one,
      );
      return [withKind(part, { layout: { ...layout, id: 1e6, placements } })];
    },
  };

  function mutate(side: PartedSide, index: number, mutation: Mutation): PartedSide | undefined {
    const replaced = mutation(side.parts[index]!, side);
    if (replaced === undefined) return undefined;
    const parts = side.parts.flatMap((part, number) => (number === index ? replaced : [part]));
    const parameters = side.parameters.map((parameter, number) => ({
      ...parameter,
      parts: parts.flatMap((part, at) => (part.parameter === number ? [at] : [])),
    }));
    return { ...side, parts, parameters: parameters.map((one) => one) };
  }

  test.each(layouts)("catches each mutation of each kind of part of %s", (_, side) => {
    const seen = new Set<number>();
    let caught = 0;
    for (const [index, { kind }] of side.parts.entries()) {
      if (seen.has(kind.id)) continue;
      seen.add(kind.id);
      for (const [name, mutation] of Object.entries(mutations)) {
        const mutant = mutate(side, index, mutation);
        if (mutant === undefined) continue;
        const error = failure(() => proveParts(new LocalLayouts(mutant)));
        expect(error.code, `${kind.rule.match} ${name}: ${error.message}`).toBe("TB_PARTS");
        caught++;
      }
    }
    expect(caught).toBeGreaterThan(20);
  });
});

describe("rules", () => {
  const mesh = new DeviceMesh([2]);
  const tensors = [
    { name: "model.layers.0.a.weight", shape: [8, 4], dtype: "float32" },
    { name: "model.layers.0.b.weight", shape: [4, 4], dtype: "float32" },
  ] as const;
  const a: PartRule = {
    match: "{L}.a.{s}",
    into: "{L}.ab.{s}",
    order: 0,
    mesh: "tp",
    placements: [Shard(0)],
  };
  const b: PartRule = {
    match: "{L}.b.{s}",
    into: "{L}.ab.{s}",
    order: 1,
    mesh: "tp",
    placements: [Shard(0)],
  };
  const side = (...parameters: PartRule[]): SideRules => ({
    ranks: [0, 1],
    meshes: { tp: mesh },
    parameters,
  });
  const prove = (...parameters: PartRule[]) =>
    proveParts(new LocalLayouts(applyParts(side(...parameters), tensors)));

  test("put parts one behind the other", () => {
    const layouts = new LocalLayouts(applyParts(side(a, b), tensors));
    expect(layouts.local(0, 1)).toMatchObject({
      shape: [6, 4],
      pieces: [
        { start: [4, 0], length: [4, 4], at: [0, 0] },
        { start: [2, 0], length: [2, 4], at: [4, 0] },
      ],
    });
  });

  test.each<[string, readonly PartRule[], RegExp]>([
    ["a tensor that no rule takes", [a], /1 of 2 tensors match no rule: model\.layers\.0\.b\.weight/],
    ["two parts of one place", [a, { ...b, order: 0 }], /on rank 0 has two parts of order 0/],
    ["a gap", [a, { ...b, order: 2 }], /has no part of order 1/],
    ["parts of other widths", [a, { ...b, placements: [Shard(1)] }], /do not stand one behind the other/],
    [
      "a parameter that is too short",
      [
        { ...a, extent: 5 },
        { ...b, extent: 5 },
      ],
      /has 5 rows, and its parts have 6/,
    ],
    ["a part of a head", [{ ...a, unit: 8 }, b], /8 rows over 2 coordinates would split a unit of 8 rows/],
    [
      "overlapping ranges",
      [{ ...a, also: true, into: "x.{s}" }, { ...a, slice: { dim: 0, start: 0, length: 4 } }, b],
      /both take elements of tensor/,
    ],
    [
      "a range that is missing",
      [{ ...a, slice: { dim: 0, start: 0, length: 4 } }, b],
      /16 of 32 elements of tensor/,
    ],
    [
      "a slice that leaves the tensor",
      [{ ...a, slice: { dim: 0, start: 6, length: 4 } }, b],
      /does not fit shape/,
    ],
    ["an unknown mesh", [{ ...a, mesh: "pp" }, b], /its mesh "pp" is not one of tp/],
    [
      "placements for another mesh",
      [{ ...a, placements: [Replicate(), Shard(0)] }, b],
      /2 placements for the 1 dimensions/,
    ],
    ["a placeholder that is none", [{ ...a, match: "{x}.weight" }, b], /\{x\} is not one of/],
    ["a name of what is not captured", [{ ...a, into: "{e}" }, b], /has \{e\}, which match does not capture/],
    ["axes that are no order", [{ ...a, axes: [0, 0] }, b], /are not an order of 2 dimensions/],
  ])("%s is named", (_, parameters, message) => {
    const error = failure(() => prove(...parameters));
    expect(error.code).toBe("TB_PARTS");
    expect(error.message).toMatch(message);
  });

  test("tensors may be dropped, with a reason", () => {
    const dropped = applyParts(side(a, { match: "{L}.b.{s}", drop: "not needed" }), tensors);
    expect([...dropped.dropped]).toEqual([["model.layers.0.b.weight", "not needed"]]);
    expect(proveParts(new LocalLayouts(dropped))).toMatchObject({ tensors: 2, dropped: 1 });
  });
});
