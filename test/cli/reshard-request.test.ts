/** What `reshard` is asked: types by rules, folders of earlier results, and errors that name the option and the way out. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { safetensorsSource } from "../../src/checkpoint/source.ts";
import { type ReshardFlags, requestOfFlags } from "../../src/cli/reshard/request.ts";
import { describeTypes } from "../../src/cli/reshard/ways.ts";
import { type DType, itemSize } from "../../src/layout/index.ts";
import { createSafetensors, openSafetensors } from "../../src/model/safetensors.ts";
import { BundledCli } from "./kit/bundled-cli.ts";

type TensorSpec = { readonly name: string; readonly shape: number[]; readonly dtype: DType };

/** A quantised model, and what it keeps in wider types. */
const tensors: readonly TensorSpec[] = [
  { name: "layers.0.mlp.up.weight", shape: [64, 32], dtype: "bfloat16" },
  { name: "layers.0.mlp.gate.weight", shape: [8, 32], dtype: "float32" },
  { name: "layers.0.mlp.gate.e_score_correction_bias", shape: [8], dtype: "float32" },
  { name: "layers.0.norm.weight", shape: [32], dtype: "bfloat16" },
  { name: "layers.0.q.weight", shape: [32, 32], dtype: "float8_e4m3fn" },
  { name: "layers.0.q.weight_scale_inv", shape: [1, 1], dtype: "float32" },
  { name: "layers.0.steps", shape: [4], dtype: "int64" },
];

let folder: string;
let checkpoint: string;
let out: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "tensorbus-test-"));
  checkpoint = join(folder, "model.safetensors");
  await writeCheckpoint(checkpoint, tensors);
});
afterAll(() => rmSync(folder, { recursive: true }));
beforeEach(() => {
  out = mkdtempSync(join(folder, "out-"));
});

async function writeCheckpoint(path: string, list: readonly TensorSpec[]): Promise<void> {
  await using writer = await createSafetensors(path, list, { metadata: { licence: "none" } });
  for (const { name, shape, dtype } of list) {
    const bytes = shape.reduce((product, extent) => product * extent, itemSize(dtype));
    await writer.write(
      name,
      Uint8Array.from({ length: bytes }, (_, index) => index % 7),
    );
  }
  await writer.finish();
}

async function request(path: string, flags: ReshardFlags) {
  return requestOfFlags(await safetensorsSource(path), flags);
}

const layouts = { source: "2:S(0)", target: "2:R", rules: [] as string[] };

async function castsOf(flags: { targetDtype?: string; rules?: string[] }) {
  const { input } = await request(checkpoint, { ...layouts, ...flags });
  return Object.fromEntries(
    input.tensors.flatMap(({ name, dtype, targetDtype = dtype }) =>
      targetDtype === dtype ? [] : [[name.replace("layers.0.", ""), targetDtype]],
    ),
  );
}

describe("types", () => {
  it("are cast where the checkpoint has its main one, and nowhere unasked", async () => {
    expect(await castsOf({})).toEqual({});
    expect(await castsOf({ targetDtype: "float32" })).toEqual({
      "mlp.up.weight": "float32",
      "norm.weight": "float32",
    });
  });

  it("are a rule's, for what it takes", async () => {
    const rules = ["gate=S(0)->R:bfloat16", "norm=S(0)->R:bfloat16", "q.weight$=S(0)->R:float32"];
    expect(await castsOf({ targetDtype: "float32", rules })).toEqual({
      "mlp.up.weight": "float32",
      "mlp.gate.weight": "bfloat16",
      "mlp.gate.e_score_correction_bias": "bfloat16",
      "q.weight": "float32",
    });
  });

  it("of float8 that has a scale stay, even if most of the checkpoint is that", async () => {
    const path = join(folder, "float8.safetensors");
    await writeCheckpoint(path, [
      { name: "a.weight", shape: [64, 64], dtype: "float8_e4m3fn" },
      { name: "a.weight_scale_inv", shape: [1, 1], dtype: "float32" },
      { name: "b.weight", shape: [8, 8], dtype: "float8_e4m3fn" },
    ]);
    const { input } = await request(path, { ...layouts, targetDtype: "bfloat16" });
    const types = input.tensors.map(({ name, dtype, targetDtype = dtype }) => `${name} ${targetDtype}`);
    expect(types.sort()).toEqual([
      "a.weight float8_e4m3fn",
      "a.weight_scale_inv float32",
      "b.weight bfloat16",
    ]);
  });

  it("that were asked for, and that nothing has in the end, are said to be none", async () => {
    const path = join(folder, "scaled.safetensors");
    await writeCheckpoint(path, [
      { name: "a.weight", shape: [64, 64], dtype: "float8_e4m3fn" },
      { name: "a.weight_scale_inv", shape: [1, 1], dtype: "float32" },
    ]);
    const kept = "1 float32 kept, 1 float8_e4m3fn kept";
    const said = async (targetDtype?: string, rules: string[] = []) => {
      const flags = { ...layouts, rules, ...(targetDtype && { targetDtype }) };
      return describeTypes((await request(path, flags)).input, targetDtype);
    };
    expect(await said()).toBe(kept);
    expect(await said("bfloat16")).toMatch(`${kept}; nothing is bfloat16: `);
    expect(await said("bfloat16", ["weight$=S(0)->R:bfloat16"])).toMatch(/bfloat16 cast(, 1 float32 kept)?$/);
    expect(await said("float8_e4m3fn")).toBe(kept);
  });
});

