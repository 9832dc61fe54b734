import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { configOf, presetOf, type VllmCase, type VllmParameter, vllmCases } from "../model/kit/vllm-cases.ts";
import { BundledCli } from "./kit/bundled-cli.ts";
import { runCli } from "./kit/command-line.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-layout-"));
let cli: BundledCli;
beforeAll(async () => {
  cli = await BundledCli.build();
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

function write(name: string, config: string): string {
  const path = join(folder, `${name}.json`);
  writeFileSync(path, config);
  return path;
}

const byName = (params: readonly VllmParameter[]) => Object.fromEntries(params.map((one) => [one.name, one]));

describe("tensorbus layout", () => {
  test.each(vllmCases.map((one) => [one.case, one] as const))("prints what vLLM loads: %s", (_, one) =>
    compare(one, runCli));

  test("does so as a program of its own", () =>
    compare(vllmCases.find(({ case: name }) => name === "llama-tp2-pp2")!, (...argv) => cli.run(...argv)));

  async function compare(
    one: VllmCase,
    run: (...argv: string[]) => Promise<{ code: number | null; stdout: string; stderr: string }>,
  ): Promise<void> {
    const path = write(one.case, configOf(one));
    const argv = ["layout", "--model", path, "--engine", presetOf(one), "--form", one.hfForm, "--json"];
    const { code, stdout, stderr } = await run(...argv);
    expect([code, stderr], one.case).toEqual([0, ""]);
    const { ranks } = JSON.parse(stdout) as { ranks: { params: VllmParameter[] }[] };
    const expected = one.ranks.map(({ params }) => byName(params));
    expect(ranks.map(({ params }) => byName(params))).toEqual(expected);
  }

  test("of one rank, and with the model's own type where the config has one", async () => {
    const one = vllmCases.find(({ case: name }) => name === "llama-tp2-pp2")!;
    const path = write("typed", JSON.stringify({ ...JSON.parse(configOf(one)), torch_dtype: "bfloat16" }));
    const { code, stdout } = await runCli(
      "layout",
      "--model",
      path,
      "--engine",
      presetOf(one),
      "--rank",
      "3",
      "--json",
    );
    expect(code).toBe(0);
    const { rank, params } = JSON.parse(stdout) as { rank: number; params: VllmParameter[] };
    expect(rank).toBe(3);
    const expected = one.ranks[3]!.params.map((parameter) => ({ ...parameter, dtype: "bfloat16" }));
    expect(byName(params)).toEqual(byName(expected));
  });

  test("for people: names, shapes, what parameters are made of, and the proof", async () => {
    const one = vllmCases.find(({ case: name }) => name === "qwen3moe-ep4-10experts")!;
    const path = write("people", configOf(one));
    const { code, stdout } = await runCli(
      "layout",
      "--model",
      path,
      "--engine",
      "vllm:tp=4,ep",
      "--rank",
      "3",
    );
    expect(code).toBe(0);
    expect(stdout).toContain("Layout qwen3_moe as vllm:tp=4,ep, rank 3 of 4");
    expect(stdout).toMatch(/self_attn\.q_proj\.weight\[96:128, 0:64\]/);
    expect(stdout).toContain("zeros");
    expect(stdout).toMatch(/Proved \d+ tensors lie whole in \d+ parameters on 4 ranks/);
  });

  test("what travels from another preset or to it, as views that a client registers", async () => {
    const experts = vllmCases.find(({ case: name }) => name === "qwen3moe-ep4-10experts")!;
    const path = write("views", configOf(experts));
    const argv = ["layout", "--model", path, "--engine", "vllm:tp=4,ep", "--rank", "3", "--json"];
    const { code, stdout } = await runCli(...argv, "--source", "fsdp2:dp=2");
    expect(code).toBe(0);
    const { views, layouts, worldSize } = JSON.parse(stdout);
    expect(worldSize).toBe(4);
    const view = views.find(({ tensor }: { tensor: string }) => tensor.endsWith("experts.8.up_proj.weight"));
    // Of ten experts the last rank has two: the first of them, behind its gate, which lies on that rank alone.
    expect(view).toMatchObject({ shape: [32, 64], offset: 32 * 64, strides: [64, 1], globalShape: [32, 64] });
    expect(layouts[view.layout]).toEqual({
      mesh: { shape: [1], ranks: [3] },
      placements: ["R"],
      stridedShard: null,
    });
    const back = ["layout", "--model", path, "--engine", "fsdp2:dp=2", "--rank", "1", "--json"];
    const sent = JSON.parse((await runCli(...back, "--target", "vllm:tp=4,ep")).stdout);
    expect(sent.layouts).toEqual([
      { mesh: { shape: [2], ranks: [0, 1] }, placements: ["S(0)"], stridedShard: "order" },
    ]);
    const { stderr } = await runCli(...argv.slice(0, -1), "--source", "hf:1");
    expect(stderr).toContain("'--source' and '--target' need '--rank <rank>' and '--json'");
  });

  test("a folder is its config.json, a rank that is none is refused", async () => {
    writeFileSync(join(folder, "config.json"), configOf(vllmCases[0]!));
    const found = await runCli("layout", "--model", folder, "--engine", "vllm:tp=2", "--rank", "2");
    expect(found.code).toBe(2);
    expect(found.stderr).toContain("vllm:tp=2 has ranks 0 to 1, not 2 (TB_MESH)");
    const missing = await runCli("layout", "--model", join(folder, "none"), "--engine", "vllm:tp=2");
    expect(missing.stderr).toContain("(TB_FILE)");
  });
});
