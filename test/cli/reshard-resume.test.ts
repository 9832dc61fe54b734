/** `reshard` killed at chosen moments and run again, and what it takes along beside weights. */
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  watch,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { layoutName, manifestName } from "../../src/checkpoint/names.ts";
import { type TensorSpec, writeCheckpoint } from "../checkpoint/kit/folders.ts";
import { BundledCli } from "./kit/bundled-cli.ts";

/** More than the command moves without threads. */
const tensors: readonly TensorSpec[] = Array.from({ length: 9 }, (_, at) => ({
  name: `t.${at}`,
  shape: [1024, 2048],
  dtype: "float32",
}));

let cli: BundledCli;
let folder: string;
let checkpoint: string;

beforeAll(async () => {
  cli = await BundledCli.build();
  folder = mkdtempSync(join(tmpdir(), "tensorbus-test-"));
  checkpoint = join(folder, "model.safetensors");
  await writeCheckpoint(checkpoint, tensors, (_, index) =>
    Buffer.alloc(2 ** 23).map((_byte, at) => at * 7 + (at >> 11) + index),
  );
});
afterAll(() => {
  rmSync(folder, { recursive: true });
});

function contents(path: string): [string, Buffer][] {
  return readdirSync(path)
    .sort()
    .map((name) => [name, readFileSync(join(path, name))]);
}

describe("a reshard that is killed", () => {
  it("when a file comes, and runs again, gives the bytes of one that was not", async () => {
    const args = ["reshard", checkpoint, "--target", "2:S(1)"];
    const whole = join(folder, "whole");
    expect((await cli.run(...args, "--out", whole)).code).toBe(0);
    const moments = ["rank-0.safetensors.partial", "tensorbus-journal.jsonl", "rank-0.safetensors"];
    for (const moment of moments) {
      const out = join(folder, `killed-${moment}`);
      mkdirSync(out);
      const first = cli.start([...args, "--out", out]);
      const watcher = watch(out, (_, name) => {
        if (name === moment) first.process.kill("SIGKILL");
      });
      await first.finished;
      watcher.close();
      const wasKilled = !existsSync(join(out, manifestName));
      if (moment.endsWith(".partial")) expect(wasKilled).toBe(true);
      const again = await cli.run(...args, "--out", out, ...(wasKilled ? [] : ["--force"]));
      expect(`${moment}: ${again.code} ${again.stderr}`).not.toContain("error");
      for (const [name, bytes] of contents(whole))
        expect(readFileSync(join(out, name)).equals(bytes), `${moment}: ${name}`).toBe(true);
      expect(readdirSync(out).sort()).toEqual(readdirSync(whole).sort());
    }
  });
});

describe("one checkpoint again", () => {
  it("takes along what belongs to a model, and nothing else that lies there", async () => {
    const model = join(folder, "model");
    mkdirSync(join(model, "blobs"), { recursive: true });
    await writeCheckpoint(join(model, "blobs", "weights"), [{ name: "w", shape: [4], dtype: "float32" }]);
    writeFileSync(join(model, "blobs", "tokenizer"), "{}");
    symlinkSync("blobs/weights", join(model, "model.safetensors"));
    symlinkSync("blobs/tokenizer", join(model, "tokenizer.json"));
    symlinkSync("nowhere", join(model, "vocab.json"));
    for (const name of ["__0_0.distcp", "optimizer.ckpt", "films.tar", ".env"])
      writeFileSync(join(model, name), "x");
    const plain = join(folder, "plain");
    const first = await cli.run("reshard", model, "--target", "hf", "--out", plain);
    expect(`${first.code} ${first.stderr}`).not.toContain("error");
    expect(first.stdout).toContain("there is no");
    expect(readdirSync(plain)).toEqual(["model.safetensors", manifestName]);
    writeFileSync(join(model, "LICENSE"), "free");
    chmodSync(join(model, "LICENSE"), 0o444);
    const config = join(model, "config.json");
    writeFileSync(config, JSON.stringify({ model_type: "another" }));
    const second = await cli.run("reshard", model, "--target", "hf", "--out", plain, "--force");
    expect(`${second.code} ${second.stderr}`).not.toContain("error");
    expect(second.stdout).toContain("unknown");
    const files = ["LICENSE", "config.json", "model.safetensors", manifestName, "tokenizer.json"];
    expect(readdirSync(plain)).toEqual(files);
    const again = await cli.run("reshard", model, "--target", "hf", "--out", plain, "--force");
    expect(`${again.code} ${again.stderr}`).not.toContain("error");
    const llama = {
      model_type: "llama",
      architectures: ["LlamaForCausalLM"],
      vocab_size: 8,
      hidden_size: 4,
      intermediate_size: 8,
      num_hidden_layers: 1,
      num_attention_heads: 2,
    };
    writeFileSync(config, JSON.stringify(llama));
    const lacking = await cli.run("reshard", model, "--target", "hf", "--out", plain, "--force");
    expect(lacking.stderr).toMatch(/does not have model\.layers.*TB_TENSOR_MISSING/);
    expect(readdirSync(plain)).toEqual(files);
    // What was taken along goes with the result, and nothing else.
    writeFileSync(join(plain, "notes.md"), "somebody's");
    const other = await cli.run("reshard", model, "--target", "1:R", "--out", plain, "--force");
    expect(`${other.code} ${other.stderr}`).not.toContain("error");
    expect(readdirSync(plain)).toEqual(["notes.md", "rank-0.safetensors", layoutName, manifestName]);
  });
});
