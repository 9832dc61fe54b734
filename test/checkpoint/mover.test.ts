/** From files to files: every byte where it belongs, whatever the layouts, a stop at any moment, and what must not be. */
import { existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { joinChecksums, zeroChecksum } from "../../src/checkpoint/checksum.ts";
import { type MoveOptions, moveCheckpoint } from "../../src/checkpoint/mover.ts";
import { ResultFolder } from "../../src/checkpoint/result.ts";
import { safetensorsSource } from "../../src/checkpoint/source.ts";
import { resultSource } from "../../src/checkpoint/source-result.ts";
import { rankFiles, type TargetFile } from "../../src/checkpoint/target.ts";
import { DeviceMesh, holdingOf, itemSize, type Layout, parsePlacement } from "../../src/layout/index.ts";
import { contiguousStrides } from "../../src/layout/strides.ts";
import { crc32c } from "../../src/memory/kernels.ts";
import { bytesOfTensor, readAll, type TensorSpec, testFolder, writeCheckpoint } from "./kit/folders.ts";

const folder = testFolder();

const tensors: readonly TensorSpec[] = [
  { name: "embed", shape: [37, 12], dtype: "float32" },
  { name: "up", shape: [8, 30], dtype: "bfloat16" },
  { name: "norm", shape: [11], dtype: "float32" },
  { name: "scalar", shape: [], dtype: "float16" },
  { name: "empty", shape: [0, 4], dtype: "int64" },
  { name: "packed", shape: [6, 8], dtype: "float4_e2m1fn" },
  { name: "bytes", shape: [5], dtype: "uint8" },
];

function layoutOf(mesh: readonly number[], ...placements: string[]): Layout {
  return { mesh: new DeviceMesh(mesh), placements: placements.map(parsePlacement) };
}

/** The files of ranks that hold each tensor by a layout. */
function filesOf(list: readonly TensorSpec[], layouts: ReadonlyMap<string, Layout>): TargetFile[] {
  const pairs = Object.fromEntries(
    [...layouts].map(([name, layout]) => [name, { source: layout, target: layout }]),
  );
  const input = {
    pairs,
    tensors: list.map(({ name, shape, dtype }) => ({ name, pair: name, shape, dtype })),
  };
  return rankFiles(input, {}, "digest");
}

async function moveTo(files: readonly TargetFile[], into: string, more: Partial<MoveOptions> = {}) {
  await ResultFolder.open(into, true);
  const source = await safetensorsSource(join(folder(), "model.safetensors"));
  return moveCheckpoint({ source, files, folder: into, verify: true, ...more });
}

/** What a rank holds of a tensor, by its holding alone. */
function expectedBytes(spec: TensorSpec, salt: number, layout: Layout, rank: number): Buffer | undefined {
  const holding = holdingOf(layout, spec.shape, rank);
  if (holding === undefined) return undefined;
  const whole = bytesOfTensor(spec, salt);
  const item = itemSize(spec.dtype);
  const strides = contiguousStrides(spec.shape);
  const ids = holding.runs.reduce<number[]>(
    (list, runs, dim) =>
      list.flatMap((id) =>
        runs.flatMap(({ start, length }) =>
          Array.from({ length }, (_, at) => id + (start + at) * strides[dim]!),
        ),
      ),
    [0],
  );
  if (Number.isInteger(item))
    return Buffer.concat(ids.map((id) => whole.subarray(id * item, (id + 1) * item)));
  return Buffer.concat(ids.filter((_, at) => at % 2 === 0).map((id) => whole.subarray(id / 2, id / 2 + 1)));
}

describe("a checkpoint moves", () => {
  const placements = fc.constantFrom("S(0)", "S(1)", "R");
  const layouts = fc.tuple(
    fc.integer({ min: 1, max: 3 }),
    fc.integer({ min: 1, max: 3 }),
    placements,
    placements,
  );

  it("to any layout of ranks and back, byte for byte", async () => {
    await writeCheckpoint(join(folder(), "model.safetensors"), tensors);
    const original = await readAll(join(folder(), "model.safetensors"));
    let run = 0;
    await fc.assert(
      fc.asyncProperty(layouts, async ([rows, columns, first, second]) => {
        const chosen = new Map(
          tensors.map(({ name, shape, dtype }) => {
            const suits = (text: string) => {
              if (text === "R" || Number(text[2]) >= shape.length) return "R";
              // A cut inside of a byte of packed elements is refused: see below.
              return dtype.startsWith("float4") && text === "S(1)" ? "R" : text;
            };
            return [name, layoutOf([rows, columns], suits(first), suits(second))];
          }),
        );
        const into = join(folder(), `ranks-${run}`);
        const files = filesOf(tensors, chosen);
        const { files: written } = await moveTo(files, into);
        for (const [rank, { name }] of files.entries()) {
          const found = await readAll(join(into, name));
          for (const [salt, spec] of tensors.entries()) {
            const expected = expectedBytes(spec, salt, chosen.get(spec.name)!, rank);
            expect(found.get(spec.name)?.bytes.equals(expected!)).toBe(true);
          }
          expect(written[rank]!.checksum).toBe(crc32c(readFileSync(join(into, name))));
        }
        const result = await ResultFolder.open(into, true);
        await result.complete(
          {
            plan: "p",
            checkpoint: "c",
            target: "t",
            files: [...written].map(({ name, bytes }) => ({ name, bytes })),
          },
          files,
        );
        const source = await resultSource(into);
        const back = join(folder(), `back-${run++}`);
        await ResultFolder.open(back, true);
        const whole = filesOf(
          tensors,
          new Map(tensors.map(({ name, shape }) => [name, layoutOf([1], shape.length < 0 ? "S(0)" : "R")])),
        );
        const held = new Set(source.tensors.map(({ name }) => name));
        const wanted = whole.map((file) => ({
          ...file,
          parameters: file.parameters.filter(({ name }) => held.has(name)),
        }));
        await moveCheckpoint({ source, files: wanted, folder: back, verify: true });
        const again = await readAll(join(back, "rank-0.safetensors"));
        for (const [name, { bytes }] of original) {
          if (bytes.length > 0) expect(again.get(name)?.bytes.equals(bytes), name).toBe(true);
        }
      }),
      { seed: 11, numRuns: 25 },
    );
  });

  it("of which no tensor is like another, more than are kept in mind", async () => {
    const list = Array.from({ length: 1100 }, (_, index): TensorSpec => {
      return { name: `t${index}`, shape: [index + 1], dtype: "uint8" };
    });
    await writeCheckpoint(join(folder(), "model.safetensors"), list);
    const layout = layoutOf([2], "S(0)");
    const into = join(folder(), "ranks");
    const input = { pairs: { p: { source: layout, target: layout } } };
    const inputs = list.map(({ name, shape, dtype }) => ({ name, pair: "p", shape, dtype }));
    await moveTo(rankFiles({ ...input, tensors: inputs }, {}, "digest"), into);
    for (const rank of [0, 1]) {
      const found = await readAll(join(into, `rank-${rank}.safetensors`));
      const wrong = list.filter(({ name, shape }, salt) => {
        const half = Math.ceil(shape[0]! / 2);
        const whole = bytesOfTensor(list[salt]!, salt);
        const part = rank === 0 ? whole.subarray(0, half) : whole.subarray(half);
        return found.get(name)?.bytes.equals(part) !== true;
      });
      expect(wrong).toEqual([]);
    }
  });

  it("from bfloat16 to float32 on ranks and back, every value", async () => {
    const spec: TensorSpec = { name: "w", shape: [256, 256], dtype: "bfloat16" };
    const all = Buffer.from(Uint16Array.from({ length: 2 ** 16 }, (_, bits) => bits).buffer);
    await writeCheckpoint(join(folder(), "model.safetensors"), [spec], () => all);
    const layout = layoutOf([3], "S(1)");
    const wide = rankFiles(
      {
        pairs: { w: { source: layout, target: layout } },
        tensors: [{ ...spec, pair: "w", targetDtype: "float32" }],
      },
      {},
      "digest",
    );
    const into = join(folder(), "wide");
    const { files } = await moveTo(wide, into);
    const result = await ResultFolder.open(into, true);
    await result.complete(
      {
        plan: "p",
        checkpoint: "c",
        target: "t",
        files: [...files].map(({ name, bytes }) => ({ name, bytes })),
      },
      wide,
    );
    const source = await resultSource(into);
    expect(source.tensors[0]).toMatchObject({ shape: [256, 256], dtype: "float32" });
    const back = join(folder(), "back");
    await ResultFolder.open(back, true);
    const narrow = filesOf([spec], new Map([["w", layoutOf([1], "R")]]));
    await moveCheckpoint({ source, files: narrow, folder: back, verify: true });
    const found = (await readAll(join(back, "rank-0.safetensors"))).get("w")!.bytes;
    for (let bits = 0; bits < 2 ** 16; bits++) {
      const now = found.readUInt16LE(2 * bits);
      const isNumber = (bits & 0x7fff) <= 0x7f80;
      // A NaN stays one, whichever.
      if (isNumber ? now !== bits : (now & 0x7fff) <= 0x7f80) expect(`${bits} became ${now}`).toBe("");
    }
  });

  it("in pieces of one row and less, transposed and fused with padding", async () => {
    const list: TensorSpec[] = [
      { name: "w", shape: [3, 700, 5], dtype: "int32" },
      { name: "q", shape: [4, 6], dtype: "int32" },
      { name: "k", shape: [2, 6], dtype: "int32" },
    ];
    await writeCheckpoint(join(folder(), "model.safetensors"), list);
    const file: TargetFile = {
      name: "rank-0.safetensors",
      metadata: {},
      parameters: [
        {
          name: "transposed",
          shape: [3, 5, 700],
          dtype: "int32",
          boxes: [{ tensor: "w", start: [0, 0, 0], length: [3, 700, 5], at: [0, 0, 0], axes: [0, 2, 1] }],
        },
        {
          name: "fused",
          shape: [8, 6],
          dtype: "int32",
          boxes: [
            { tensor: "q", start: [0, 0], length: [4, 6], at: [0, 0], axes: [0, 1] },
            { tensor: "k", start: [0, 0], length: [2, 6], at: [4, 0], axes: [0, 1] },
          ],
        },
        {
          name: "expert",
          shape: [2, 700, 5],
          dtype: "int32",
          boxes: [
            { tensor: "w", start: [2, 0, 0], length: [1, 700, 5], at: [0, 0, 0], axes: [0, 1, 2] },
            { tensor: "w", start: [0, 0, 0], length: [1, 700, 5], at: [1, 0, 0], axes: [-1, 1, 2] },
          ],
        },
        { name: "one", shape: [], dtype: "float32", boxes: [], constant: 1 },
      ],
    };
    const into = join(folder(), "out");
    const { files } = await moveTo([file], into);
    // Parts that are not in one piece are summed up by reading the file.
    expect(files[0]!.checksum).toBe(crc32c(readFileSync(join(into, "rank-0.safetensors"))));
    const found = await readAll(join(into, "rank-0.safetensors"));
    const words = (name: string) =>
      new Int32Array(found.get(name)!.bytes.buffer, found.get(name)!.bytes.byteOffset);
    const source = new Int32Array(bytesOfTensor(list[0]!, 0).buffer.slice(0));
    const at = (e: number, row: number, column: number) => source[(e * 700 + row) * 5 + column];
    const transposed = words("transposed");
    for (let index = 0; index < 3 * 700 * 5; index++) {
      const [e, column, row] = [Math.floor(index / 3500), Math.floor((index % 3500) / 700), index % 700];
      expect(transposed[index]).toBe(at(e, row, column));
    }
    expect(
      found
        .get("fused")!
        .bytes.subarray(6 * 24)
        .every((byte) => byte === 0),
    ).toBe(true);
    expect(found.get("fused")!.bytes.subarray(0, 96).equals(bytesOfTensor(list[1]!, 1))).toBe(true);
    expect(
      found.get("expert")!.bytes.subarray(14_000).equals(bytesOfTensor(list[0]!, 0).subarray(0, 14_000)),
    ).toBe(true);
    expect(found.get("one")!.bytes.readFloatLE()).toBe(1);
  });
});

describe("a run that was stopped", () => {
  it("goes on where it was, and gives the same bytes", async () => {
    // Orders have 256 items at the most: five of them.
    const [count, orders, order] = [1200, 5, 256];
    const many: TensorSpec[] = Array.from({ length: count }, (_, at) => ({
      name: `t.${at}`,
      shape: [4, 4],
      dtype: "float32",
    }));
    await writeCheckpoint(join(folder(), "model.safetensors"), many);
    const files = filesOf(many, new Map(many.map(({ name }) => [name, layoutOf([2], "S(1)")])));
    const whole = join(folder(), "whole");
    await moveTo(files, whole);
    for (const after of [0, 1, 3, orders]) {
      const into = join(folder(), `stopped-${after}`);
      const cancel = new AbortController();
      let moved = 0;
      const stopped = moveTo(files, into, {
        signal: cancel.signal,
        onProgress: (phase) => {
          if (phase === "move" && ++moved === after) cancel.abort();
          if (phase === "verify" && after === orders) cancel.abort();
        },
      });
      if (after === 0) cancel.abort();
      await expect(stopped).rejects.toMatchObject({ code: "TB_CANCELLED" });
      expect(readdirSync(into).filter((name) => name.endsWith(".safetensors"))).toEqual([]);
      const { movedBytes, resumedBytes } = await moveTo(files, into);
      expect(movedBytes + resumedBytes).toBe(count * 64);
      expect(resumedBytes).toBeGreaterThanOrEqual(Math.min(after * order, count) * 64);
      if (after < 3) expect(resumedBytes).toBeLessThan(count * 64);
      for (const { name } of files) {
        expect(readFileSync(join(into, name)).equals(readFileSync(join(whole, name)))).toBe(true);
      }
      expect(readdirSync(into).sort()).toEqual(files.map(({ name }) => name));
    }
  });

  it("begins anew if its source changed, or its files are not what they were", async () => {
    await writeCheckpoint(join(folder(), "model.safetensors"), tensors);
    const files = filesOf(tensors, new Map(tensors.map(({ name }) => [name, layoutOf([1], "R")])));
    const into = join(folder(), "out");
    const stop = async () => {
      const cancel = new AbortController();
      await expect(
        moveTo(files, into, { signal: cancel.signal, onProgress: () => cancel.abort() }),
      ).rejects.toMatchObject({ code: "TB_CANCELLED" });
    };
    await stop();
    await writeCheckpoint(join(folder(), "model.safetensors"), tensors, (spec) => bytesOfTensor(spec, 99));
    expect((await moveTo(files, into)).resumedBytes).toBe(0);
    expect(
      (await readAll(join(into, "rank-0.safetensors")))
        .get("embed")!
        .bytes.equals(bytesOfTensor(tensors[0]!, 99)),
    ).toBe(true);
    await stop();
    truncateSync(join(into, "rank-0.safetensors.partial"), 100);
    expect((await moveTo(files, into)).resumedBytes).toBe(0);
  });
});

describe("what must not be", () => {
  const files = () => filesOf(tensors, new Map(tensors.map(({ name }) => [name, layoutOf([1], "R")])));

  it("is a source that changes while it is read", async () => {
    const path = join(folder(), "model.safetensors");
    await writeCheckpoint(path, tensors);
    const into = join(folder(), "out");
    const touched = moveTo(files(), into, { onProgress: () => writeFileSync(path, "x", { flag: "a" }) });
    await expect(touched).rejects.toMatchObject({
      code: "TB_FILE",
      message: expect.stringContaining("changed while it was read"),
    });
    expect(existsSync(join(into, "rank-0.safetensors"))).toBe(false);
  });

  it("is a target that is its own source, or one that lacks a tensor", async () => {
    await writeCheckpoint(join(folder(), "model.safetensors"), tensors);
    const own = files().map((file) => ({ ...file, name: "model.safetensors" }));
    const before = statSync(join(folder(), "model.safetensors")).mtimeMs;
    await expect(moveTo(own, folder())).rejects.toMatchObject({
      code: "TB_FILE",
      message: expect.stringContaining("file of the source"),
    });
    expect(statSync(join(folder(), "model.safetensors")).mtimeMs).toBe(before);
    const [file] = files() as [TargetFile];
    const lacking = {
      ...file,
      parameters: [
        { ...file.parameters[0]!, boxes: [{ ...file.parameters[0]!.boxes[0]!, tensor: "absent" }] },
      ],
    };
    await expect(moveTo([lacking], join(folder(), "out"))).rejects.toMatchObject({
      code: "TB_TENSOR_MISSING",
      details: { tensor: "absent" },
    });
  });

  it("is a file that says something else than what was read", async () => {
    await writeCheckpoint(join(folder(), "model.safetensors"), tensors);
    const into = join(folder(), "out");
    let isDamaged = false;
    const damaged = moveTo(files(), into, {
      onProgress: (phase, done, total) => {
        if (phase !== "move" || done < total || isDamaged) return;
        isDamaged = true;
        const path = join(into, "rank-0.safetensors.partial");
        const bytes = readFileSync(path);
        bytes[bytes.length - 40]! ^= 1;
        writeFileSync(path, bytes);
      },
    });
    await expect(damaged).rejects.toMatchObject({ code: "TB_VERIFY" });
    expect(existsSync(join(into, "rank-0.safetensors"))).toBe(false);
  });

  it("is a cut inside of a byte", async () => {
    const odd: TensorSpec[] = [{ name: "w", shape: [2, 6], dtype: "float4_e2m1fn" }];
    await writeCheckpoint(join(folder(), "model.safetensors"), odd);
    const cut = filesOf(odd, new Map([["w", layoutOf([2], "S(1)")]])).map((file) => ({
      ...file,
      parameters: file.parameters.map(({ name, dtype, boxes }) => ({ name, dtype, boxes, shape: [2, 4] })),
    }));
    await expect(moveTo(cut, join(folder(), "out"))).rejects.toMatchObject({
      code: "TB_DTYPE",
      details: { tensor: "w" },
    });
  });
});

describe("checksums", () => {
  it("of parts make that of the whole", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.uint8Array({ maxLength: 300 }), (one, other) => {
        const both = crc32c(Buffer.concat([one, other]));
        expect(joinChecksums(crc32c(one), crc32c(other), other.length)).toBe(both);
      }),
      { seed: 5, numRuns: 200 },
    );
    for (const bytes of [0, 1, 7, 64, 1000]) expect(zeroChecksum(bytes)).toBe(crc32c(Buffer.alloc(bytes)));
  });
});