describe("errors", () => {
  const failure = async (flags: Partial<typeof layouts> & { targetDtype?: string }, path = checkpoint) => {
    const error = await request(path, { ...layouts, ...flags }).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    const { code, message } = error as { code: string; message: string };
    return `${code} ${message}`;
  };

  it("name the option, and the rule as it was typed", async () => {
    expect(await failure({ rules: ["norm=S(0),R->R"] })).toMatch(
      /^TB_SPEC --rule "norm=S\(0\),R->R": 2 placements/,
    );
    expect(await failure({ rules: ["absent=R->R"] })).toMatch(
      /^TB_SPEC --rule "absent=R->R": .*matches none of the 7/,
    );
    expect(await failure({ rules: ["norm=R->R:float31"] })).toMatch(
      /^TB_DTYPE --rule "norm=R->R:float31": .*float31/,
    );
    expect(await failure({ source: "2x2:S(0)" })).toMatch(/^TB_SPEC --source "2x2:S\(0\)": 1 placements/);
    expect(await failure({ target: "2:Q(0)" })).toMatch(/^TB_(SPEC|PLACEMENT) --target "2:Q\(0\)"/);
    expect(await failure({ targetDtype: "half" })).toMatch(/^TB_DTYPE --target-dtype: .*half/);
    expect(await failure({ rules: ["no arrow"] })).toMatch(/^TB_SPEC --rule "no arrow": expected/);
  });

  it("say what there is in place of what was written", async () => {
    expect(await failure({ target: "2:S(5)" })).toMatch(
      /--target "2:S\(5\)" cuts a dimension that no tensor has: they have 2 at the most/,
    );
    expect(await failure({ target: "2:X(0)" })).toMatch(/not a placement: "X\(0\)"; there are R, S\(dim\)/);
  });

  it("name the rule to add for tensors of too few dimensions", async () => {
    const message = await failure({ target: "2:S(1)" });
    expect(message).toContain('--target "2:S(1)" cuts a dimension that 3 of 7 tensors do not have');
    expect(message).toContain("layers.*.norm.weight (1)");
    const rule = /--rule "([^"]+)"/.exec(message)![1]!;
    expect(rule).toBe("e_score_correction_bias|norm|steps=R->R");
    await request(checkpoint, { ...layouts, target: "2:S(1)", rules: [rule] });
  });

  it("tell what stands in place of a checkpoint, and what to do", async () => {
    const write = (name: string, text: string) => {
      writeFileSync(join(folder, name), text);
      return join(folder, name);
    };
    const pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n";
    expect(await failure({}, write("lfs.safetensors", pointer))).toMatch(
      /^TB_SAFETENSORS .*lfs\.safetensors: .*git-LFS pointer to 4976698672 bytes.*git lfs pull/,
    );
    expect(await failure({}, write("page.safetensors", "<!DOCTYPE html><html>404</html>"))).toMatch(
      /^TB_SAFETENSORS .*HTML page.*download/,
    );
    const empty = join(folder, "empty.safetensors");
    await writeCheckpoint(empty, []);
    expect(await failure({}, empty)).toMatch(/^TB_SAFETENSORS .*0 tensors/);
  });
});

