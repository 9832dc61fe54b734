/**
 * The start of the command line, beside that of an empty script of Node.js, run in turns with it. Both are whole processes;
 * the bundle of `npm run build` is measured.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface StartOptions {
  readonly root: string;
  /** Measured starts of a case; default 21. */
  readonly pairs?: number | undefined;
  /** Only cases whose name contains this. */
  readonly filter?: string | undefined;
  readonly log?: (line: string) => void;
}

export interface StartResult {
  /** `start/ARGUMENTS`. */
  readonly name: string;
  readonly pairs: number;
  /** Medians. */
  readonly milliseconds: number;
  readonly emptyMilliseconds: number;
  /** Times as long as the empty script, the median of the pairs. */
  readonly ratio: number;
}

/** The helps of the commands. */
const helps = [
  ["--version"],
  ["--help"],
  ["plan", "--help"],
  ["diff", "--help"],
  ["explain", "--help"],
  ["layout", "--help"],
  ["reshard", "--help"],
  ["agent", "--help"],
  ["agents", "--help"],
  ["demo", "--help"],
  ["doctor", "--help"],
] as const;

/** Each command that ends by itself, with a small real input; `demo` and the agents start processes and measure those. */
function works(root: string, folder: string): string[][] {
  const spec = join(root, "examples/ci/transfer.yaml");
  const model = join(root, "test/model/configs/qwen3-8b.json");
  const after = join(folder, "after.yaml");
  writeFileSync(after, readFileSync(spec, "utf8").replace("ranks: 4..5", "ranks: 5..6"));
  const source = join(folder, "source");
  mkdirSync(source);
  writeFileSync(join(source, "model.safetensors"), smallCheckpoint());
  return [
    ["plan", spec],
    ["plan", spec, "--json", "--verify"],
    ["diff", spec, after],
    ["explain", spec, "--tensor", "layers.0.norm.weight", "--rank", "4"],
    ["layout", "--model", model, "--engine", "vllm:tp=2", "--rank", "0"],
    [
      "reshard",
      source,
      "--source",
      "fsdp2:dp=2",
      "--target",
      "fsdp2:dp=3",
      "--out",
      join(folder, "out"),
      "--force",
    ],
    ["doctor"],
  ];
}

/** A checkpoint of one tensor of 24 elements. */
function smallCheckpoint(): Buffer {
  const header = Buffer.from(JSON.stringify({ w: { dtype: "F32", shape: [6, 4], data_offsets: [0, 96] } }));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, Buffer.alloc(96, 1)]);
}

export async function bench(options: StartOptions): Promise<StartResult[]> {
  const { root, pairs = 21, filter = "", log = () => {} } = options;
  const folder = mkdtempSync(join(tmpdir(), "tensorbus-start-"));
  const empty = join(folder, "empty.mjs");
  writeFileSync(empty, "");
  const results: StartResult[] = [];
  try {
    for (const words of [...helps, ...works(root, folder)]) {
      const name = `start/${words.join(" ").replaceAll(`${folder}/`, "").replaceAll(`${root}/`, "")}`;
      if (!name.includes(filter)) continue;
      const times = Array.from({ length: pairs }, () => [
        millisecondsOf(root, join(root, "dist/cli.js"), ...words),
        millisecondsOf(root, empty),
      ]) as [number, number][];
      const result = {
        name,
        pairs,
        milliseconds: median(times.map(([ours]) => ours)),
        emptyMilliseconds: median(times.map(([, other]) => other)),
        ratio: median(times.map(([ours, other]) => ours / other)),
      };
      log(
        `${name.padEnd(24)} ${result.milliseconds.toFixed(0)} ms, ${result.ratio.toFixed(2)} of an empty script`,
      );
      results.push(result);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  return results;
}

function millisecondsOf(root: string, ...command: string[]): number {
  const began = performance.now();
  const { status } = spawnSync(process.execPath, command, { cwd: root, stdio: "ignore" });
  if (status !== 0) throw new Error(`${command.join(" ")} ended with ${status}: run npm run build first`);
  return performance.now() - began;
}

function median(values: number[]): number {
  return values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!;
}
