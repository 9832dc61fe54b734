import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { runCli } from "./kit/command-line.ts";

const configs = join(import.meta.dirname, "../model/configs");
const folder = mkdtempSync(join(tmpdir(), "tensorbus-presets-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const qwen3 = join(configs, "qwen3-8b.json");
const topology = "ranksPerHost=8,hostMBps=450000,networkMBps=50000,latencyUs=5";

describe("tensorbus plan --model", () => {
  const line = ["plan", "--model", qwen3, "--source", "fsdp2:dp=8", "--target", "vllm:tp=4,dp=2"];

  test("plans a model from a trainer to an engine, and names parameters", async () => {
    const { code, stdout, stderr } = await runCli(...line, "--topology", topology, "--verify");
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toContain("fsdp2:dp=8 (mesh 8, ranks 0..7)");
    expect(stdout).toContain("vllm:tp=4,dp=2 (mesh 8, ranks 8..15)");
    expect(stdout).toContain("verified");
    expect(stdout).toMatch(
      /qkv_proj\.weight {2}x 36\n {4}self_attn\.q_proj\.weight \+ self_attn\.k_proj\.weight \+ self/,
    );
  });

  test("is what a spec with the same presets plans", async () => {
    const spec = join(folder, "spec.yaml");
    writeFileSync(
      spec,
      `version: 1\nmodel: { config: ${qwen3} }\nsource: { preset: "fsdp2:dp=8" }\ntarget: { preset: "vllm:tp=4,dp=2" }\n`,
    );
    const read = async (...argv: string[]) => JSON.parse((await runCli(...argv, "--json")).stdout);
    const [one, other] = [await read(...line), await read("plan", spec)];
    expect(one.digest).toBe(other.digest);
    expect(one.parameters).toEqual(other.parameters);
    expect(one.proofs.target).toMatchObject({ tensors: 399, parameters: 291, ranks: 8 });
    const wider = join(folder, "wider.yaml");
    writeFileSync(wider, readFileSync(spec, "utf8").replace("tp=4,dp=2", "tp=8"));
    const { stdout } = await runCli("diff", spec, wider);
    expect(stdout).toMatch(/changed: 72 tensors, the first model\.layers\.0\.self_attn\.k_proj\.weight/);
    expect(stdout).toMatch(/parameter +model\.layers\.0\.self_attn\.qkv_proj\.weight/);
  });

  test("says where a rank's tensors lie in its parameters, for a client to register them by", async () => {
    const { views, pairs } = JSON.parse((await runCli(...line, "--rank", "9", "--json")).stdout);
    expect(pairs["ranks[S(0)] -> tp[R, S(0)]"].target).toEqual({
      mesh: { shape: [2, 4], ranks: [8, 9, 10, 11, 12, 13, 14, 15] },
      placements: ["R", "S(0)"],
      stridedShard: null,
    });
    expect(views.source).toEqual([]);
    expect(views.target).toHaveLength(399);
    expect(
      views.target.find(({ tensor }: { tensor: string }) => tensor.endsWith("layers.0.mlp.up_proj.weight")),
    ).toEqual({
      tensor: "model.layers.0.mlp.up_proj.weight",
      parameter: "model.layers.0.mlp.gate_up_proj.weight",
      dtype: "bfloat16",
      parameterShape: [6144, 4096],
      shape: [3072, 4096],
      offset: 3072 * 4096,
      strides: [4096, 1],
      pair: "ranks[S(0)] -> tp[R, S(0)]",
      globalShape: [12288, 4096],
    });
  });

  test("explain names the parameter that a tensor is a view of, and what a parameter is made of", async () => {
    const sides = line.slice(1);
    const name = "model.layers.3.self_attn.k_proj.weight";
    const { stdout } = await runCli("explain", ...sides, "--tensor", name, "--rank", "9");
    expect(stdout).toContain(
      "within model.layers.3.self_attn.qkv_proj.weight [1536, 4096] bfloat16, from element 4194304 on, strides [4096, 1]",
    );
    const json = JSON.parse(
      (await runCli("explain", ...sides, "--tensor", name, "--rank", "9", "--json")).stdout,
    );
    expect(json.views.target).toMatchObject({ offset: 1024 * 4096, strides: [4096, 1], shape: [256, 4096] });
    const parameter = await runCli(
      "explain",
      ...sides,
      "--tensor",
      name.replace("k_proj", "qkv_proj"),
      "--rank",
      "9",
    );
    expect(parameter.stderr).toContain(
      "is a parameter of the target, made of model.layers.3.self_attn.q_proj.weight",
    );
  });

  test.each([
    [["--target", "vllm:tp=3"], "--target: vllm:tp=3: 32 heads over tp=3 ranks would split a head"],
    [
      ["--target", "vllm:tp=4", "--topology", "ranksPerHost"],
      '--topology: "ranksPerHost" is not of the form KEY=NUMBER',
    ],
    [
      ["--target", "vllm:tp=4", "--topology", "ranksPerHost=8"],
      "--topology hostMBps: must be a number, and is missing",
    ],
    [["--target", "vllm:tp=4", "--target-dtype", "int4"], "--target-dtype"],
  ])("%s is refused by its option", async (more, message) => {
    const { code, stderr } = await runCli("plan", "--model", qwen3, "--source", "fsdp2:dp=8", ...more);
    expect(code).toBe(2);
    expect(stderr).toContain(message);
  });

  test.each([
    [["--model", qwen3], "needs --source and --target"],
    [["spec.yaml", "--model", qwen3], "takes the place of argument 'spec'"],
    [["spec.yaml", "--source", "fsdp2:dp=8"], "a spec has its own sides"],
  ])("%s says what belongs together", async (argv, message) => {
    const { code, stderr } = await runCli("plan", ...argv);
    expect(code).toBe(2);
    expect(stderr).toContain(message);
  });

  test("Kimi-K2, a trillion parameters, between 1024 and 384 ranks", async () => {
    const kimi = join(configs, "kimi-k2.json");
    const argv = [
      "plan",
      "--model",
      kimi,
      "--no-quantized",
      "--source",
      "fsdp2:dp=1024",
      "--target",
      "vllm:tp=8,dp=48,ep",
    ];
    const { code, stdout } = await runCli(...argv, "--topology", topology, "--json");
    expect(code).toBe(0);
    const { stats, proofs, schedule } = JSON.parse(stdout);
    expect(stats.tensors).toBe(69_975);
    expect(proofs.target.pieces).toBe(397_440);
    expect(schedule.ratio).toBeLessThan(2);
    // Every rank of the engine gets its expert, its shards, and what is replicated, once.
    expect(Object.keys(stats.bytes)).toContain("send");
  }, 120_000);
});

describe("a spec's own parts", () => {
  const spec = (target: string) => `
version: 1
model:
  tensors:
    - { name: model.layers.0.self_attn.q_proj.weight, shape: [64, 32], dtype: bfloat16 }
    - { name: model.layers.0.self_attn.k_proj.weight, shape: [16, 32], dtype: bfloat16 }
    - { name: model.layers.0.self_attn.inv_freq, shape: [4], dtype: float32 }
source:
  ranks: 0..1
  meshes: { all: [2] }
  parameters: [{ match: '{*}', into: '{*}', mesh: all, placements: [S(0)] }]
target:
  ranks: 2..5
  meshes: { tp: [4], kv: [2, 2] }
  parameters:
    - { match: '{L}.self_attn.q_proj.{s}', into: '{L}.self_attn.qk.{s}', order: 0, mesh: tp, placements: [S(0)], unit: 8 }
    - { match: '{L}.self_attn.k_proj.{s}', into: '{L}.self_attn.qk.{s}', order: 1, mesh: kv, placements: [S(0), R], unit: 8 }
${target}`;
  const write = (text: string): string => {
    const path = join(folder, "parts.yaml");
    writeFileSync(path, text);
    return path;
  };

  test("are planned, and drop what the engine lacks", async () => {
    const path = write(spec("    - { match: '{L}.self_attn.inv_freq', drop: 'it is computed' }"));
    const { code, stdout, stderr } = await runCli("plan", path, "--verify", "--json");
    expect([code, stderr]).toEqual([0, ""]);
    const { stats, parameters, proofs } = JSON.parse(stdout);
    expect(stats.tensors).toBe(2);
    expect(proofs.target).toMatchObject({ dropped: 1, parameters: 1, pieces: 8 });
    expect(parameters).toEqual([
      {
        parameter: "model.layers.{}.self_attn.qk.weight",
        count: 1,
        parts: ["model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.self_attn.k_proj.weight"],
        tensors: 2,
      },
    ]);
  });

  test.each([
    [
      "",
      /target\.parameters: 1 of 3 tensors match no rule: model\.layers\.0\.self_attn\.inv_freq.* \(TB_SPEC\)/,
    ],
    [
      "    - { match: '{*}', drop: x }\n    - { match: '{L}.b', drop: y }",
      /rule 4, \{L\}\.b: matches none of the 3 tensors/,
    ],
    [
      "    - { match: '{*}', drop: x }\nplacements: [{ match: x, source: [R], target: [R] }]",
      /placements: belong to meshes; these sides have parameters/,
    ],
    ["    - { match: '{*}', drop: x, order: -1 }", /target\.parameters\[2\]\.order: must be 0 or more/],
  ])("%s is refused at its place", async (target, message) => {
    const { code, stderr } = await runCli("plan", write(spec(target)));
    expect(code).toBe(2);
    expect(stderr).toMatch(message);
  });

  test("of docs/parts.md are planned as they stand there, and what a client reads of them is right", async () => {
    const docs = readFileSync(join(import.meta.dirname, "../../docs/parts.md"), "utf8");
    const yaml = /```yaml\n([\s\S]*?)```/.exec(docs)![1]!;
    const path = write(yaml.replace("llama-3-8b.json", join(configs, "llama-3-8b.json")));
    const { code, stdout, stderr } = await runCli("plan", path, "--rank", "9", "--json");
    expect([code, stderr]).toEqual([0, ""]);
    const { parameters, views } = JSON.parse(stdout);
    expect(parameters).toHaveLength(9);
    const key = views.target.find(({ tensor }: { tensor: string }) =>
      tensor.endsWith("layers.0.self_attn.k_proj.weight"),
    );
    // 256 rows of queries come before the 128 of one head of keys.
    expect(key).toMatchObject({ offset: 256 * 4096, shape: [128, 4096], parameterShape: [512, 4096] });
  });

  test("a preset needs a config, and both sides parts", async () => {
    const tensors = "model: { tensors: [{ name: a, shape: [4], dtype: float32 }] }";
    const preset = await runCli(
      "plan",
      write(`version: 1\n${tensors}\nsource: { preset: "hf:2" }\ntarget: { preset: "hf:4" }\n`),
    );
    expect(preset.stderr).toContain("source.preset: needs the model's config");
    const mixed = await runCli(
      "plan",
      write(`version: 1\n${tensors}\nsource: { preset: "hf:2" }\ntarget: { mesh: [2] }\n`),
    );
    expect(mixed.stderr).toContain("give both in parts");
  });
});