describe("a result", () => {
  let cli: BundledCli;
  beforeAll(async () => {
    cli = await BundledCli.build();
  });
  const run = async (target: string, ...more: string[]) => {
    const { code, stdout, stderr } = await cli.run(
      ...["reshard", checkpoint, "--source", "2:S(0)", "--target", target, "--out", out, ...more],
    );
    return { code, stdout, stderr };
  };

  it("is not mixed with an earlier one: it is refused, or replaces all of it", async () => {
    const first = await run("3:R", "--target-dtype", "float32");
    expect(first).toMatchObject({ code: 0 });
    expect(first.stdout).toMatch(/2\s+bfloat16 -> float32 cast/);
    expect(first.stdout).toMatch(/1\s+float8_e4m3fn kept/);
    expect(first.stdout).toMatch(/checksums\s+of\s+what\s+was\s+read\s+and\s+cast/);
    const before = readdirSync(out).sort();
    expect(before).toEqual([
      "rank-0.safetensors",
      "rank-1.safetensors",
      "rank-2.safetensors",
      "tensorbus-layout.jsonl.gz",
      "tensorbus-manifest.json",
    ]);
    const refused = await run("2:R");
    expect(`${refused.code} ${refused.stderr}`).toMatch(
      /^2 [\s\S]*earlier result, of plan [0-9a-f]{16}.*--force.*TB_EXISTS/,
    );
    expect(readdirSync(out).sort()).toEqual(before);
    const replaced = await run("2:R", "--force");
    expect(replaced).toMatchObject({ code: 0 });
    expect(readdirSync(out).sort()).toEqual([
      "rank-0.safetensors",
      "rank-1.safetensors",
      "tensorbus-layout.jsonl.gz",
      "tensorbus-manifest.json",
    ]);
    const manifest = JSON.parse(readFileSync(join(out, "tensorbus-manifest.json"), "utf8"));
    expect(manifest.files.map(({ name }: { name: string }) => name)).toEqual([
      "rank-0.safetensors",
      "rank-1.safetensors",
    ]);
    expect(replaced.stdout).toContain(manifest.plan.slice(0, 16));
    await using file = await openSafetensors(join(out, "rank-0.safetensors"));
    expect(file.metadata).toMatchObject({ licence: "none", "tensorbus.plan": manifest.plan });
  });

  it("is not asked of an engine that there is not, or of a model without a config", async () => {
    const other = await run("vlm:tp=2");
    expect(`${other.code} ${other.stderr}`).toMatch(/^2 .*--target "vlm:tp=2": expected MESH:PLACEMENTS/);
    const vllm = await run("vllm:tp=2");
    expect(`${vllm.code} ${vllm.stderr}`).toMatch(/^2 .*there is no .*config\.json: name it by --model/);
  });

  it("takes what it lacks from an original, not from another model", async () => {
    const other = join(out, "other.safetensors");
    await writeCheckpoint(other, [{ name: "layers.0.norm.weight", shape: [16], dtype: "bfloat16" }]);
    const mixed = await run("hf", "--with", other);
    expect(`${mixed.code} ${mixed.stderr}`).toMatch(
      /^2 .*layers\.0\.norm\.weight .*is not the original.*TB_SHAPE/,
    );
  });

  it("needs a folder, and counts what an index leaves out", async () => {
    const file = join(out, "file");
    writeFileSync(file, "");
    const { code, stderr } = await cli.run(
      ...["reshard", checkpoint, "--source", "2:S(0)", "--target", "1:R", "--out", file],
    );
    expect(`${code} ${stderr}`).toMatch(/^2 [\s\S]*--out .*file is a file: name a folder/);
    const model = join(out, "model");
    mkdirSync(join(model, "shards"), { recursive: true });
    await writeCheckpoint(join(model, "shards/one.safetensors"), [
      { name: "a", shape: [4, 2], dtype: "float32" },
      { name: "b", shape: [4, 2], dtype: "float32" },
    ]);
    const index = { weight_map: { a: "shards/one.safetensors" } };
    writeFileSync(join(model, "model.safetensors.index.json"), JSON.stringify(index));
    const listed = await cli.run(
      ...["reshard", model, "--source", "2:S(0)", "--target", "1:R", "--out", join(out, "result")],
    );
    expect(listed.stdout).toMatch(/left out +1 tensors in its files that its index does not list/);
    expect(listed.code).toBe(0);
  });
});
