/** The layout of a result is read as it was written, whatever its parameters are called: lines that are alike are read once. */
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import { layoutBytes, readLayoutFile } from "../../src/checkpoint/layout-file.ts";
import type { TargetFile, TargetParameter } from "../../src/checkpoint/target.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-layout-"));
afterAll(() => rmSync(folder, { recursive: true }));

async function readBack(files: readonly TargetFile[]) {
  const path = join(folder, "layout.gz");
  const bytes = await layoutBytes(files);
  writeFileSync(path, bytes);
  const found = [];
  for await (const file of readLayoutFile(path, createHash("sha256").update(bytes).digest("hex")))
    found.push(file);
  return found;
}

const plainly = ({ name, shape, dtype, boxes }: TargetParameter) => ({ name, shape, dtype, boxes });

// Names that the text between two strings could be, and such as are part of each other.
const names = fc.constantFrom(
  "a",
  "aa",
  "a.b",
  ",",
  "],[",
  "",
  '"',
  "\\",
  "[",
  "0",
  "[0,2],",
  "layers.0/w-1",
  "float32",
  "bfloat16",
  "\0",
  "é",
);
const parameter = fc.record({
  name: names,
  shape: fc.constantFrom([2], [3]),
  dtype: fc.constantFrom("float32" as const, "bfloat16" as const),
  boxes: fc.array(
    fc.record({
      tensor: fc.option(names),
      start: fc.constantFrom([0], [4]),
      length: fc.constant([1]),
      at: fc.constantFrom([0], [1]),
      axes: fc.constant([0]),
    }),
    { maxLength: 2 },
  ),
});

test("parameters of any names, of boxes of their own tensor or of others, are read as they were written", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(parameter, { maxLength: 12 }), async (list) => {
      const parameters = list.map(({ boxes, ...rest }) => ({
        ...rest,
        boxes: boxes.map((box) => ({ ...box, tensor: box.tensor ?? rest.name })),
      }));
      const files = await readBack([{ name: "rank-0.safetensors", metadata: {}, parameters }]);
      expect(files.flatMap((file) => file.parameters.map(plainly))).toEqual(parameters);
    }),
    { seed: 11, numRuns: 400 },
  );
});

test("parameters of one kind share what they have in common, so that many take little memory", async () => {
  const parameters = ["layers.0.w", "layers.1.w"].map((name) => ({
    name,
    shape: [2],
    dtype: "float32" as const,
    boxes: [{ tensor: name, start: [0], length: [2], at: [0], axes: [0] }],
  }));
  const [file] = await readBack([{ name: "rank-0.safetensors", metadata: {}, parameters }]);
  const [one, other] = file!.parameters;
  expect(one!.places).toBeDefined();
  expect(one!.places).toBe(other!.places);
});
