/** Checkpoints that others have written: the pickles and archives of torch, and the layout of a result. */
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { readLayoutFile } from "../../../src/checkpoint/layout-file.ts";
import { dcpSource } from "../../../src/checkpoint/source-dcp.ts";
import { refusing, type Target } from "../kit/target.ts";

const golden = join(import.meta.dirname, "../../golden/dcp/model");
const itemFile = "__1_0.distcp";
let folder: string | undefined;

function place(): string {
  folder ??= mkdtempSync(join(tmpdir(), "tensorbus-fuzz-checkpoint-"));
  return folder;
}

async function close(): Promise<void> {
  if (folder !== undefined) rmSync(folder, { recursive: true });
  folder = undefined;
}

/** Pickles that ask for something leave this if it is done. */
const marker = "executed";

export const dcp: Target = {
  seeds: () => [readFileSync(join(golden, ".metadata")), readFileSync(join(golden, itemFile))],
  async run(input) {
    const copy = join(place(), "model");
    cpSync(golden, copy, { recursive: true });
    // Archives begin as such; all else is read as the metadata.
    writeFileSync(
      join(copy, input.subarray(0, 2).toString("latin1") === "PK" ? itemFile : ".metadata"),
      input,
    );
    await refusing(async () => {
      const { tensors } = await dcpSource(copy);
      for (const { shape, boxes } of tensors) {
        const held = boxes.reduce(
          (sum, { length }) => sum + length.reduce((size, extent) => size * extent, 1),
          0,
        );
        if (held !== shape.reduce((size, extent) => size * extent, 1))
          throw new Error("a tensor that is not whole");
      }
    });
    if (existsSync(join(copy, marker)) || existsSync(marker)) throw new Error("a pickle was executed");
  },
  close,
};

export const layout: Target = {
  seeds: () => [
    Buffer.from(
      `${[
        ["rank-0.safetensors"],
        ["t", [2, 6], "int32", [["t", [0, 0], [2, 6], [0, 0], [0, 1]]]],
        ["e", [2, 3, 4], "bfloat16", [["x", [0, 4], [3, 4], [1, 0, 0], [-1, 0, 1]]]],
        ["rank-1.safetensors"],
        ["t", [1], "uint8", []],
      ]
        .map((line) => JSON.stringify(line))
        .join("\n")}\n`,
    ),
  ],
  async run(input) {
    const path = join(place(), "layout");
    const bytes = gzipSync(input);
    writeFileSync(path, bytes);
    await refusing(async () => {
      const files = readLayoutFile(path, createHash("sha256").update(bytes).digest("hex"));
      for await (const { parameters } of files) {
        for (const { shape, boxes } of parameters) {
          const isInside = boxes.every(({ at, axes, length }) =>
            at.every((first, axis) => first + (axes[axis]! < 0 ? 1 : length[axes[axis]!]!) <= shape[axis]!),
          );
          if (!isInside) throw new Error("a box beyond its parameter");
        }
      }
    });
  },
  close,
};
