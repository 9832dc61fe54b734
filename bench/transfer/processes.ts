/** The two contestants of a case: tensorbus, a process a rank, and the plain program that is its ceiling. */
import { type ChildProcess, execFileSync, fork, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { build } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";
import { serveTcpStore, type TcpStoreServer } from "../../src/store/index.ts";
import { ask } from "../children.ts";
import { type TransferGroup, ucxTransports } from "./cases.ts";
import type { Answer, Command } from "./rank.ts";

/** Where the benchmark's programs are built, for as long as it runs. */
export class Workshop {
  readonly #root: string;
  readonly #folder: string;

  constructor(root: string) {
    this.#root = root;
    mkdirSync(join(root, "build"), { recursive: true });
    this.#folder = mkdtempSync(join(root, "build", "bench-transfer-"));
  }

  /** Compiles a ceiling as its owner would: -O3, and nothing clever. */
  compile(program: string): string {
    const sources = ["raw.c", `${program}.c`].map((file) => join(this.#root, "bench/native", file));
    const file = join(this.#folder, program);
    const flags = ["-O3", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"];
    const libraries = program === "raw_ucx" ? ["-lucp", "-lucs"] : [];
    execFileSync(process.env["CC"] ?? "cc", [...flags, "-o", file, ...sources, ...libraries], {
      stdio: "inherit",
    });
    return file;
  }

  /** Bundles the rank's script, within the package, where the native library is found. */
  async bundleRank(): Promise<string> {
    const file = join(this.#folder, "rank.mjs");
    await build({
      entryPoints: [join(this.#root, "bench/transfer/rank.ts")],
      outfile: file,
      ...nodeBundle,
      external: ["koffi"],
      logLevel: "warning",
    });
    return file;
  }

  remove(): void {
    rmSync(this.#folder, { recursive: true });
  }
}

/** Processor seconds that processes have taken, all their threads together. Linux counts in hundredths. */
function processorSeconds(pids: readonly number[]): number {
  let ticks = 0;
  for (const pid of pids) {
    const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
      .replace(/^.*\) /, "")
      .split(" ");
    ticks += Number(fields[11]) + Number(fields[12]);
  }
  return ticks / 100;
}

/** All ranks of a group's cases. */
export class Ranks {
  readonly #children: readonly ChildProcess[];
  readonly #store: TcpStoreServer;

  private constructor(children: readonly ChildProcess[], store: TcpStoreServer) {
    this.#children = children;
    this.#store = store;
  }

  static async start(script: string, number: number, group: TransferGroup, tensors: number): Promise<Ranks> {
    const store = await serveTcpStore();
    const count = group.sources + group.targets;
    const ranks = new Ranks(
      Array.from({ length: count }, () => fork(script, { stdio: "inherit" })),
      store,
    );
    await ranks.#all((rank) => ({ kind: "prepare", group: number, rank, tensors, storePort: store.port }));
    return ranks;
  }

  /** Runs one round of a case on all ranks, and tells its seconds. `check` compares what arrived, outside of them. */
  async run(index: number, check = false): Promise<number> {
    const started = performance.now();
    const answers = await this.#all(() => ({ kind: "run", index, check }));
    const seconds = (performance.now() - started) / 1000;
    for (const answer of answers) {
      if (answer.kind === "done" && answer.stagingHighWater > answer.stagingBytes) {
        throw new Error(`${answer.stagingHighWater} bytes of staging memory, not ${answer.stagingBytes}`);
      }
    }
    return seconds;
  }

  processorSeconds(): number {
    return processorSeconds(this.#children.map(({ pid }) => pid!));
  }

  async end(): Promise<void> {
    for (const child of this.#children) child.disconnect();
    await this.#store.close();
  }

  #all(command: (rank: number) => Command): Promise<Answer[]> {
    return Promise.all(this.#children.map((child, rank) => ask<Answer>(child, command(rank))));
  }
}

/** What a group is compared with. */
export interface Ceiling {
  /** Moves everything once with calls of that size, and tells its seconds. */
  run(callBytes: number, mode: number): Promise<number>;
  /** What it has taken of the processors. */
  processorSeconds(): number;
  end(): void;
}

/** A program of `bench/native`, waiting for lines. */
export class PlainProgram implements Ceiling {
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(process: ChildProcess, lines: AsyncIterator<string>) {
    this.#process = process;
    this.#lines = lines;
  }

  static async start(file: string, args: readonly (string | number)[]): Promise<PlainProgram> {
    const env = { ...process.env, UCX_TLS: ucxTransports };
    const child = spawn(file, args.map(String), { stdio: ["pipe", "pipe", "inherit"], env });
    const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
    const ceiling = new PlainProgram(child, lines);
    await ceiling.#line();
    return ceiling;
  }

  async run(callBytes: number, mode: number): Promise<number> {
    this.#process.stdin!.write(`run ${callBytes} ${mode}\n`);
    return Number(await this.#line()) / 1e9;
  }

  processorSeconds(): number {
    const { pid } = this.#process;
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").trim().split(" ");
    return processorSeconds(children.map(Number));
  }

  end(): void {
    this.#process.kill();
  }

  async #line(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error("the ceiling's program ended");
    return value;
  }
}
