/** The command as a user runs it, with its peak of memory: checkpoints that are large in bytes, and in tensors. */
import { spawn } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { layOutHeader } from "../../src/model/safetensors-header.ts";
import type { ModelTensor } from "../../src/model/tensor.ts";

export interface CommandResult {
  /** `reshard/CASE`. */
  readonly name: string;
  readonly runs: number;
  readonly tensors: number;
  readonly bytes: number;
  /** Of the whole process: the median. */
  readonly seconds: number;
  /** The largest of all runs. */
  readonly peakResidentBytes: number;
}

interface CommandCase {
  readonly name: string;
  readonly tensors: () => ModelTensor[];
  readonly target: string;
  /** What is read is the checkpoint on ranks by this layout. */
  readonly source?: string;
  readonly runs: number;
}

const many = () =>
  Array.from({ length: 70_000 }, (_, index) => ({
    name: `model.layers.${Math.floor(index / 700)}.mlp.experts.${Math.floor(index / 7) % 100}.${index % 7}.weight`,
    shape: [16, 16],
    dtype: "bfloat16" as const,
  }));

/** 20 GiB, in tensors of 128 MiB. */
const large = () =>
  Array.from({ length: 160 }, (_, index) => ({
    name: `model.layers.${index}.weight`,
    shape: [8192, 8192],
    dtype: "bfloat16" as const,
  }));

const cases: readonly CommandCase[] = [
  { name: "70,000 tensors in one file", tensors: many, target: "hf", runs: 3 },
  { name: "70,000 tensors on 2 ranks", tensors: many, target: "2:S(0)", runs: 3 },
  { name: "70,000 tensors on 8 ranks", tensors: many, target: "8:S(0)", runs: 3 },
  { name: "70,000 tensors of 8 ranks in one file", tensors: many, source: "8:S(0)", target: "hf", runs: 3 },
  { name: "sparse 20 GiB on 4 ranks", tensors: large, target: "4:S(1)", runs: 1 },
];

/** Runs the command line of `npm run build` on checkpoints of zeros. */
export async function benchCommand(
  root: string,
  folder: string,
  filter: string,
  log: (line: string) => void,
): Promise<CommandResult[]> {
  const results: CommandResult[] = [];
  for (const { name: label, tensors: make, source, target, runs } of cases) {
    const name = `reshard/${label}`;
    if (!name.includes(filter)) continue;
    const checkpoint = join(folder, "many");
    mkdirSync(checkpoint);
    const tensors = make();
    const bytes = writeSparse(join(checkpoint, "model.safetensors"), tensors);
    const held = source === undefined ? checkpoint : join(folder, "held");
    if (source !== undefined) await measure(root, ["reshard", checkpoint, "--target", source, "--out", held]);
    const measured: Awaited<ReturnType<typeof measure>>[] = [];
    for (let run = 0; run < runs; run++) {
      const out = join(folder, "out");
      measured.push(await measure(root, ["reshard", held, "--target", target, "--out", out]));
      rmSync(out, { recursive: true });
    }
    rmSync(checkpoint, { recursive: true });
    rmSync(held, { recursive: true, force: true });
    const seconds = measured.map((each) => each.seconds).sort((a, b) => a - b)[Math.floor(runs / 2)]!;
    const peakResidentBytes = Math.max(...measured.map((each) => each.peakResidentBytes));
    log(`${name.padEnd(34)} ${seconds.toFixed(1)} s, at most ${Math.round(peakResidentBytes / 2 ** 20)} MiB`);
    results.push({ name, runs, tensors: tensors.length, bytes, seconds, peakResidentBytes });
  }
  return results;
}

function writeSparse(path: string, tensors: readonly ModelTensor[]): number {
  const { head, fileBytes } = layOutHeader(tensors, {}, path);
  writeFileSync(path, head);
  truncateSync(path, fileBytes);
  return fileBytes;
}

function measure(
  root: string,
  args: readonly string[],
): Promise<{ seconds: number; peakResidentBytes: number }> {
  const began = performance.now();
  const child = spawn(process.execPath, [join(root, "dist/cli.js"), ...args], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  let peakResidentBytes = 0;
  const timer = setInterval(() => {
    try {
      const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
      const kibibytes = Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0);
      peakResidentBytes = Math.max(peakResidentBytes, kibibytes * 1024);
    } catch {
      // It has ended.
    }
  }, 20);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code) => {
      clearInterval(timer);
      if (code === 0) resolve({ seconds: (performance.now() - began) / 1000, peakResidentBytes });
      else reject(new Error(`${args.join(" ")} ended with ${code}`));
    });
  });
}
