/** The command queue alone: what a command costs without the agent behind it, and what an agent costs that nobody asks. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";
import type { QueueResult } from "./roles.ts";

export interface QueueBenchOptions {
  readonly root: string;
  /** Only cases whose name contains this; all of them are measured. */
  readonly filter?: string | undefined;
  readonly log?: (line: string) => void;
}

export async function bench(options: QueueBenchOptions): Promise<QueueResult[]> {
  const { root, filter = "", log = () => {} } = options;
  mkdirSync(join(root, "build"), { recursive: true });
  const workshop = mkdtempSync(join(root, "build", "bench-queue-"));
  try {
    await build({
      entryPoints: [join(root, "bench/queue/roles.ts")],
      outdir: workshop,
      ...nodeBundle,
      packages: "external",
      logLevel: "warning",
    });
    const all = fork(join(workshop, "roles.js"), [], { serialization: "advanced" });
    const ended = once(all, "exit");
    const results = await Promise.race([
      once(all, "message").then(([message]) => message as QueueResult[]),
      ended.then(([code]) => Promise.reject(new Error(`the benchmark ended with exit code ${code}`))),
    ]);
    await ended;
    const wanted = results.filter(({ name }) => name.includes(filter));
    for (const result of wanted) log(describe(result));
    return wanted;
  } finally {
    rmSync(workshop, { recursive: true, force: true });
  }
}

function describe(result: QueueResult): string {
  if (result.unit !== "us") return `${result.name}: ${(100 * result.value).toFixed(2)} % of a core`;
  const { name, median, p99, ceiling, overCeiling } = result;
  const times = `${name}: ${median.toFixed(0)} us (p99 ${p99.toFixed(0)})`;
  if (ceiling === undefined) return times;
  return `${times}; ${ceiling.name} ${ceiling.median.toFixed(0)} us (p99 ${ceiling.p99.toFixed(0)}); ${overCeiling!.toFixed(3)} of it`;
}
