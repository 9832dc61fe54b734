/** Kills between any two steps, runs that meet, damaged journals and layouts, threads that end: what must never become a result. */
import { createHash } from "node:crypto";
import { once } from "node:events";
import {
  appendFileSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { journalName } from "../../src/checkpoint/journal.ts";
import { type MoveOptions, moveCheckpoint } from "../../src/checkpoint/mover.ts";
import { layoutName, manifestName } from "../../src/checkpoint/names.ts";
import { ResultFolder, readManifest } from "../../src/checkpoint/result.ts";
import { type CheckpointSource, safetensorsSource } from "../../src/checkpoint/source.ts";
import { resultSource } from "../../src/checkpoint/source-result.ts";
import { rankFiles, type TargetFile } from "../../src/checkpoint/target.ts";
import { modelTarget } from "../../src/checkpoint/target-model.ts";
import { threadHand } from "../../src/checkpoint/threads.ts";
import { openSource } from "../../src/cli/reshard/ways.ts";
import { DeviceMesh, parsePlacement } from "../../src/layout/index.ts";
import { bytesOfTensor, readAll, type TensorSpec, testFolder, writeCheckpoint } from "./kit/folders.ts";

const folder = testFolder();

const tensors: readonly TensorSpec[] = Array.from({ length: 6 }, (_, at) => ({
  name: `t.${at}`,
  shape: [4, 6],
  dtype: "int32",
}));

function filesOf(list: readonly TensorSpec[], ranks: number): TargetFile[] {
  const layout = { mesh: new DeviceMesh([ranks]), placements: [parsePlacement("S(0)")] };
  const input = {
    pairs: { all: { source: layout, target: layout } },
    tensors: list.map(({ name, shape, dtype }) => ({ name, pair: "all", shape, dtype })),
  };
  return rankFiles(input, {}, "digest");
}

async function source(list = tensors): Promise<CheckpointSource> {
  const path = join(folder(), "source", "model.safetensors");
  if (!existsSync(path)) {
    mkdirSync(join(folder(), "source"));
    await writeCheckpoint(path, list);
  }
  return safetensorsSource(path);
}

/** A whole run, as the command does it. */
async function run(
  into: string,
  files: readonly TargetFile[],
  more: Partial<MoveOptions> = {},
  force = false,
) {
  const result = await ResultFolder.open(into, force);
  return moveCheckpoint({
    source: await source(),
    files,
    folder: into,
    verify: true,
    onPublish: () => result.invalidate(),
    onPublished: ({ files: written }) => complete(result, written, files),
    ...more,
  });
}

function complete(
  result: ResultFolder,
  files: readonly { readonly name: string; readonly bytes: number }[],
  layout: readonly TargetFile[],
) {
  const written = files.map(({ name, bytes }) => ({ name, bytes }));
  return result.complete({ plan: "p", checkpoint: "c", target: "t", files: written }, layout);
}

const stop = () => {
  throw new Error("killed");
};

describe("a run that ends", () => {
  it("while files take their names goes on with those that have them", async () => {
    const files = filesOf(tensors, 3);
    await run(join(folder(), "whole"), files);
    const into = join(folder(), "out");
    await expect(run(into, files, { onPublished: stop })).rejects.toThrow("killed");
    // As a kill between two renames leaves it.
    renameSync(join(into, files[2]!.name), join(into, `${files[2]!.name}.partial`));
    expect(existsSync(join(into, manifestName))).toBe(false);
    const { movedBytes } = await run(into, files);
    expect(movedBytes).toBe(0);
    expect(readdirSync(into).sort()).toEqual(readdirSync(join(folder(), "whole")).sort());
    for (const { name } of files) {
      expect(readFileSync(join(into, name)).equals(readFileSync(join(folder(), "whole", name)))).toBe(true);
    }
  });

  it("before its manifest stands goes on, and no file of an earlier result is left beside its own", async () => {
    const into = join(folder(), "out");
    await run(into, filesOf(tensors, 4));
    const files = filesOf(tensors, 2);
    await expect(run(into, files, { onPublished: stop }, true)).rejects.toThrow("killed");
    expect(readdirSync(into).sort()).toEqual([...files.map(({ name }) => name), journalName].sort());
    expect((await run(into, files)).movedBytes).toBe(0);
    expect((await readManifest(into)).files.map(({ name }) => name)).toEqual(files.map(({ name }) => name));
    await expect(ResultFolder.open(into, false)).rejects.toMatchObject({ code: "TB_EXISTS" });
  });

  it("by a comparison that fails is not gone on with", async () => {
    const into = join(folder(), "out");
    const files = filesOf(tensors, 1);
    const onProgress = (phase: string, done: number, total: number) => {
      if (phase !== "move" || done < total) return;
      const path = join(into, `${files[0]!.name}.partial`);
      const bytes = readFileSync(path);
      bytes[bytes.length - 1]! ^= 1;
      writeFileSync(path, bytes);
    };
    await expect(run(into, files, { onProgress })).rejects.toMatchObject({ code: "TB_VERIFY" });
    expect((await run(into, files)).resumedBytes).toBe(0);
  });

  it("does not make its own what somebody else has put there before or after", async () => {
    const into = join(folder(), "out");
    mkdirSync(into);
    writeFileSync(join(into, "model.safetensors"), "somebody's");
    const files = filesOf(tensors, 2);
    await expect(run(into, files)).rejects.toMatchObject({ code: "TB_EXISTS" });
    await expect(run(into, files, { onPublish: stop }, true)).rejects.toThrow("killed");
    expect(readFileSync(join(into, "model.safetensors"), "utf8")).toBe("somebody's");
    await expect(run(into, files)).rejects.toMatchObject({ code: "TB_EXISTS" });
    await expect(openSource(into)).rejects.toMatchObject({
      code: "TB_FILE",
      message: expect.stringContaining("did not end"),
    });
    await run(into, files, {}, true);
    expect(readdirSync(into)).not.toContain("model.safetensors");
    expect((await openSource(into)).tensors).toHaveLength(tensors.length);
  });

  it("leaves nothing to a run for another target", async () => {
    const into = join(folder(), "out");
    await expect(run(into, filesOf(tensors, 3), { onPublish: stop })).rejects.toThrow("killed");
    const files = filesOf(tensors, 2);
    await run(into, files);
    expect(readdirSync(into).sort()).toEqual(
      [...files.map(({ name }) => name), layoutName, manifestName].sort(),
    );
  });

  it("is not gone on with for other tensors of the same files under the same names", async () => {
    const list = ["model.w", "ema.w"].map((name): TensorSpec => ({ name, shape: [4, 6], dtype: "int32" }));
    const read = await source(list);
    const only = (prefix: string): CheckpointSource => ({
      ...read,
      tensors: read.tensors
        .filter(({ name }) => name.startsWith(prefix))
        .map((tensor) => ({ ...tensor, name: "w" })),
    });
    const files = filesOf([{ name: "w", shape: [4, 6], dtype: "int32" }], 1);
    const into = join(folder(), "out");
    await expect(run(into, files, { source: only("model."), onPublish: stop })).rejects.toThrow("killed");
    expect((await run(into, files, { source: only("ema.") })).resumedBytes).toBe(0);
    const found = await readAll(join(into, files[0]!.name));
    expect(found.get("w")!.bytes.equals(bytesOfTensor(list[1]!, 1))).toBe(true);
  });

  it("with a journal that is damaged begins anew", async () => {
    const files = filesOf(tensors, 2);
    for (const line of ["[null]", "[[99,[1]]]", '[[0,"x"]]', "[[-1,[]]]", '{"publishing":1}', "x"]) {
      const into = join(folder(), `out-${line.length}-${line.charCodeAt(2)}`);
      await expect(run(into, files, { onPublish: stop })).rejects.toThrow("killed");
      appendFileSync(join(into, journalName), `${line}\n`);
      expect((await run(into, files)).resumedBytes, line).toBe(0);
    }
  });
});

describe("two runs", () => {
  it("do not write into one folder", async () => {
    const into = join(folder(), "out");
    let second: Promise<unknown> | undefined;
    await run(into, filesOf(tensors, 2), {
      onProgress: () => {
        second ??= run(into, filesOf(tensors, 3)).catch((error: unknown) => error);
      },
      onPublish: async () => {
        expect(await second).toMatchObject({ code: "TB_EXISTS", details: { path: into } });
      },
    });
    expect((await readManifest(into)).files).toHaveLength(2);
  });
});

describe("a source", () => {
  it("is not removed as an earlier result of its own folder", async () => {
    const { path } = await source();
    const own = join(folder(), "source");
    await expect(run(own, filesOf(tensors, 2), {}, true)).rejects.toMatchObject({ code: "TB_FILE" });
    expect(readdirSync(own)).toEqual([basename(path)]);
    const linked = join(folder(), "linked");
    mkdirSync(linked);
    symlinkSync(path, join(linked, "model.safetensors"));
    const read = await safetensorsSource(linked);
    await expect(run(linked, filesOf(tensors, 2), { source: read }, true)).rejects.toMatchObject({
      code: "TB_FILE",
    });
    expect(readdirSync(linked)).toEqual(["model.safetensors"]);
  });
});

describe("one checkpoint again", () => {
  it("keeps the index of its shards", async () => {
    const read = await source();
    const { files, index } = modelTarget(read.tensors, 200);
    expect(files.length).toBeGreaterThan(1);
    const into = join(folder(), "out");
    const result = await ResultFolder.open(into, false);
    const beside = new Map([["model.safetensors.index.json", index!]]);
    await run(into, files, {
      onPublished: (summary) =>
        result.complete(
          {
            plan: "p",
            checkpoint: "c",
            target: "hf",
            files: summary.files.map(({ name, bytes }) => ({ name, bytes })),
          },
          undefined,
          beside,
        ),
    });
    expect((await safetensorsSource(into)).tensors.map(({ name }) => name).sort()).toEqual(
      tensors.map(({ name }) => name),
    );
  });

  it("has its tensors without elements", async () => {
    const list: TensorSpec[] = [...tensors, { name: "empty", shape: [3, 0, 2], dtype: "float16" }];
    await source(list);
    const into = join(folder(), "out");
    await run(into, filesOf(list, 2));
    expect((await resultSource(into)).tensors.find(({ name }) => name === "empty")?.shape).toEqual([3, 0, 2]);
  });
});

describe("a layout that lies", () => {
  const box = ["t", [0, 0], [2, 6], [0, 0], [0, 1]] as const;
  const of = (change: Partial<Record<0 | 1 | 2 | 3 | 4, unknown>>, shape = [2, 6]) => [
    ["rank-0.safetensors"],
    ["t", shape, "int32", [Object.assign([...box], change)]],
  ];
  it.each([
    ["a box beyond its parameter", of({ 3: [1, 0] })],
    ["numbers of too few dimensions", of({ 1: [0] })],
    ["a place of too few dimensions", of({ 3: [0] })],
    ["an axis that comes twice", of({ 4: [0, 0] })],
    ["an axis that there is not", of({ 4: [0, 7] })],
    ["an axis of several elements that lies nowhere", of({ 2: [2, 5], 4: [0, -1] })],
    ["a file elsewhere", [["../rank-0.safetensors"], of({})[1]]],
    ["a parameter of no file", [of({})[1]]],
    ["a line that is none of a layout", [...of({}), { t: 1 }]],
    ["an element type that there is not", [of({})[0], ["t", [2, 6], "int31", []]]],
  ])("by %s is refused", async (_, layout) => {
    const into = join(folder(), "out");
    await run(into, filesOf([{ name: "t", shape: [2, 6], dtype: "int32" }], 1), {
      source: await source([{ name: "t", shape: [2, 6], dtype: "int32" }]),
    });
    expect((await resultSource(into)).tensors).toHaveLength(1);
    const bytes = gzipSync(layout.map((line) => `${JSON.stringify(line)}\n`).join(""));
    writeFileSync(join(into, layoutName), bytes);
    const manifest = await readManifest(into);
    const digest = createHash("sha256").update(bytes).digest("hex");
    writeFileSync(join(into, manifestName), JSON.stringify({ ...manifest, layout: digest }));
    await expect(resultSource(into)).rejects.toMatchObject({ code: "TB_FILE" });
  });
});

describe("a result that is read again", () => {
  it("is refused if the file of one rank stands in place of another's, which has the same tensors", async () => {
    const into = join(folder(), "out");
    await run(into, filesOf(tensors, 2));
    expect((await resultSource(into)).tensors).toHaveLength(tensors.length);
    copyFileSync(join(into, "rank-0.safetensors"), join(into, "rank-1.safetensors"));
    await expect(resultSource(into)).rejects.toMatchObject({
      code: "TB_SAFETENSORS",
      message: expect.stringContaining("it is rank-0.safetensors"),
    });
  });
});

describe("parts of one tensor", () => {
  const shape = [64, 6];
  const placeOf = (start: number, length: number) => ({
    tensor: "t",
    start: [start, 0],
    length: [length, 6],
    at: [0, 0],
    axes: [0, 1],
  });
  const read = async (parts: readonly (readonly [start: number, length: number])[]) => {
    const into = join(folder(), "out");
    const files = parts.map(
      ([start, length], rank): TargetFile => ({
        name: `rank-${rank}.safetensors`,
        metadata: {},
        parameters: [{ name: "t", shape: [length, 6], dtype: "int32", boxes: [placeOf(start, length)] }],
      }),
    );
    await run(into, files, { source: await source([{ name: "t", shape, dtype: "int32" }]) });
    return resultSource(into);
  };

  it("that replicas hold count once, in whatever order they come", async () => {
    const [tensor] = (
      await read([
        [32, 32],
        [0, 32],
        [32, 32],
        [0, 32],
      ])
    ).tensors;
    expect(tensor).toMatchObject({ shape, boxes: [{ start: [0, 0] }, { start: [32, 0] }] });
  });

  it("that overlap without being the same are refused", async () => {
    await expect(
      read([
        [0, 33],
        [33, 31],
        [32, 32],
      ]),
    ).rejects.toMatchObject({
      code: "TB_UNSUPPORTED",
      details: { tensor: "t" },
    });
  });
});

describe("a thread that has ended", () => {
  it("fails what it is given afterwards too", async () => {
    const script = join(folder(), "end.mjs");
    writeFileSync(script, "process.exit(3);\n");
    const hand = threadHand({ sources: [], targets: [] }, script, "none");
    const failed = { code: "TB_SYSTEM", details: { code: 3 } };
    await expect(hand.do([])).rejects.toMatchObject(failed);
    await expect(hand.do([])).rejects.toMatchObject(failed);
    await hand.close();
  });

  it("fails what waits for an answer that cannot be read", async () => {
    const script = join(folder(), "silent.mjs");
    writeFileSync(
      script,
      'import { parentPort } from "node:worker_threads";\nparentPort.on("message", () => {});\n',
    );
    const started = once(process, "worker");
    const hand = threadHand({ sources: [], targets: [] }, script, "none");
    const [worker] = await started;
    const waiting = hand.do([]);
    worker.emit("messageerror", new Error("cannot be read"));
    await expect(waiting).rejects.toThrow("cannot be read");
    await expect(hand.do([])).rejects.toThrow("cannot be read");
    await hand.close();
  });
});
