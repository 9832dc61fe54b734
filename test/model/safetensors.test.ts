import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { dtypes, isPacked, itemSize } from "../../src/layout/index.ts";
import { createSafetensors, openSafetensors } from "../../src/model/safetensors.ts";
import type { ModelTensor } from "../../src/model/tensor.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "tensorbus-safetensors-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});
const at = (name: string) => join(folder, name);

/** Bytes that tell their position: no two windows of one tensor look alike. */
function pattern(bytes: number, seed: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, index) => (index * 31 + (index >> 8) * 17 + seed) & 0xff);
}

async function writeFile(path: string, tensors: readonly ModelTensor[], metadata = {}): Promise<void> {
  await using writer = await createSafetensors(path, tensors, { metadata });
  for (const [index, { name, shape, dtype }] of tensors.entries()) {
    await writer.write(
      name,
      pattern(
        shape.reduce((a, b) => a * b, itemSize(dtype)),
        index,
      ),
    );
  }
  await writer.finish();
}

/** A file of a header's text (or bytes) and data bytes, with any claimed header length. */
function forge(header: string | Uint8Array, data: number, claimed?: bigint): string {
  const bytes = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(claimed ?? BigInt(bytes.length));
  const path = at("forged.safetensors");
  writeFileSync(path, Buffer.concat([prefix, bytes, Buffer.alloc(data)]));
  return path;
}

const entry = (dtype: string, shape: number[], begin: number, end: number) =>
  JSON.stringify({ dtype, shape, data_offsets: [begin, end] });

describe("a single file", () => {
  const tensors: ModelTensor[] = [
    ...dtypes.map((dtype) => ({ name: `t.${dtype}`, shape: isPacked(dtype) ? [3, 8] : [3, 5], dtype })),
    { name: "scalar", shape: [], dtype: "float32" },
    { name: "empty", shape: [0, 7], dtype: "bfloat16" },
    { name: 'odd "name" ü', shape: [2], dtype: "uint8" },
  ];

  test("gives back what was written, every tensor aligned to its type", async () => {
    await writeFile(at("a.safetensors"), tensors, { format: "pt" });
    await using checkpoint = await openSafetensors(at("a.safetensors"));
    expect(checkpoint.metadata).toEqual({ format: "pt" });
    expect(checkpoint.files).toEqual([at("a.safetensors")]);
    expect([...checkpoint.tensors.keys()].sort()).toEqual(tensors.map(({ name }) => name).sort());
    for (const [index, { name, shape, dtype }] of tensors.entries()) {
      const found = checkpoint.tensor(name);
      expect(found).toMatchObject({ name, shape, dtype, file: at("a.safetensors") });
      expect(found.position % Math.max(1, itemSize(dtype))).toBe(0);
      const bytes = new Uint8Array(found.bytes);
      await checkpoint.read(name, bytes);
      expect(bytes).toEqual(pattern(found.bytes, index));
    }
  });

  test("reads ranges of a tensor, and nothing beyond it", async () => {
    await writeFile(at("a.safetensors"), tensors);
    await using checkpoint = await openSafetensors(at("a.safetensors"));
    const bytes = new Uint8Array(7);
    await checkpoint.read("t.float64", bytes, 11);
    expect(bytes).toEqual(pattern(120, 0).subarray(11, 18));
    await expect(checkpoint.read("t.float64", bytes, 114)).rejects.toMatchObject({ code: "TB_REGION" });
    await expect(checkpoint.read("t.float64", bytes, -1)).rejects.toMatchObject({ code: "TB_REGION" });
    await expect(checkpoint.read("none", bytes)).rejects.toMatchObject({ code: "TB_TENSOR_MISSING" });
    const signal = AbortSignal.abort();
    await expect(checkpoint.read("t.int8", bytes, 0, { signal })).rejects.toMatchObject({
      code: "TB_CANCELLED",
    });
  });

  test("says so where it is no file of tensors", async () => {
    await expect(openSafetensors(at("none"))).rejects.toMatchObject({
      code: "TB_FILE",
      message: `cannot open ${at("none")}: no such file or folder`,
    });
    await expect(openSafetensors(folder)).rejects.toMatchObject({ code: "TB_FILE" });
    await expect(openSafetensors("/dev/zero")).rejects.toMatchObject({ code: "TB_FILE" });
  });
});

