/**
 * `npm run chaos -- --faults N --seed S [--json FILE]`: real processes, and faults drawn by a seed while their rounds are under
 * way. After each: every call ended in time and with a code, no element is of no step, staged rounds were whole, and at the
 * latest the second lockstep call succeeds; at the end nothing is left. What happened while the machine itself stood still is
 * not judged, and counted.
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Programs } from "./children.ts";
import { ChaosCluster, type ClusterOptions } from "./cluster.ts";
import { type Fault, faults } from "./faults.ts";
import { engines, type Outcome, ranks } from "./protocol.ts";
import { Random } from "./random.ts";

const faultsPerCluster = 25;
const roundMs = 2500;
/** What a call may be late by: 250 ms after its deadline, and what a machine takes that runs nine processes. */
const slackMs = 250 + 2000;
const lockstepMs = 10_000;
const registerMs = 20_000;
/** The runner's own loop came round this much late: so did everything else. */
const stallMs = 400;

interface Tally {
  injected: number;
  survived: number;
  discarded: number;
  violated: number;
}

export interface ChaosReport {
  readonly seed: number;
  readonly commit: string;
  readonly machine: string;
  readonly seconds: number;
  readonly clusters: number;
  readonly total: Tally;
  readonly faults: Readonly<Record<string, Tally>>;
  readonly violations: readonly string[];
  /** Faults that this machine does not allow. */
  readonly skipped: readonly string[];
}

