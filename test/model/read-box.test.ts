import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { boxRuns } from "../../src/model/box.ts";
import {
  createSafetensors,
  openSafetensors,
  type SafetensorsCheckpoint,
} from "../../src/model/safetensors.ts";

fc.configureGlobal({ seed: 20_261 });

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "tensorbus-box-"));
});
afterAll(async () => {
  await rm(folder, { recursive: true });
});

/** An int32 tensor whose elements are their row-major index, opened from a file. */
async function counting(shape: readonly number[]): Promise<SafetensorsCheckpoint> {
  const path = join(folder, "counting.safetensors");
  await using writer = await createSafetensors(path, [{ name: "w", shape, dtype: "int32" }]);
  const count = shape.reduce((a, b) => a * b, 1);
  await writer.write("w", new Uint8Array(Int32Array.from({ length: count }, (_, index) => index).buffer));
  await writer.finish();
  return await openSafetensors(path);
}

/** The naive way: every element of the box, one by one. */
function naive(
  shape: readonly number[],
  offsets: readonly number[],
  lengths: readonly number[],
  into: Int32Array,
  targetShape: readonly number[],
  targetOffsets: readonly number[],
): void {
  const flat = (extents: readonly number[], index: readonly number[]) =>
    index.reduce((sum, value, dim) => sum * extents[dim]! + value, 0);
  const visit = (index: number[]): void => {
    if (index.length < shape.length) {
      for (let i = 0; i < lengths[index.length]!; i++) visit([...index, i]);
      return;
    }
    const from = index.map((value, dim) => value + offsets[dim]!);
    const to = index.map((value, dim) => value + targetOffsets[dim]!);
    into[flat(targetShape, to)] = flat(shape, from);
  };
  visit([]);
}

/** A dimension: extent, offset and length of the box, and what the target has before and after it. */
const dimension = fc
  .record({
    before: fc.nat(3),
    length: fc.nat(4),
    after: fc.nat(3),
    targetBefore: fc.nat(2),
    targetAfter: fc.nat(2),
  })
  .map((d) => ({
    ...d,
    extent: d.before + d.length + d.after,
    target: d.targetBefore + d.length + d.targetAfter,
  }));

describe("readBox", () => {
  test("reads what a naive loop reads, into a packed and into a larger tensor", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(dimension, { maxLength: 4 }), async (dimensions) => {
        const shape = dimensions.map((d) => d.extent);
        const [offsets, lengths] = [dimensions.map((d) => d.before), dimensions.map((d) => d.length)];
        const targets = [
          { shape: lengths, offsets: lengths.map(() => 0) },
          { shape: dimensions.map((d) => d.target), offsets: dimensions.map((d) => d.targetBefore) },
        ];
        await using checkpoint = await counting(shape);
        for (const [index, target] of targets.entries()) {
          const size = target.shape.reduce((a, b) => a * b, 1);
          const [found, expected] = [new Int32Array(size).fill(-1), new Int32Array(size).fill(-1)];
          const bytes = new Uint8Array(found.buffer);
          await checkpoint.readBox("w", { offsets, lengths }, bytes, index === 0 ? undefined : target);
          naive(shape, offsets, lengths, expected, target.shape, target.offsets);
          expect(found).toEqual(expected);
        }
      }),
      { numRuns: 150, seed: 20 },
    );
  });

  test("short runs close together, far apart, and longer than one window", async () => {
    for (const [rows, columns, from, length] of [
      [4096, 512, 100, 3], // close together: several to a window, and several windows
      [8, 40_000, 17, 5], // further apart than a window bridges
      [3, 400_000, 1, 390_000], // each longer than a window
    ] as const) {
      await using checkpoint = await counting([rows, columns]);
      const found = new Int32Array(rows * length);
      await checkpoint.readBox(
        "w",
        { offsets: [0, from], lengths: [rows, length] },
        new Uint8Array(found.buffer),
      );
      const wrong = found.findIndex(
        (value, index) => value !== Math.floor(index / length) * columns + from + (index % length),
      );
      expect(wrong).toBe(-1);
    }
  });

  test("a box outside of the tensor and memory of another size are errors", async () => {
    await using checkpoint = await counting([4, 4]);
    const read = (offsets: number[], lengths: number[], bytes: number) =>
      checkpoint.readBox("w", { offsets, lengths }, new Uint8Array(bytes));
    await expect(read([0, 1], [4, 4], 64)).rejects.toMatchObject({ code: "TB_SHAPE" });
    await expect(read([-1, 0], [2, 4], 32)).rejects.toMatchObject({ code: "TB_SHAPE" });
    await expect(read([0], [4], 16)).rejects.toMatchObject({ code: "TB_SHAPE" });
    await expect(read([0, 0], [4, 4], 63)).rejects.toMatchObject({ code: "TB_REGION" });
    const target = { shape: [2, 2], offsets: [1, 0] };
    const outside = checkpoint.readBox("w", { offsets: [0, 0], lengths: [2, 2] }, new Uint8Array(16), target);
    await expect(outside).rejects.toMatchObject({ code: "TB_SHAPE" });
  });
});

describe("boxRuns", () => {
  const runs = (shape: number[], offsets: number[], lengths: number[]) => [
    ...boxRuns(
      shape,
      { offsets, lengths },
      lengths,
      lengths.map(() => 0),
    ),
  ];

  test("merges whole inner dimensions into one run", () => {
    expect(runs([8, 4, 4], [2, 0, 0], [3, 4, 4])).toEqual([{ from: 32, to: 0, length: 48 }]);
    expect(runs([8, 4], [1, 2], [2, 2])).toEqual([
      { from: 6, to: 0, length: 2 },
      { from: 10, to: 2, length: 2 },
    ]);
    expect(runs([], [], [])).toEqual([{ from: 0, to: 0, length: 1 }]);
    expect(runs([4, 0], [0, 0], [4, 0])).toEqual([]);
  });
});
