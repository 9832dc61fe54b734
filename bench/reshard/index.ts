/**
 * Resharding from files to files beside `cp --reflink=never --sparse=never` of the same bytes, in turns; both make what they wrote
 * durable. The threads run the bundle of `npm run build`. And the memory of the whole command: `command.ts`.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { moveCheckpoint } from "../../src/checkpoint/mover.ts";
import { type CheckpointSource, safetensorsSource } from "../../src/checkpoint/source.ts";
import { rankFiles, type TargetFile } from "../../src/checkpoint/target.ts";
import { modelTarget } from "../../src/checkpoint/target-model.ts";
import { DeviceMesh, parsePlacement } from "../../src/layout/index.ts";
import { createSafetensors } from "../../src/model/safetensors.ts";
import { benchCommand, type CommandResult } from "./command.ts";

export interface ReshardOptions {
  readonly root: string;
  /** Measured runs of a case; default 5. */
  readonly pairs?: number | undefined;
  /** Of the checkpoint; default 1024. */
  readonly mebibytes?: number | undefined;
  /** Only cases whose name contains this. */
  readonly filter?: string | undefined;
  readonly log?: (line: string) => void;
}

export interface ReshardResult {
  /** `reshard/CASE`. */
  readonly name: string;
  readonly pairs: number;
  readonly bytes: number;
  /** Medians. */
  readonly seconds: number;
  readonly copySeconds: number;
  /** The time of cp over ours, the median of the pairs. */
  readonly ratio: number;
  /** Of the process, after the case. */
  readonly peakResidentBytes: number;
}

interface Case {
  readonly name: string;
  /** Of each tensor. */
  readonly shape: readonly [number, number];
  readonly verify: boolean;
  readonly files: (source: CheckpointSource) => readonly TargetFile[];
}

const ranks = (placement: string) => (source: CheckpointSource) => {
  const layout = { mesh: new DeviceMesh([4]), placements: [parsePlacement(placement)] };
  const tensors = source.tensors.map(({ name, shape, dtype }) => ({ name, shape, dtype, pair: "all" }));
  return rankFiles({ pairs: { all: { source: layout, target: layout } }, tensors }, {}, "bench");
};

const transposed = ({ tensors }: CheckpointSource): TargetFile[] => [
  {
    name: "transposed.safetensors",
    metadata: {},
    parameters: tensors.map(({ name, shape: [rows, columns], dtype }) => ({
      name,
      dtype,
      shape: [columns!, rows!],
      boxes: [{ tensor: name, start: [0, 0], length: [rows!, columns!], at: [0, 0], axes: [1, 0] }],
    })),
  },
];

/** 16 MiB, and 128. */
const small = [4096, 2048] as const;
const large = [8192, 8192] as const;

const cases: readonly Case[] = [
  { name: "contiguous", shape: small, verify: false, files: ranks("S(0)") },
  { name: "row-parallel", shape: small, verify: false, files: ranks("S(1)") },
  {
    name: "one file",
    shape: small,
    verify: false,
    files: (source) => modelTarget(source.tensors, Number.POSITIVE_INFINITY).files,
  },
  { name: "contiguous, verified", shape: small, verify: true, files: ranks("S(0)") },
  { name: "row-parallel, verified", shape: small, verify: true, files: ranks("S(1)") },
  { name: "transposed", shape: small, verify: false, files: transposed },
  { name: "transposed, large", shape: large, verify: false, files: transposed },
];

export async function bench(options: ReshardOptions): Promise<(ReshardResult | CommandResult)[]> {
  const { root, pairs = 5, mebibytes = 1024, filter = "", log = () => {} } = options;
  const folder = mkdtempSync(join(process.env["TENSORBUS_BENCH_FOLDER"] ?? tmpdir(), "tensorbus-reshard-"));
  const results: ReshardResult[] = [];
  try {
    const path = join(folder, "model.safetensors");
    let written: Case["shape"] | undefined;
    const threads = { count: 2, script: join(root, "dist/cli.js"), command: "reshard-thread" };
    for (const { name: label, shape, verify, files } of cases) {
      const name = `reshard/${label}`;
      if (!name.includes(filter)) continue;
      if (written !== shape) await writeCheckpoint(path, shape, mebibytes);
      written = shape;
      const { size: bytes } = statSync(path);
      const source = await safetensorsSource(path);
      const times: [ours: number, copy: number][] = [];
      for (let pair = 0; pair <= pairs; pair++) {
        const out = join(folder, "out");
        mkdirSync(out);
        const began = performance.now();
        await moveCheckpoint({ source, files: files(source), folder: out, verify, threads });
        const ours = performance.now() - began;
        rmSync(out, { recursive: true });
        // The first pair warms the page cache.
        if (pair > 0) times.push([ours / 1000, copySeconds(path, join(folder, "copy"))]);
        else copySeconds(path, join(folder, "copy"));
      }
      const result = {
        name,
        pairs,
        bytes,
        seconds: median(times.map(([ours]) => ours)),
        copySeconds: median(times.map(([, copy]) => copy)),
        ratio: median(times.map(([ours, copy]) => copy / ours)),
        peakResidentBytes: process.resourceUsage().maxRSS * 1024,
      };
      log(
        `${name.padEnd(34)} ${(bytes / result.seconds / 2 ** 30).toFixed(2)} GiB/s, ${result.ratio.toFixed(2)} of cp, at most ${Math.round(result.peakResidentBytes / 2 ** 20)} MiB`,
      );
      results.push(result);
    }
    rmSync(path, { force: true });
    return [...results, ...(await benchCommand(root, folder, filter, log))];
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function writeCheckpoint(path: string, shape: Case["shape"], mebibytes: number): Promise<void> {
  const size = 2 * shape[0] * shape[1];
  const count = Math.max(1, Math.round((mebibytes * 2 ** 20) / size));
  const list = Array.from({ length: count }, (_, index) => ({
    name: `layers.${index}.weight`,
    shape: [...shape],
    dtype: "bfloat16" as const,
  }));
  await using writer = await createSafetensors(path, list);
  const bytes = Buffer.alloc(size);
  for (const [index, { name }] of list.entries()) {
    bytes.fill(index + 1);
    await writer.write(name, bytes);
  }
  await writer.finish();
}

function copySeconds(from: string, to: string): number {
  const began = performance.now();
  const { status } = spawnSync("cp", ["--reflink=never", "--sparse=never", from, to], { stdio: "inherit" });
  if (status !== 0) throw new Error(`cp ended with ${status}`);
  execFileSync("sync", [to]);
  const seconds = (performance.now() - began) / 1000;
  rmSync(to);
  return seconds;
}

function median(values: number[]): number {
  return values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!;
}