/** The longest that this process's loop was late since it was asked last. */
class StallClock {
  #longest = 0;
  #last = performance.now();
  readonly #timer = setInterval(() => {
    const now = performance.now();
    this.#longest = Math.max(this.#longest, now - this.#last - 50);
    this.#last = now;
  }, 50);

  take(): number {
    const longest = this.#longest;
    this.#longest = 0;
    return longest;
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

const described = (outcomes: readonly (Outcome | undefined)[]) =>
  outcomes
    .map((each) =>
      each === undefined
        ? "absent"
        : `${each.code} ${Math.round(each.ms)} ms${each.message === undefined ? "" : ` (${each.message})`}`,
    )
    .join(", ");

const succeeded = (outcomes: readonly (Outcome | undefined)[]) =>
  outcomes.every((each) => each?.code === "none");

/** What of the ends of one round is wrong, whatever happened to it. */
function judgeEnds(
  outcomes: readonly (Outcome | undefined)[],
  { fault, options, step, limitMs }: { fault: Fault; options: ClusterOptions; step: number; limitMs: number },
): string[] {
  const wrong: string[] = [];
  outcomes.forEach((outcome, rank) => {
    if (outcome === undefined || outcome.code === "ended") return;
    if (outcome.code.startsWith("untyped")) wrong.push(`rank ${rank}: ${outcome.code}: ${outcome.message}`);
    if (outcome.ms > limitMs)
      wrong.push(`rank ${rank}: its call took ${Math.round(outcome.ms)} ms (${outcome.code})`);
    if (outcome.steps.includes(-1)) wrong.push(`rank ${rank} holds an element of no step`);
    if (!engines.includes(rank)) return;
    if (outcome.code === "none" && outcome.steps.join() !== String(step)) {
      wrong.push(`rank ${rank}: a completed round of step ${step} left steps ${outcome.steps.join()}`);
    }
    if (options.commit === "staged" && outcome.steps.length > 1) {
      wrong.push(`rank ${rank}: a staged round was split: steps ${outcome.steps.join()}, ${fault.name}`);
    }
  });
  return wrong;
}

class Runner {
  readonly tallies: Record<string, Tally> = {};
  readonly violations: string[] = [];
  clusters = 0;
  readonly #random: Random;
  readonly #programs: Programs;
  readonly #seed: number;
  readonly #stalls = new StallClock();
  #step = 0;

  constructor(programs: Programs, seed: number) {
    this.#programs = programs;
    this.#seed = seed;
    this.#random = new Random(seed);
  }

  /** As many faults, or as many as there is time for. */
  async run(count: number, seconds: number): Promise<void> {
    const end = performance.now() + seconds * 1000;
    for (let left = count; left > 0 && performance.now() < end; left -= faultsPerCluster) {
      await this.#cluster(Math.min(left, faultsPerCluster), end);
    }
    this.#stalls.stop();
  }

  get total(): Tally {
    const total = { injected: 0, survived: 0, discarded: 0, violated: 0 };
    for (const tally of Object.values(this.tallies)) {
      for (const key of Object.keys(total) as (keyof Tally)[]) total[key] += tally[key];
    }
    return total;
  }

  async #cluster(count: number, end: number): Promise<void> {
    const options: ClusterOptions = {
      transport: this.#random.of(["tcp", "shm"]),
      store: this.#random.of(["tcp", "etcd"]),
      commit: this.#random.of(["direct", "staged"]),
    };
    this.clusters += 1;
    const cluster = await ChaosCluster.start(this.#programs, options);
    const unready = await this.#recover(cluster);
    for (const what of unready) this.#violate(`at the start, ${Object.values(options)}: ${what}`);
    let usable = unready.length === 0;
    for (let i = 0; i < count && usable && performance.now() < end; i++) {
      usable = await this.#fault(cluster, options);
    }
    const left = await cluster.end();
    // A cluster that was given up ends by force.
    if (usable) for (const what of left) this.#violate(`at the end, ${Object.values(options)}: ${what}`);
  }

  #violate(what: string): void {
    this.violations.push(what);
    console.error(what);
  }

  /** False where the cluster did not get over it. */
  async #fault(cluster: ChaosCluster, options: ClusterOptions): Promise<boolean> {
    const fault = this.#random.of(faults.filter(({ needs }) => needs?.(options) ?? true));
    const rank = this.#random.of(ranks);
    this.tallies[fault.name] ??= { injected: 0, survived: 0, discarded: 0, violated: 0 };
    const tally = this.tallies[fault.name]!;
    tally.injected += 1;
    this.#stalls.take();
    const problems = await this.#round(cluster, fault, rank, options);
    const unrecovered = await this.#recover(cluster);
    problems.push(...unrecovered);
    if (problems.length === 0) tally.survived += 1;
    else if (this.#stalls.take() > stallMs) tally.discarded += 1;
    else {
      tally.violated += 1;
      const where = `seed ${this.#seed}, fault ${this.total.injected}, ${Object.values(options)}, ${fault.name}, rank ${rank}`;
      this.#violate(`${where}: ${problems.join("; ")}`);
    }
    return unrecovered.length === 0;
  }

  /** One round with the fault in its middle. */
  async #round(
    cluster: ChaosCluster,
    fault: Fault,
    rank: number,
    options: ClusterOptions,
  ): Promise<string[]> {
    this.#step += 1;
    const step = this.#step;
    const calls = cluster.callAll(step, roundMs, fault.absent ? rank : undefined);
    await sleep(this.#random.below(30));
    const heal = await fault.inject(cluster, rank, this.#random);
    const outcomes = await Promise.all(calls);
    const problems = judgeEnds(outcomes, {
      fault,
      options,
      step,
      limitMs: roundMs + slackMs + (fault.lateMs ?? 0),
    });
    try {
      await heal();
    } catch (error) {
      problems.push((error as Error).message);
    }
    return problems;
  }

  /** Two lockstep calls, the second after all have registered anew if the first failed: it must succeed. */
  async #recover(cluster: ChaosCluster): Promise<string[]> {
    await sleep(300);
    const first = await this.#lockstep(cluster);
    if (succeeded(first)) return [];
    let registered = await cluster.registerAll(registerMs);
    if (!succeeded(registered)) registered = await cluster.registerAll(registerMs);
    if (!succeeded(registered)) return [`ranks cannot register anew: ${described(registered)}`];
    const second = await this.#lockstep(cluster);
    if (succeeded(second)) return [];
    return [`the second lockstep call fails: ${described(second)}, after ${described(first)}`];
  }

  async #lockstep(cluster: ChaosCluster): Promise<(Outcome | undefined)[]> {
    this.#step += 1;
    const outcomes = await Promise.all(cluster.callAll(this.#step, lockstepMs));
    const wrong = outcomes.filter(
      (each, rank) =>
        each?.code === "none" && engines.includes(rank) && each.steps.join() !== String(this.#step),
    );
    return wrong.length === 0 ? outcomes : outcomes.map((each) => each && { ...each, code: "wrong bytes" });
  }
}

const { values } = parseArgs({
  options: {
    faults: { type: "string", default: "100" },
    seed: { type: "string", default: "1" },
    seconds: { type: "string", default: "86400" },
    json: { type: "string" },
  },
});
const programs = JSON.parse(process.env["CHAOS_PROGRAMS"]!) as Programs;
const runner = new Runner(programs, Number(values.seed));
const began = performance.now();
await runner.run(Number(values.faults), Number(values.seconds));
const report: ChaosReport = {
  seed: Number(values.seed),
  commit: execFileSync("git", ["rev-parse", "HEAD"], { encoding: "utf8" }).trim(),
  machine: `${cpus().length} × ${cpus()[0]?.model}`,
  seconds: Math.round((performance.now() - began) / 1000),
  clusters: runner.clusters,
  total: runner.total,
  faults: runner.tallies,
  violations: runner.violations,
  skipped: faults
    .filter(({ needs }) => needs?.({ transport: "tcp", store: "etcd", commit: "direct" }) === false)
    .map(({ name }) => name),
};
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(report, undefined, 2)}\n`);
const { injected, survived, discarded, violated } = report.total;
console.log(
  `${injected} faults in ${report.clusters} clusters: ${survived} survived, ${discarded} discarded, ${violated} violated`,
);
for (const name of report.skipped) console.log(`skipped, not allowed on this machine: ${name}`);
process.exitCode = report.violations.length === 0 ? 0 : 1;
