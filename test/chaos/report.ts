/** What a run of chaos found, as it is written down: after each fault, so that a run that is cut short has its report too. */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";

interface Tally {
  injected: number;
  survived: number;
  /** The machine stood still meanwhile. */
  discarded: number;
  violated: number;
}

interface ChaosRun {
  readonly seed: number;
  readonly commit: string;
  readonly machine: string;
  seconds: number;
  clusters: number;
  /** Clusters that were given up since the machine was too slow to start them. */
  unstarted?: number;
  injected: number;
}

interface ChaosReport {
  readonly total: Tally;
  /** Of each commit and seed; those that a later run has added to. */
  readonly runs: ChaosRun[];
  readonly faults: Record<string, Tally>;
  readonly violations: string[];
  /** Faults that this machine does not allow. */
  readonly skipped: string[];
}

const emptyTally = (): Tally => ({ injected: 0, survived: 0, discarded: 0, violated: 0 });

function commitNow(): string {
  const git = (...argv: string[]) => execFileSync("git", argv, { encoding: "utf8" }).trim();
  try {
    const changed = git("status", "--porcelain", "--untracked-files=no") !== "";
    return `${git("rev-parse", "HEAD")}${changed ? " (changed)" : ""}`;
  } catch {
    return "unknown";
  }
}

export class ReportWriter {
  readonly report: ChaosReport;
  readonly #run: ChaosRun;
  readonly #path: string | undefined;
  readonly #began = performance.now();

  /** With `adds`, to what earlier runs have written there. */
  constructor(seed: number, path: string | undefined, adds: boolean) {
    this.#path = path;
    const earlier = adds && path !== undefined && existsSync(path);
    this.report = earlier
      ? (JSON.parse(readFileSync(path, "utf8")) as ChaosReport)
      : { total: emptyTally(), runs: [], faults: {}, violations: [], skipped: [] };
    this.#run = {
      seed,
      commit: commitNow(),
      machine: `${cpus().length} × ${cpus()[0]?.model}`,
      seconds: 0,
      clusters: 0,
      injected: 0,
    };
    this.report.runs.push(this.#run);
  }

  /** Faults of this run so far. */
  get injected(): number {
    return this.#run.injected;
  }

  skip(fault: string): void {
    if (!this.report.skipped.includes(fault)) this.report.skipped.push(fault);
  }

  clusterStarted(): void {
    this.#run.clusters += 1;
  }

  clusterDiscarded(): void {
    this.#run.unstarted = (this.#run.unstarted ?? 0) + 1;
    this.write();
  }

  count(fault: string, outcome: Exclude<keyof Tally, "injected">): void {
    this.report.faults[fault] ??= emptyTally();
    for (const tally of [this.report.faults[fault], this.report.total]) {
      tally.injected += 1;
      tally[outcome] += 1;
    }
    this.#run.injected += 1;
    this.write();
  }

  violate(what: string): void {
    this.report.violations.push(what);
    console.error(what);
    this.write();
  }

  write(): void {
    this.#run.seconds = Math.round((performance.now() - this.#began) / 1000);
    if (this.#path === undefined) return;
    const beside = `${this.#path}.${process.pid}`;
    writeFileSync(beside, `${JSON.stringify(this.report, undefined, 2)}\n`);
    renameSync(beside, this.#path);
  }
}