describe("damaged headers", () => {
  const name = '"w"';
  test.each([
    [
      "an empty file",
      () => writeAndName(new Uint8Array(0)),
      /has 0 bytes, and the length of the header alone takes 8/,
    ],
    ["a truncated length", () => writeAndName(new Uint8Array(5)), /has 5 bytes/],
    ["a header beyond the file", () => forge("{}", 0, 100n), /claims a header of 100 bytes and has only 10/],
    [
      "a huge header",
      () => forge("{}", 0, 2n ** 63n),
      /claims a header of 9223372036854775808 bytes; at most 100000000/,
    ],
    ["no UTF-8", () => forge(Uint8Array.of(0x7b, 0xff, 0x7d), 0), /not UTF-8/],
    ["a byte order mark", () => forge("\uFEFF{}", 0), /not JSON/],
    ["no JSON", () => forge("{]", 0), /not JSON/],
    ["no object", () => forge("[]", 0), /is not a JSON object/],
    [
      "a name twice",
      () => forge(`{${name}:${entry("U8", [1], 0, 1)},${name}:${entry("U8", [1], 0, 1)}}`, 1),
      /"w" twice/,
    ],
    [
      "an escaped name twice",
      () => forge(`{"\\u0077":${entry("U8", [1], 0, 1)},${name}:${entry("U8", [1], 1, 2)}}`, 2),
      /"w" twice/,
    ],
    [
      "a field twice",
      () => forge(`{${name}:{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,2]}}`, 2),
      /"shape" twice/,
    ],
    ["no description", () => forge(`{${name}:3}`, 0), /the entry of tensor "w" must be an object, not 3/],
    [
      "a negative size",
      () => forge(`{${name}:${entry("U8", [-1], 0, 1)}}`, 1),
      /tensor "w" has the shape \[-1\]/,
    ],
    [
      "a broken size",
      () => forge(`{${name}:${entry("U8", [1.5], 0, 1)}}`, 1),
      /the number 1\.5, which is not an integer/,
    ],
    ["offsets backwards", () => forge(`{${name}:${entry("U8", [1], 1, 0)}}`, 1), /data_offsets \[1,0\]/],
    [
      "offsets beyond exact numbers",
      () => forge(`{${name}:${entry("U8", [1], 0, 2 ** 60)}}`, 1),
      /data_offsets/,
    ],
    [
      "a size that does not match",
      () => forge(`{${name}:${entry("F32", [3], 0, 8)}}`, 8),
      /3 of F32 takes 12 bytes, its data_offsets \[0, 8\] hold 8/,
    ],
    [
      "a shape that overflows",
      () => forge(`{${name}:${entry("F32", [2 ** 40, 2 ** 40], 0, 8)}}`, 8),
      /takes too many bytes/,
    ],
    ["a truncated file", () => forge(`{${name}:${entry("U8", [9], 0, 9)}}`, 4), /truncated/],
    [
      "bytes after the last tensor",
      () => forge(`{${name}:${entry("U8", [1], 0, 1)}}`, 3),
      /2 bytes after its last tensor/,
    ],
    [
      "a hole",
      () => forge(`{${name}:${entry("U8", [1], 0, 1)},"v":${entry("U8", [1], 2, 3)}}`, 3),
      /"v".*leaves a hole/,
    ],
    [
      "an overlap",
      () => forge(`{${name}:${entry("U8", [2], 0, 2)},"v":${entry("U8", [2], 1, 3)}}`, 3),
      /"v".*overlaps/,
    ],
    [
      "an empty tensor inside of another",
      () => forge(`{${name}:${entry("U8", [2], 0, 2)},"v":${entry("U8", [0], 1, 1)}}`, 2),
      /"v".*overlaps/,
    ],
    ["metadata of numbers", () => forge(`{"__metadata__":{"a":1}}`, 0), /__metadata__ is not a map/],
  ])("%s", async (_, make, message) => {
    const path = make();
    const error = await openSafetensors(path).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: "TB_SAFETENSORS", exitCode: 2, details: { file: path } });
    expect((error as Error).message).toMatch(message);
  });

  test.each([
    "F3",
    "F8_E9M0",
    "U128",
    "C128",
    "float32",
    "",
  ])("the element type %j is refused by name", async (dtype) => {
    const error = await openSafetensors(forge(`{${name}:${entry(dtype, [2], 0, 2)}}`, 2)).catch(
      (e: unknown) => e,
    );
    expect(error).toMatchObject({ code: "TB_DTYPE", details: { tensor: "w", dtype } });
  });

  test("packed elements that do not fill whole bytes are refused, when read and when written", async () => {
    const read = openSafetensors(forge(`{${name}:${entry("F4", [3], 0, 2)}}`, 2));
    await expect(read).rejects.toMatchObject({ code: "TB_SAFETENSORS" });
    const odd: ModelTensor = { name: "w", shape: [6], dtype: "float6_e2m3fn" };
    await expect(createSafetensors(at("w.safetensors"), [odd])).rejects.toThrow(
      /inside of a byte of float6_e2m3fn/,
    );
  });

  test("what the reference implementation takes is taken: spaces, any order, empty tensors, no tensors", async () => {
    const path = forge(
      `{"b":${entry("U8", [1], 1, 2)},"a":${entry("U8", [1], 0, 1)},"z":${entry("U8", [0], 1, 1)},"__metadata__":null}   `,
      2,
    );
    await using checkpoint = await openSafetensors(path);
    expect([...checkpoint.tensors.keys()]).toEqual(["b", "a", "z"]);
    await using none = await openSafetensors(forge("{}", 0));
    expect(none.tensors.size).toBe(0);
  });

  function writeAndName(bytes: Uint8Array): string {
    writeFileSync(at("short.safetensors"), bytes);
    return at("short.safetensors");
  }
});

