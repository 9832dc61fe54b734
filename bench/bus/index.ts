/**
 * The bus beside what it is made of: a command's way to the agent and back beside a bare hop between two processes (a post of
 * a semaphore, a Worker that waits on it, its message), and a round of 1 GiB in 300 tensors beside the transport alone; the
 * client in Python beside this one, on the same agents. Both of each run in turn, in the same minute.
 */
import { type ChildProcess, execFileSync, fork } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";
import { serveTcpStore } from "../../src/store/index.ts";
import { answerOf, ask } from "../children.ts";
import type { RankCommand, RankOptions } from "./rank.ts";

export interface BusBenchOptions {
  readonly root: string;
  /** Interleaved pairs of rounds; default 31: a round varies by far more than what the bus adds. */
  readonly pairs?: number | undefined;
  /** Only cases whose name contains this. */
  readonly filter?: string | undefined;
  readonly log?: (line: string) => void;
}

export interface BusResult {
  readonly name: string;
  readonly unit: "us" | "s";
  readonly count: number;
  readonly median: number;
  readonly p99: number;
  readonly ceiling: { readonly name: string; readonly median: number; readonly p99: number };
  /** Our median over the ceiling's, or the median over the pairs: 1 is the ceiling. */
  readonly overCeiling: number;
}

const queries = [
  { name: "bus/query back to back", pauseMs: 0 },
  { name: "bus/query every 5 ms", pauseMs: 5 },
] as const;
const registerCase = "bus/registering 10,000 tensors";
const small = { tensors: 10_000, rows: 4, columns: 4 } as const;
const roundCase = "bus/round of 1 GiB in 300 tensors";
/** Those of the client in Python, whose ceiling is the one in TypeScript. */
const pythonSuffix = ", Python beside TypeScript";
const pythonPath = process.env["TENSORBUS_PYTHON"] ?? "python3";
/** 300 tensors of 3.5 MiB. */
const model = { tensors: 300, rows: 874, columns: 1024 } as const;

