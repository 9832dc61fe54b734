/** Files for vLLM's ShardedStateLoader, against what vLLM's own loaders made of the same checkpoints. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { moveCheckpoint } from "../../src/checkpoint/mover.ts";
import { safetensorsSource } from "../../src/checkpoint/source.ts";
import { engineTarget } from "../../src/checkpoint/target-engine.ts";
import { itemSize } from "../../src/layout/index.ts";
import { contiguousStrides } from "../../src/layout/strides.ts";
import { modelOf } from "../../src/model/config.ts";
import {
  configOf,
  presetOf,
  type VllmBox,
  type VllmCase,
  type VllmParameter,
  vllmCases,
} from "../model/kit/vllm-cases.ts";
import { bytesOfTensor, readAll, type TensorSpec, testFolder, writeCheckpoint } from "./kit/folders.ts";

const folder = testFolder();

/** The elements of a region of a row-major tensor, by the order in which axes are walked. */
function walk(
  shape: readonly number[],
  start: readonly number[],
  length: readonly number[],
  order: readonly number[],
): number[] {
  const strides = contiguousStrides(shape);
  const first = start.reduce((sum, at, axis) => sum + at * strides[axis]!, 0);
  return order.reduce<number[]>(
    (ids, axis) =>
      ids.flatMap((id) => Array.from({ length: length[axis]! }, (_, at) => id + at * strides[axis]!)),
    [first],
  );
}

/** Pairs of elements: of the checkpoint's tensor, and of the parameter. */
function elementsOf(box: VllmBox, tensorShape: readonly number[], shape: readonly number[]) {
  const axes = box.axes?.filter((axis) => axis !== null);
  const rest = tensorShape
    .map((_, axis) => axis)
    .filter((axis) => axes !== undefined && !axes.includes(axis));
  const order = axes === undefined ? tensorShape.map((_, axis) => axis) : [...rest, ...axes];
  const from = walk(tensorShape, box.hfStart, box.hfLen, order);
  const to =
    shape.length === 0
      ? [0]
      : walk(
          shape,
          box.at,
          box.len ?? box.hfLen,
          shape.map((_, axis) => axis),
        );
  expect(to.length).toBe(from.length);
  return { from, to };
}

function keyOf({ name, aliases = [] }: VllmParameter): string {
  return [name, ...aliases].sort()[0]!;
}

function modelOfCase(each: VllmCase) {
  return modelOf(configOf(each), { form: each.hfForm });
}

describe("files for vLLM hold what its loaders make", () => {
  for (const each of vllmCases.filter(({ parallel }) => parallel.pp === 1)) {
    it(each.case, async () => {
      const model = modelOfCase(each);
      const { tp, dp } = each.parallel;
      const differ = each.ranks.some(
        ({ params }, rank) => JSON.stringify(params) !== JSON.stringify(each.ranks[rank % tp]!.params),
      );
      if (dp > 1 && differ) {
        expect(() => engineTarget(presetOf(each), model)).toThrow(/data-parallel rank/);
        return;
      }
      const { files } = engineTarget(presetOf(each), model);
      const specs: TensorSpec[] = model.tensors.map(({ name, shape, dtype }) => ({ name, shape, dtype }));
      await writeCheckpoint(join(folder(), "model.safetensors"), specs);
      const into = join(folder(), "out");
      mkdirSync(into);
      const source = await safetensorsSource(join(folder(), "model.safetensors"));
      await moveCheckpoint({ source, files, folder: into, verify: false });
      const tensors = new Map(
        specs.map((spec, salt) => [spec.name, { ...spec, bytes: bytesOfTensor(spec, salt) }]),
      );
      for (const [rank, { params }] of each.ranks.slice(0, tp).entries()) {
        const found = await readAll(join(into, `model-rank-${rank}-part-0.safetensors`));
        const scales = [...found.keys()].filter((key) => /\._(q|k|v|prob)_scale$/.test(key));
        expect(scales.length).toBe(4 * Number(model.config["num_hidden_layers"]));
        for (const key of scales) {
          expect(found.get(key)!.bytes.readFloatLE()).toBe(1);
          found.delete(key);
        }
        const written = params.filter(({ shape }) => !shape.includes(0));
        expect([...found.keys()].sort()).toEqual(written.map(keyOf).sort());
        for (const parameter of written) checkParameter(parameter, found.get(keyOf(parameter))!, tensors);
      }
    });
  }
});

type Tensors = ReadonlyMap<string, TensorSpec & { readonly bytes: Buffer }>;

function checkParameter(
  parameter: VllmParameter,
  found: { shape: readonly number[]; dtype: TensorSpec["dtype"]; bytes: Buffer },
  tensors: Tensors,
): void {
  expect(found.shape, parameter.name).toEqual(parameter.shape);
  const item = itemSize(found.dtype);
  let wrong = 0;
  for (const box of parameter.boxes) {
    const tensor = tensors.get(box.hf)!;
    if (tensor.dtype !== found.dtype) continue; // cast: its values are those of the kernels, which have tests of their own
    const { from, to } = elementsOf(box, tensor.shape, found.shape);
    from.forEach((id, index) => {
      const at = to[index]! * item;
      if (tensor.bytes.compare(found.bytes, at, at + item, id * item, (id + 1) * item) !== 0) wrong++;
    });
  }
  expect(wrong, `${parameter.name}: elements that are elsewhere`).toBe(0);
  for (const { at, len } of parameter.zero ?? []) {
    const ids = walk(
      found.shape,
      at,
      len,
      found.shape.map((_, axis) => axis),
    );
    expect(
      ids.every((id) => found.bytes.subarray(id * item, (id + 1) * item).every((byte) => byte === 0)),
    ).toBe(true);
  }
  for (const { value } of parameter.const ?? []) {
    if (found.dtype === "float32") expect(found.bytes.readFloatLE()).toBe(value);
    if (found.dtype === "bfloat16") expect(found.bytes.readUInt16LE()).toBe(value === -1 ? 0xbf80 : 0x3f80);
  }
}