describe("a checkpoint of several files", () => {
  const index = (weightMap: Record<string, unknown>) => {
    writeFileSync(
      at("model.safetensors.index.json"),
      JSON.stringify({ metadata: {}, weight_map: weightMap }),
    );
    return at("model.safetensors.index.json");
  };
  beforeEach(async () => {
    await writeFile(at("one.safetensors"), [{ name: "a", shape: [4], dtype: "int32" }], { format: "pt" });
    await writeFile(at("two.safetensors"), [
      { name: "b", shape: [2, 2], dtype: "float16" },
      { name: "extra", shape: [1], dtype: "bool" },
    ]);
  });

  test("is one list of tensors, by the folder or by the index", async () => {
    const path = index({ b: "two.safetensors", a: "one.safetensors" });
    for (const name of [path, folder]) {
      await using checkpoint = await openSafetensors(name);
      expect([...checkpoint.tensors.keys()]).toEqual(["b", "a"]);
      expect(checkpoint.tensor("b").file).toBe(at("two.safetensors"));
      expect(checkpoint.metadata).toEqual({ format: "pt" });
      const bytes = new Uint8Array(16);
      await checkpoint.read("a", bytes);
      expect(bytes).toEqual(pattern(16, 0));
    }
  });

  test.each([
    [
      "a tensor that its file lacks",
      { a: "two.safetensors" },
      "TB_SAFETENSORS",
      /"a" is in two\.safetensors, which does not have it/,
    ],
    ["a file that is missing", { a: "three.safetensors" }, "TB_FILE", /three\.safetensors: no such file/],
    ["a path out of the folder", { a: "../one.safetensors" }, "TB_SAFETENSORS", /not a file in its folder/],
    ["an absolute path", { a: "/one.safetensors" }, "TB_SAFETENSORS", /not a file in its folder/],
    [
      "a path that leaves and comes back",
      { a: "x/../one.safetensors" },
      "TB_SAFETENSORS",
      /not a file in its folder/,
    ],
    ["no name", { a: 3 }, "TB_SAFETENSORS", /not a file in its folder/],
  ])("%s", async (_, weightMap, code, message) => {
    const error = await openSafetensors(index(weightMap)).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code });
    expect((error as Error).message).toMatch(message);
  });

  test.each([
    ["{", /not JSON/],
    ["{}", /its weight_map is missing/],
    ['{"weight_map":{"a":"x","a":"y"}}', /"a" twice/],
  ])("an index of %s", async (text, message) => {
    writeFileSync(at("model.safetensors.index.json"), text);
    const error = await openSafetensors(folder).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: "TB_SAFETENSORS" });
    expect((error as Error).message).toMatch(message);
  });
});

