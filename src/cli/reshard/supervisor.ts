import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TensorBusError } from "../../errors.ts";
import { publish, removeUnfinished } from "../../model/safetensors.ts";
import type { Plan } from "../../plan/index.ts";
import { serveTcpStore } from "../../store/tcp-server.ts";
import type { TransportName } from "../ui/transport-option.ts";
import {
  failureOf,
  type Phase,
  phases,
  type RankFailure,
  type RankJob,
  type RankMessage,
} from "./messages.ts";

interface ReshardRun {
  readonly plan: Plan;
  /** The plan's bytes, written for the ranks to load. */
  readonly checkpoint: string;
  readonly sourceRanks: readonly number[];
  /** Each target rank's file. */
  readonly targetFiles: ReadonlyMap<number, string>;
  readonly transport: TransportName;
  readonly verify: boolean;
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
  /** The script whose command `reshard-rank` runs one rank. */
  readonly entry: string;
  /** The phase that the slowest rank is in, and its bytes over all ranks. */
  readonly onProgress?: (progress: ReshardProgress) => void;
  /** Called once, before the first file takes its final name. */
  readonly onPublish?: () => Promise<void>;
  readonly onStart?: (pids: ReadonlyMap<number, number>) => void;
}

interface ReshardProgress {
  readonly phase: Phase;
  readonly done: number;
  readonly total: number;
}

interface ReshardSummary {
  /** Bytes that crossed between processes. */
  readonly movedBytes: number;
  /** Seconds of the round, measured by its slowest rank. */
  readonly seconds: number;
  /** The transports that they crossed by, sorted. */
  readonly transports: readonly string[];
  readonly verifiedBytes: number;
}

/** How long ranks have to end by themselves before they are killed. */
const graceMs = 5_000;

/** What a rank says of another one that has ended, not knowing why. */
const seenFromOutside: ReadonlySet<string> = new Set(["TB_PEER_LOST", "TB_INVALIDATED"]);

/**
 * Runs every rank of both sides as a process of its own, and sees them all to one end: all files take their final names,
 * or none does, and the error names the rank where it began.
 */
