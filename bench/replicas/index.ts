/**
 * Replicas behind a slow link: 8 sources on one host, 8 replicas on another, each a process, the hosts two network namespaces of
 * this machine. The slow link must carry every byte once; handing stripes on among the replicas should hide behind that. Beside
 * it, in turns, as many bytes over the same link by plain sockets.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";
import { ask } from "../children.ts";
import { ThrottledLink } from "./network.ts";
import type { Answer, Command } from "./rank.ts";

export interface ReplicasOptions {
  readonly root: string;
  /** Measured pairs of rounds; default 5. */
  readonly pairs?: number | undefined;
  /** What the slow link carries in a round; default 64. */
  readonly mebibytes?: number | undefined;
  /** Only cases whose name contains this. */
  readonly filter?: string | undefined;
  readonly log?: (line: string) => void;
}

export interface ReplicasResult {
  readonly name: string;
  readonly pairs: number;
  /** What the slow link carries in a round. */
  readonly bytes: number;
  /** Medians: a round, and the same bytes by plain sockets. */
  readonly seconds: number;
  readonly linkSeconds: number;
  /** The median of the pairs: a round over the link's own bytes. */
  readonly timesTheLink: number;
  /** The most that is promised. */
  readonly limit: number;
  readonly holds: boolean;
  /** What the plan predicts for links without other limits. */
  readonly predicted: number;
}

const side = 8;
const name = "replicas/tcp/8to8-throttled";
const limit = 1.2;
const megabytesPerSecond = 25;

export async function bench(options: ReplicasOptions): Promise<ReplicasResult[]> {
  const { root, pairs = 5, mebibytes = 64, filter = "", log = () => {} } = options;
  if (!name.includes(filter)) return [];
  let link: ThrottledLink;
  try {
    link = new ThrottledLink(megabytesPerSecond * 1e6);
  } catch (error) {
    log(`${name}: skipped, it needs root, ip and tc: ${(error as Error).message.trim()}`);
    return [];
  }
  mkdirSync(join(root, "build"), { recursive: true });
  const folder = mkdtempSync(join(root, "build", "bench-replicas-"));
  try {
    const script = await bundle(root, folder);
    const result = await measure(link, script, pairs, Math.ceil(mebibytes / 2));
    const { seconds, linkSeconds, timesTheLink, holds, predicted } = result;
    log(
      `${name}: ${seconds.toFixed(3)} s, the link ${linkSeconds.toFixed(3)} s, ${timesTheLink.toFixed(3)} times (limit ${limit}, predicted ${predicted.toFixed(3)})${holds ? "" : ", too slow"}`,
    );
    return [result];
  } finally {
    rmSync(folder, { recursive: true });
    link.remove();
  }
}

async function measure(
  link: ThrottledLink,
  script: string,
  pairs: number,
  tensors: number,
): Promise<ReplicasResult> {
  const children = Array.from({ length: 2 * side }, (_, rank) => {
    const [command, args] = link.at(rank < side ? 0 : 1, process.execPath, script);
    return spawn(command, args, { stdio: ["ignore", "inherit", "inherit", "ipc"] });
  });
  try {
    const [first] = await all(children, (rank) => ({
      kind: "prepare",
      rank,
      side,
      tensors,
      megabytesPerSecond,
      addresses: [link.address(0), link.address(1)],
      storePort: 6999,
    }));
    if (first!.strategy !== "striped") throw new Error(`the plan is ${first!.strategy}`);
    const rounds: number[] = [];
    const plain: number[] = [];
    for (let pair = -1; pair < pairs; pair++) {
      const round = await timed(() => all(children, () => ({ kind: "run" })));
      await all(children, () => ({ kind: "check" }));
      const own = await timed(() => all(children, () => ({ kind: "plain" })));
      if (pair < 0) continue;
      rounds.push(round);
      plain.push(own);
    }
    const timesTheLink = median(rounds.map((round, pair) => round / plain[pair]!));
    return {
      name,
      pairs,
      bytes: tensors * 2 * 2 ** 20,
      seconds: median(rounds),
      linkSeconds: median(plain),
      timesTheLink,
      limit,
      holds: timesTheLink <= limit,
      predicted: first!.ratio!,
    };
  } finally {
    for (const child of children) if (child.connected) child.disconnect();
  }
}

/** Tells all ranks something, and waits for an answer of each. */
function all(children: readonly ChildProcess[], command: (rank: number) => Command): Promise<Answer[]> {
  return Promise.all(children.map((child, rank) => ask<Answer>(child, command(rank))));
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return (performance.now() - started) / 1000;
}

async function bundle(root: string, folder: string): Promise<string> {
  const outfile = join(folder, "rank.mjs");
  await build({
    entryPoints: [join(root, "bench/replicas/rank.ts")],
    outfile,
    ...nodeBundle,
    external: ["koffi"],
    logLevel: "warning",
  });
  return outfile;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!;
}