describe("writing", () => {
  const tensor: ModelTensor = { name: "w", shape: [10], dtype: "uint8" };

  test("goes under a temporary name until it is finished", async () => {
    const writer = await createSafetensors(at("w.safetensors"), [tensor]);
    expect(readdirSync(folder)).toEqual([expect.stringMatching(/^\.w\.safetensors\..*\.partial$/)]);
    await writer.write("w", pattern(6, 1), 4);
    await writer.write("w", pattern(6, 2), 0);
    await writer.finish();
    expect(readdirSync(folder)).toEqual(["w.safetensors"]);
    expect(statSync(at("w.safetensors")).size).toBe(writer.fileBytes);
    const bytes = readFileSync(at("w.safetensors"));
    expect([...bytes.subarray(-10)]).toEqual([...pattern(6, 2), ...pattern(6, 1).subarray(2)]);
    await expect(writer.write("w", pattern(1, 0))).rejects.toMatchObject({ code: "TB_CLOSED" });
  });

  test("leaves nothing behind when it is given up, cancelled, or fails", async () => {
    {
      await using writer = await createSafetensors(at("w.safetensors"), [tensor]);
      await writer.write("w", pattern(5, 0));
      await expect(writer.finish()).rejects.toThrow(TypeError); // half of it was never written
    }
    const controller = new AbortController();
    const writer = await createSafetensors(at("w.safetensors"), [tensor], { signal: controller.signal });
    controller.abort();
    await expect(writer.write("w", pattern(10, 0))).rejects.toMatchObject({ code: "TB_CANCELLED" });
    const blocked = await createSafetensors(at("b.safetensors"), [tensor]);
    await blocked.write("w", pattern(10, 0));
    await mkdir(join(at("b.safetensors"), "inside"), { recursive: true }); // a folder has taken the name
    await expect(blocked.finish()).rejects.toMatchObject({ code: "TB_FILE" });
    expect(readdirSync(folder)).toEqual(["b.safetensors"]);
  });

  test("refuses at the start what the disk cannot hold", async () => {
    const large: ModelTensor = { name: "w", shape: [2 ** 50], dtype: "uint8" };
    const error = await createSafetensors(at("w.safetensors"), [large]).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: "TB_NO_SPACE", exitCode: 4 });
    expect((error as Error).message).toMatch(
      /needs 1125899906842\d+ bytes, and the file system of .* has \d+ left/,
    );
    expect(readdirSync(folder)).toEqual([]);
  });

  test("reserves the space of the whole file", async () => {
    const large: ModelTensor = { name: "w", shape: [2 ** 20], dtype: "float32" };
    await using writer = await createSafetensors(at("w.safetensors"), [large]);
    const stats = statSync(writer.temporaryPath);
    expect(stats.size).toBe(writer.fileBytes);
    expect(stats.blocks * 512).toBeGreaterThanOrEqual(writer.fileBytes);
  });

  test("refuses names and sizes that no file can have, and a folder that is not there", async () => {
    const create = (...tensors: ModelTensor[]) => createSafetensors(at("w.safetensors"), tensors);
    await expect(create(tensor, tensor)).rejects.toMatchObject({ code: "TB_SAFETENSORS" });
    await expect(create({ ...tensor, name: "__metadata__" })).rejects.toMatchObject({
      code: "TB_SAFETENSORS",
    });
    await expect(create({ ...tensor, shape: [2 ** 40, 2 ** 40] })).rejects.toMatchObject({
      code: "TB_SAFETENSORS",
    });
    await expect(createSafetensors(at("no/w"), [tensor])).rejects.toMatchObject({ code: "TB_FILE" });
    await using writer = await create(tensor);
    await expect(writer.write("w", pattern(11, 0))).rejects.toMatchObject({ code: "TB_REGION" });
    await expect(writer.write("v", pattern(1, 0))).rejects.toMatchObject({ code: "TB_TENSOR_MISSING" });
  });
});
