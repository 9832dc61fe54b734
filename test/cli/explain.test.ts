import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { runCli } from "./kit/command-line.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-explain-"));
afterAll(() => rmSync(folder, { recursive: true }));
const examples = join(import.meta.dirname, "../../examples/specs");
const llama = join(examples, "llama-3-8b.yaml");
const colocated = join(examples, "fsdp2-tp.json");
const explain = (spec: string, tensor: string, rank: number, ...more: string[]) =>
  runCli("explain", spec, "--tensor", tensor, "--rank", String(rank), ...more);

describe("explain", () => {
  test("shows where a target's part comes from, in words and boxes", async () => {
    const { code, stdout, stderr } = await explain(llama, "model.layers.0.mlp.down_proj.weight", 9);
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(
      /^model\.layers\.0\.mlp\.down_proj\.weight {2}4096 x 14336, float32 -> bfloat16\n/,
    );
    expect(stdout).toContain("rank 9 of inference holds [:, 3584:7168], 4096 x 3584 locally, 28.0 MiB");
    expect(stdout).toContain(
      "Stage cross, from ranks of the source, cast to bfloat16 before it travels: 8 parts, 28.0 MiB",
    );
    expect(stdout).toMatch(
      /^ {2}\[512:1024, 3584:7168\] +\[512:1024, :\] +3\.50 MiB +rank 1 +\[:, 3584:7168\]$/m,
    );
  });

  test("shows where a source's part goes", async () => {
    const { stdout } = await explain(llama, "model.norm.weight", 7);
    expect(stdout).toContain("rank 7 of trainer holds [3584:4096], 512 locally, 2.00 KiB");
    expect(stdout.match(/rank (8|9|10|11) +\[3584:4096\]$/gm)).toHaveLength(4);
  });

  test("shows sums, copies within a rank, and strided shards", async () => {
    const sum = await explain(colocated, "layer.up.grad", 1);
    expect(sum.stdout).toMatch(/sum of ranks\n +\[512:1024, :\] +\[:, :\] +1\.00 MiB +1\.\.7 by 2$/m);
    const strided = await explain(colocated, "layer.up.weight", 1);
    expect(strided.stdout).toMatch(/^ {2}Copied from its own part of the source: 1 part, 128 KiB$/m);
  });

  test("shows what replicas get from each other, and fits a terminal", async () => {
    const { stdout } = await explain(join(examples, "kimi-k2.yaml"), "model.embed_tokens.weight", 1030);
    expect(stdout).toMatch(/^ {2}Stage fanout, from replicas that got it before: 252 parts, 1\.91 GiB$/m);
    expect(stdout).toMatch(/^ {2}\.\.\. and 236 more parts \(--json has them all\)$/m);
    expect(stdout.split("\n").filter((line) => line.length > 80)).toEqual([]);
  });

  test("--json has every part, with what was before and what follows", async () => {
    const { stdout } = await explain(colocated, "layer.up.grad", 2, "--json");
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({
      rank: 2,
      tensor: { name: "layer.up.grad", source: ["P(sum)", "S(0)"], target: ["S(0)"] },
      holds: { source: { localShape: [512, 512] }, target: null },
      arrivals: [],
    });
    const contribution = report.departures.find(({ stage }: { stage: number }) => stage === 0);
    expect(contribution.global[1]).toEqual(["0", "512"]);
    expect(contribution.after[0].to.rank).toBe(0);
  });

  test("works from a saved plan", async () => {
    const saved = join(folder, "saved.tbplan");
    await runCli("plan", colocated, "--save", saved);
    const [own, loaded] = [
      await explain(colocated, "layer.up.weight", 3),
      await explain(saved, "layer.up.weight", 3),
    ];
    expect(own.stdout).toContain("rank 3 of trainer holds");
    expect(loaded).toEqual({ ...own, stdout: own.stdout.replace("of trainer", "of source") });
  });

  test.each([
    ["a name that is not whole", "layers.0.mlp.down_proj", 8, "model.layers.0.mlp.down_proj.weight"],
    ["a misspelt name", "model.layer.0.mlp.donw_proj.weight", 8, "model.layers.0.mlp.down_proj.weight"],
  ])("suggests what %s may mean", async (_, tensor, rank, near) => {
    const { code, stdout, stderr } = await explain(llama, tensor, rank);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toContain(`has no tensor ${JSON.stringify(tensor)}; near it: ${near}`);
    expect(stderr).toMatch(/\(TB_TENSOR_UNKNOWN\)\n$/);
  });

  test("says nothing near where nothing is", async () => {
    const { stderr } = await explain(llama, "x", 8);
    expect(stderr).toMatch(/has no tensor "x" \(TB_TENSOR_UNKNOWN\)\n$/);
  });

  test("says who holds a tensor of which a rank holds nothing", async () => {
    const deepseek = join(examples, "deepseek-v3.yaml");
    const { code, stderr } = await explain(deepseek, "model.layers.9.mlp.experts.5.up_proj.weight", 300);
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /^error: rank 300 of inference holds nothing of .*; at the source ranks 0\.\.255 do, at the target ranks 258 \(TB_RANK_EMPTY\)\n$/,
    );
    const outside = await explain(llama, "model.norm.weight", 12);
    expect([outside.code, outside.stderr]).toEqual([
      2,
      `error: rank 12 is on neither side of ${llama} (TB_MESH)\n`,
    ]);
  });
});