const at = (sorted: readonly number[], share: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!;

function summarize(times: readonly number[]): { readonly median: number; readonly p99: number } {
  const sorted = times.toSorted((a, b) => a - b);
  return { median: at(sorted, 0.5), p99: at(sorted, 0.99) };
}

export async function bench(options: BusBenchOptions): Promise<BusResult[]> {
  const { root, filter = "", pairs = 31, log = () => {} } = options;
  const workshop = mkdtempSync(join(makeFolder(root), "bench-bus-"));
  const folder = mkdtempSync(join(tmpdir(), "tensorbus-bench-"));
  const store = await serveTcpStore();
  const children: ChildProcess[] = [];
  const start = async (script: string, ...argv: string[]) => {
    const child = fork(join(workshop, script), argv, { serialization: "advanced" });
    children.push(child);
    await answerOf(child);
    return child;
  };
  const startRank = (role: RankOptions["role"], rank: number) => {
    const path = join(folder, `rank-${rank}`);
    const paths = { commandQueuePath: join(path, "queue"), agentStatePath: join(path, "state") };
    return start(
      "rank.js",
      JSON.stringify({ role, rank, storePort: store.port, ...paths } satisfies RankOptions),
    );
  };
  try {
    await bundle(root, workshop);
    for (const rank of [0, 1]) await startRank("agent", rank);
    const clients = await Promise.all([startRank("client", 0), startRank("client", 1)]);
    const bare = await Promise.all([startRank("bare", 0), startRank("bare", 1)]);
    const results: BusResult[] = [];
    const wanted = (name: string) => name.includes(filter);
    // A question is answered by a batch that stands.
    await register(clients, "bench", { ...small, tensors: 1 });
    if (queries.some(({ name }) => name.includes(filter))) {
      const hop = await start("roles.js", "hop", "{}");
      for (const one of queries.filter(({ name }) => name.includes(filter))) {
        results.push(await benchQuery(one, clients[0]!, hop));
      }
    }
    if (registerCase.includes(filter)) results.push(await benchRegistering(clients, bare));
    if (roundCase.includes(filter)) {
      for (const ranks of [clients, bare]) await register(ranks, "model", model);
      results.push(await benchRounds(clients, bare, pairs));
    }
    if (
      [...queries.map(({ name }) => name), registerCase, roundCase].some((name) =>
        wanted(name + pythonSuffix),
      )
    ) {
      results.push(...(await benchPython(clients, { root, folder, pairs, wanted, children, log })));
    }
    for (const result of results) log(describe(result));
    return results;
  } finally {
    for (const child of children) if (child.connected) child.disconnect();
    await Promise.all(children.map(ended));
    await store.close();
    for (const path of [workshop, folder]) rmSync(path, { recursive: true, force: true });
  }
}

/** In short parts, in turn, so that both meet the same machine. */
async function benchQuery(
  { name, pauseMs }: (typeof queries)[number],
  client: ChildProcess,
  hop: ChildProcess,
): Promise<BusResult> {
  const times: { ours: number[]; hop: number[] } = { ours: [], hop: [] };
  const part = { pauseMs, seconds: 0.2 };
  await ask(client, { kind: "query", pauseMs: 0, seconds: 1 });
  for (let i = 0; i < 20; i++) {
    times.hop = times.hop.concat((await ask(hop, part)) as number[]);
    times.ours = times.ours.concat((await ask(client, { kind: "query", ...part })) as number[]);
  }
  const [ours, ceiling] = [summarize(times.ours), summarize(times.hop)];
  return {
    name,
    unit: "us",
    count: times.ours.length,
    ...ours,
    ceiling: { name: "bare hop", ...ceiling },
    overCeiling: ours.median / ceiling.median,
  };
}

async function benchRounds(
  clients: readonly ChildProcess[],
  bare: readonly ChildProcess[],
  pairs: number,
): Promise<BusResult> {
  const { ours, theirs, ratios } = await inTurn(clients, bare, pairs);
  return {
    name: roundCase,
    unit: "s",
    count: pairs,
    ...summarize(ours),
    ceiling: { name: "transport alone", ...summarize(theirs) },
    overCeiling: summarize(ratios).median,
  };
}

/** Rounds of two kinds of ranks, one after the other; the first ones, which touch all memory, do not count. */
async function inTurn(
  ours: readonly ChildProcess[],
  theirs: readonly ChildProcess[],
  pairs: number,
): Promise<{ readonly ours: number[]; readonly theirs: number[]; readonly ratios: number[] }> {
  const times: { ours: number[]; theirs: number[] } = { ours: [], theirs: [] };
  await round(ours, 0);
  await round(theirs, 0);
  for (let i = 1; i <= pairs; i++) {
    times.ours.push(await round(ours, i));
    times.theirs.push(await round(theirs, i));
  }
  return { ...times, ratios: times.ours.map((seconds, i) => seconds / times.theirs[i]!) };
}

interface PythonOptions {
  readonly root: string;
  readonly folder: string;
  readonly pairs: number;
  readonly wanted: (name: string) => boolean;
  readonly children: ChildProcess[];
  readonly log: (line: string) => void;
}

/** The same of clients in Python, on the same agents. */
async function benchPython(
  clients: readonly ChildProcess[],
  { root, folder, pairs, wanted, children, log }: PythonOptions,
): Promise<BusResult[]> {
  try {
    execFileSync(pythonPath, ["-c", "import numpy, msgpack"], { stdio: "ignore", timeout: 60_000 });
  } catch {
    log(`Python is left out: ${pythonPath} has no numpy and msgpack (TENSORBUS_PYTHON names another)`);
    return [];
  }
  const ranks = await Promise.all(
    [0, 1].map(async (rank) => {
      const path = join(folder, `rank-${rank}`);
      const paths = { commandQueuePath: join(path, "queue"), agentStatePath: join(path, "state") };
      const argv = [JSON.stringify({ rank, package: join(root, "python/src"), ...paths })];
      const child = fork(join(root, "bench/bus/rank.py"), argv, {
        execPath: pythonPath,
        execArgv: [],
        serialization: "json",
      });
      children.push(child);
      await answerOf(child);
      return child;
    }),
  );
  const name = (one: string) => one + pythonSuffix;
  const beside = (one: string, unit: BusResult["unit"], ours: number[], theirs: number[]): BusResult => {
    const [python, typescript] = [summarize(ours), summarize(theirs)];
    const ceiling = { name: "the client in TypeScript", ...typescript };
    const overCeiling = python.median / typescript.median;
    return { name: name(one), unit, count: ours.length, ...python, ceiling, overCeiling };
  };
  const results: BusResult[] = [];
  await register(ranks, "bench", { ...small, tensors: 1 });
  await register(clients, "bench again", { ...small, tensors: 1 });
  for (const { name: one, pauseMs } of queries.filter(({ name: one }) => wanted(name(one)))) {
    const times: { ours: number[]; theirs: number[] } = { ours: [], theirs: [] };
    const part = { kind: "query", pauseMs, seconds: 0.2 } as const;
    for (const child of [clients[0]!, ranks[0]!]) await ask(child, { ...part, seconds: 1 });
    for (let i = 0; i < 20; i++) {
      times.theirs = times.theirs.concat((await ask(clients[0]!, part)) as number[]);
      times.ours = times.ours.concat((await ask(ranks[0]!, part)) as number[]);
    }
    results.push(beside(one, "us", times.ours, times.theirs));
  }
  if (wanted(name(registerCase))) {
    const theirs = [await register(clients, "small beside", small)];
    results.push(beside(registerCase, "s", [await register(ranks, "small", small)], theirs));
  }
  if (wanted(name(roundCase))) {
    for (const both of [clients, ranks]) await register(both, "model beside", model);
    const rounds = await inTurn(ranks, clients, pairs);
    const overCeiling = summarize(rounds.ratios).median;
    results.push({ ...beside(roundCase, "s", rounds.ours, rounds.theirs), overCeiling });
  }
  return results;
}

/** Once on processes that have registered nothing of the kind: what a job's start costs. */
async function benchRegistering(
  clients: readonly ChildProcess[],
  bare: readonly ChildProcess[],
): Promise<BusResult> {
  const ours = summarize([await register(clients, "small", small)]);
  const ceiling = summarize([await register(bare, "small", small)]);
  return {
    name: registerCase,
    unit: "s",
    count: 1,
    ...ours,
    ceiling: { name: "planning and preparing alone", ...ceiling },
    overCeiling: ours.median / ceiling.median,
  };
}

/** Seconds that it took on both ranks together. */
function register(
  ranks: readonly ChildProcess[],
  batch: string,
  shapes: { readonly tensors: number; readonly rows: number; readonly columns: number },
): Promise<number> {
  return together(ranks, { kind: "register", batch, ...shapes });
}

function round(ranks: readonly ChildProcess[], fill: number): Promise<number> {
  return together(ranks, { kind: "round", fill });
}

/** Seconds from when the later of both ranks has begun to when the later one is done. */
async function together(ranks: readonly ChildProcess[], command: RankCommand): Promise<number> {
  const answers = (await Promise.all(ranks.map((rank) => ask(rank, command)))) as {
    startedNs: bigint | string;
    endedNs: bigint | string;
  }[];
  const latest = (moments: (bigint | string)[]) => moments.map(BigInt).reduce((a, b) => (a > b ? a : b));
  const started = latest(answers.map(({ startedNs }) => startedNs));
  return Number(latest(answers.map(({ endedNs }) => endedNs)) - started) / 1e9;
}

function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => child.once("exit", () => resolve()));
}

function makeFolder(root: string): string {
  const folder = join(root, "build");
  mkdirSync(folder, { recursive: true });
  return folder;
}

async function bundle(root: string, outdir: string): Promise<void> {
  await build({
    entryPoints: [join(root, "bench/bus/rank.ts"), join(root, "bench/queue/roles.ts")],
    outdir,
    entryNames: "[name]",
    ...nodeBundle,
    packages: "external",
    logLevel: "warning",
  });
}

function describe({ name, unit, median, p99, ceiling, overCeiling }: BusResult): string {
  const digits = unit === "us" ? 0 : 3;
  const show = (times: { median: number; p99: number }) =>
    `${times.median.toFixed(digits)} ${unit} (p99 ${times.p99.toFixed(digits)})`;
  return `${name}: ${show({ median, p99 })}; ${ceiling.name} ${show(ceiling)}; ${overCeiling.toFixed(3)} of it`;
}
