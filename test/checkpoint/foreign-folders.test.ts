/** Folders that others have written: shards without an index, and the sharded state of vLLM. */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { moveCheckpoint } from "../../src/checkpoint/mover.ts";
import { type CheckpointSource, safetensorsSource } from "../../src/checkpoint/source.ts";
import { folderSource } from "../../src/checkpoint/source-folder.ts";
import { engineTarget } from "../../src/checkpoint/target-engine.ts";
import { modelTarget } from "../../src/checkpoint/target-model.ts";
import { modelOf } from "../../src/model/config.ts";
import { configOf, presetOf, vllmCases } from "../model/kit/vllm-cases.ts";
import { bytesOfTensor, readAll, type TensorSpec, testFolder, writeCheckpoint } from "./kit/folders.ts";

const folder = testFolder();

async function readSource(source: CheckpointSource) {
  const into = join(folder(), "again");
  mkdirSync(into);
  const { files } = modelTarget(source.tensors, Number.POSITIVE_INFINITY);
  await moveCheckpoint({ source, files, folder: into, verify: true });
  return readAll(join(into, "model.safetensors"));
}

describe("shards without an index", () => {
  const specs: TensorSpec[] = ["a", "b", "c"].map((name) => ({ name, shape: [3, 4], dtype: "int32" }));
  const nameOf = (number: number) => `model-0000${number}-of-00003.safetensors`;
  const write = async (number: number, tensors: readonly TensorSpec[]) =>
    writeCheckpoint(join(folder(), nameOf(number)), tensors, (spec) => bytesOfTensor(spec, number));

  it("are one checkpoint", async () => {
    for (const [index, spec] of specs.entries()) await write(index + 1, [spec]);
    const found = await readSource((await folderSource(folder(), "none"))!);
    for (const [index, spec] of specs.entries())
      expect(found.get(spec.name)!.bytes.equals(bytesOfTensor(spec, index + 1))).toBe(true);
  });

  it("of which one is missing, or that have a tensor twice, are refused", async () => {
    for (const number of [1, 2, 3]) await write(number, [specs[0]!]);
    await expect(folderSource(folder(), "none")).rejects.toMatchObject({
      code: "TB_CHECKPOINT",
      details: { tensor: "a" },
    });
    rmSync(join(folder(), nameOf(2)));
    await expect(folderSource(folder(), "none")).rejects.toMatchObject({
      code: "TB_CHECKPOINT",
      message: expect.stringContaining("2 of 3 shards"),
    });
  });
});

describe("the sharded state of vLLM", () => {
  const cases = vllmCases.filter(({ case: name }) =>
    ["qwen3-tp2", "qwen3moe-ep4-10experts", "qwen3moe-tp2"].includes(name),
  );
  expect(cases).toHaveLength(3);

  it.each(cases.map((each) => [each.case, each] as const))("is read again (%s)", async (_, each) => {
    const model = modelOf(configOf(each), { form: each.hfForm });
    const specs: TensorSpec[] = model.tensors.map(({ name, shape, dtype }) => ({ name, shape, dtype }));
    await writeCheckpoint(join(folder(), "model.safetensors"), specs);
    const { files, dropped } = engineTarget(presetOf(each), model);
    // vLLM writes several parts of a rank where one would be large.
    const parts = files.flatMap((file) => {
      const half = Math.ceil(file.parameters.length / 2);
      return [0, 1].map((part) => {
        const name = file.name.replace("part-0", `part-${part}`);
        const parameters = part === 0 ? file.parameters.slice(0, half) : file.parameters.slice(half);
        return { name, parameters, metadata: { ...file.metadata, "tensorbus.file": name } };
      });
    });
    const state = join(folder(), "state");
    mkdirSync(state);
    const source = await safetensorsSource(join(folder(), "model.safetensors"));
    await moveCheckpoint({ source, files: parts, folder: state, verify: false });
    const config = join(folder(), "config.json");
    writeFileSync(config, configOf(each));
    const found = await readSource((await folderSource(state, config))!);
    for (const [salt, spec] of specs.entries()) {
      if (dropped.has(spec.name)) continue;
      expect(found.get(spec.name)?.bytes.equals(bytesOfTensor(spec, salt)), spec.name).toBe(true);
    }
    rmSync(join(state, "model-rank-0-part-1.safetensors"));
    await expect(folderSource(state, config)).rejects.toMatchObject({ code: "TB_CHECKPOINT" });
  });
});