export async function runReshard(run: ReshardRun): Promise<ReshardSummary> {
  const folder = await mkdtemp(join(tmpdir(), "tensorbus-reshard-"));
  try {
    const planPath = join(folder, "plan");
    await writeFile(planPath, run.plan.bytes, { mode: 0o600 });
    await using store = await serveTcpStore({ host: "127.0.0.1", port: 0 });
    const ranks = [...run.sourceRanks, ...run.targetFiles.keys()];
    const world = Math.max(...ranks) + 1;
    const group = new RankGroup(
      ranks.map(
        (rank): RankJob => ({
          kind: "job",
          rank,
          world,
          role: run.targetFiles.has(rank) ? "target" : "source",
          planPath,
          checkpoint: run.checkpoint,
          outPath: run.targetFiles.get(rank),
          storePort: store.port,
          transport: run.transport,
          verify: run.verify,
          timeoutMs: run.timeoutMs,
        }),
      ),
      run,
    );
    return await group.run();
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** The processes of all ranks. The first failure is the failure; everything else follows from it. */
class RankGroup {
  readonly #run: ReshardRun;
  readonly #jobs: readonly RankJob[];
  readonly #children = new Map<number, ChildProcess>();
  readonly #progress = new Map<Phase, Map<number, ReshardProgress>>(
    phases.map((phase) => [phase, new Map()]),
  );
  readonly #waiting: Set<number>;
  /** Says where the targets' files are that wait for their final names. */
  readonly #sealed = new Map<number, string>();
  /** Once all is written: whatever becomes of the ranks from here on changes nothing. */
  #publishing: Promise<void> | undefined;
  readonly #ended: Promise<void>[] = [];
  /** Only the ranks of this run can talk to each other. */
  readonly #secret = randomBytes(32).toString("hex");
  #failure: RankFailure | undefined;
  /** The ranks that are known to run since the failure. */
  readonly #answering = new Set<number>();
  #killTimer: NodeJS.Timeout | undefined;
  #killed = false;
  #movedBytes = 0;
  #seconds = 0;
  readonly #transports = new Set<string>();
  #verifiedBytes = 0;

  constructor(jobs: readonly RankJob[], run: ReshardRun) {
    this.#jobs = jobs;
    this.#run = run;
    this.#waiting = new Set(jobs.map((job) => job.rank));
  }

  async run(): Promise<ReshardSummary> {
    const { signal, onStart } = this.#run;
    const onAbort = () =>
      this.#fail({ code: "TB_CANCELLED", message: "the transfer was cancelled", rank: -1 });
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      for (const job of this.#jobs) this.#start(job);
      onStart?.(new Map([...this.#children].map(([rank, child]) => [rank, child.pid!])));
      if (signal?.aborted) onAbort();
      await Promise.all(this.#ended);
      await this.#publishing;
    } finally {
      signal?.removeEventListener("abort", onAbort);
      clearTimeout(this.#killTimer);
    }
    if (this.#failure !== undefined) {
      await this.#removeUnfinished();
      const { code, message, rank } = this.#failure;
      throw new TensorBusError(code, rank < 0 ? message : `rank ${rank}: ${message}`, { details: { rank } });
    }
    return {
      movedBytes: this.#movedBytes,
      seconds: this.#seconds,
      transports: [...this.#transports].sort(),
      verifiedBytes: this.#verifiedBytes,
    };
  }

  #start(job: RankJob): void {
    const child = fork(this.#run.entry, ["reshard-rank"], {
      stdio: ["ignore", "inherit", "inherit", "ipc"],
      serialization: "json",
      env: { ...process.env, TENSOR_BUS_SECRET: this.#secret },
    });
    this.#children.set(job.rank, child);
    child.on("message", (message: RankMessage) => this.#hear(job.rank, message));
    // A message to a process that just died is answered by its exit.
    child.send(job, () => undefined);
    this.#ended.push(
      new Promise((resolve) => {
        child.once("error", (error) => {
          this.#fail({
            code: "TB_SYSTEM",
            message: `its process did not start: ${error.message}`,
            rank: job.rank,
          });
          resolve();
        });
        child.once("exit", (code, killedBy) => {
          const how = killedBy === null ? `ended with exit code ${code}` : `was killed by ${killedBy}`;
          const lost = { code: "TB_PEER_LOST", message: `its process ${how}`, rank: job.rank } as const;
          if (!this.#killed && !this.#answering.has(job.rank)) this.#explain(lost);
          this.#fail(lost);
          resolve();
        });
      }),
    );
  }

  #hear(rank: number, message: RankMessage): void {
    switch (message.kind) {
      case "progress":
        this.#progress.get(message.phase)!.set(rank, message);
        this.#report();
        break;
      case "moved":
        this.#movedBytes += message.received;
        this.#seconds = Math.max(this.#seconds, message.seconds);
        for (const name of message.transports) this.#transports.add(name);
        break;
      case "ready":
        this.#verifiedBytes += message.verifiedBytes;
        this.#waiting.delete(rank);
        if (message.temporaryPath !== undefined) this.#sealed.set(rank, message.temporaryPath);
        if (this.#waiting.size === 0 && this.#failure === undefined) this.#publishing = this.#publish();
        break;
      case "failed":
        this.#answering.add(rank);
        if (message.failure.rank === rank) this.#explain(message.failure);
        this.#fail(message.failure);
        break;
      case "ending":
        this.#answering.add(rank);
        break;
    }
  }

  /** Gives all files their final names, or takes those back that have them. */
  async #publish(): Promise<void> {
    const published: [temporary: string, path: string][] = [];
    try {
      await this.#run.onPublish?.();
      for (const [rank, temporary] of this.#sealed) {
        const path = this.#run.targetFiles.get(rank)!;
        await publish(temporary, path);
        published.push([temporary, path]);
      }
    } catch (error) {
      for (const [temporary, path] of published) await rename(path, temporary);
      const rank = [...this.#sealed.keys()][published.length]!;
      this.#publishing = undefined;
      this.#fail(failureOf(error, rank));
      return;
    }
    this.#tell({ kind: "commit" });
    // The result stands: who does not end by itself changes nothing any more.
    this.#killTimer = setTimeout(() => this.#kill(), graceMs);
  }

  /** A rank that was killed could not clean up after itself. */
  async #removeUnfinished(): Promise<void> {
    for (const [rank, path] of this.#run.targetFiles) {
      const pid = this.#children.get(rank)?.pid;
      if (pid !== undefined) await removeUnfinished(path, pid);
    }
  }

  #fail(failure: RankFailure): void {
    if (this.#failure !== undefined || this.#publishing !== undefined) return;
    this.#failure = failure;
    this.#tell({ kind: "abort" });
    this.#killTimer = setTimeout(() => {
      this.#blameSilent();
      this.#kill();
    }, graceMs);
  }

  /** What a rank says of itself stands in place of what another one, which was heard earlier, saw of it. */
  #explain(own: RankFailure): void {
    if (this.#failure?.rank !== own.rank || own.code === "TB_CANCELLED") return;
    if (seenFromOutside.has(this.#failure.code)) this.#failure = own;
  }

  /** Whoever waits in vain names the rank that it waits for, and that may wait itself: for one whose process stands still. */
  #blameSilent(): void {
    const { code, message, rank } = this.#failure!;
    if (rank < 0 || !["TB_TIMEOUT", "TB_CANCELLED", ...seenFromOutside].includes(code)) return;
    const silent = [...this.#children].find(
      ([each, { exitCode, signalCode }]) =>
        exitCode === null && signalCode === null && !this.#answering.has(each),
    );
    if (silent === undefined || silent[0] === rank) return;
    this.#failure = {
      code,
      rank: silent[0],
      message: `its process does not answer; rank ${rank}: ${message}`,
    };
  }

  #kill(): void {
    this.#killed = true;
    for (const child of this.#children.values()) child.kill("SIGKILL");
  }

  #tell(message: { readonly kind: "commit" | "abort" }): void {
    for (const child of this.#children.values()) if (child.connected) child.send(message, () => undefined);
  }

  /** The earliest phase that is not over, once every rank that has a part in it has said how much. */
  #report(): void {
    for (const [phase, byRank] of this.#progress) {
      const reports = [...byRank.values()];
      if (reports.length < this.#ranksIn(phase)) return;
      const done = reports.reduce((sum, report) => sum + report.done, 0);
      const total = reports.reduce((sum, report) => sum + report.total, 0);
      if (done < total) {
        this.#run.onProgress?.({ phase, done, total });
        return;
      }
    }
  }

  #ranksIn(phase: Phase): number {
    const { sourceRanks, targetFiles } = this.#run;
    return phase === "read" ? sourceRanks.length : targetFiles.size;
  }
}
