/**
 * The agents of a host before anything is moved: milliseconds from the command to "ready", and memory of a rank, beside an
 * empty process of Node.js. Memory is what pages cost that this host's processes share (PSS): the code of Node.js itself,
 * 40 MB, counts once.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";

interface Options {
  readonly root: string;
  readonly filter?: string;
  readonly log: (line: string) => void;
}

interface Result {
  readonly name: string;
  readonly ranks: number;
  readonly processes: number;
  readonly readyMs: number;
  /** KiB for each rank. */
  readonly pssPerRank: number;
  readonly privatePerRank: number;
  readonly rssPerProcess: number;
}

const cases = [
  [1, 1],
  [8, 1],
  [8, 8],
  [64, 16],
  [64, 64],
] as const;
/** Garbage of the start is collected a little later. */
const settleMs = 12_000;

export async function bench({ root, filter, log }: Options): Promise<object[]> {
  const results: Result[] = [];
  const chosen = cases.filter(([ranks, per]) => filter === undefined || nameOf(ranks, per).includes(filter));
  const idle = await measureIdle();
  log(`empty process: ${idle.readyMs} ms, PSS ${idle.pss} KiB, private ${idle.privateDirty} KiB`);
  for (const [ranks, per] of chosen) {
    const result = await measure(join(root, "dist/cli.js"), ranks, per);
    const { name, readyMs, pssPerRank, privatePerRank, rssPerProcess } = result;
    log(
      `${name}: ready in ${readyMs} ms; of a rank PSS ${pssPerRank} KiB, private ${privatePerRank} KiB; RSS of a process ${rssPerProcess} KiB`,
    );
    results.push(result);
  }
  return [{ name: "agents-empty-process", ...idle }, ...results];
}

const nameOf = (ranks: number, per: number) => `agents-${ranks}-by-${per}`;

async function measureIdle() {
  const start = performance.now();
  const child = spawn(process.execPath, ["-e", 'console.log("ready"); setInterval(() => {}, 1000)']);
  await printed(child, "ready");
  const readyMs = Math.round(performance.now() - start);
  await delay(settleMs);
  const memory = memoryOf(child.pid!);
  child.kill();
  await once(child, "close");
  return { readyMs, ...memory };
}

async function measure(cli: string, ranks: number, per: number): Promise<Result> {
  const folder = mkdtempSync(join(tmpdir(), "tensorbus-bench-"));
  const start = performance.now();
  const argv = ["agents", "--ranks", `0..${ranks - 1}`, "--per-process", String(per)];
  const child = spawn(process.execPath, [cli, ...argv], { env: { ...process.env, XDG_RUNTIME_DIR: folder } });
  child.stderr.resume();
  try {
    await printed(child, "ready: agents");
    const readyMs = Math.round(performance.now() - start);
    await delay(settleMs);
    const pids = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ");
    const memory = pids.map((pid) => memoryOf(Number(pid)));
    const sum = (of: (one: Memory) => number) => memory.reduce((total, one) => total + of(one), 0);
    return {
      name: nameOf(ranks, per),
      ranks,
      processes: pids.length,
      readyMs,
      pssPerRank: Math.round(sum(({ pss }) => pss) / ranks),
      privatePerRank: Math.round(sum(({ privateDirty }) => privateDirty) / ranks),
      rssPerProcess: Math.round(sum(({ rss }) => rss) / pids.length),
    };
  } finally {
    child.kill("SIGTERM");
    await once(child, "close");
    rmSync(folder, { recursive: true });
  }
}

async function printed(child: ChildProcess, text: string): Promise<void> {
  for await (const line of createInterface({ input: child.stdout! })) if (line.startsWith(text)) return;
  throw new Error(`it ended before it said ${text}`);
}

interface Memory {
  readonly rss: number;
  readonly pss: number;
  readonly privateDirty: number;
}

/** KiB, by the kernel. */
function memoryOf(pid: number): Memory {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  const read = (name: string) => Number(new RegExp(`^${name}:\\s*(\\d+) kB$`, "m").exec(text)![1]);
  return { rss: read("Rss"), pss: read("Pss"), privateDirty: read("Private_Dirty") };
}
