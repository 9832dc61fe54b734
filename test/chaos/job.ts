/** A cluster as the tests use it: what its ranks do together, and what has to come of it. */
import { expect } from "vitest";
import type { Programs } from "./children.ts";
import { ChaosCluster, type ClusterOptions } from "./cluster.ts";
import { judgeRound } from "./judge.ts";
import type { Outcome } from "./protocol.ts";

/** What a machine with other things to do may take beyond the 250 ms that a call has. */
export const slackMs = 250 + 3000;
/** A deadline that nothing here comes near unless somebody waits for what does not come. */
const longMs = 30_000;

const allSucceeded = (outcomes: readonly Outcome[]) =>
  expect(outcomes.map(({ code, message }) => message ?? code)).toEqual(outcomes.map(() => "none"));

/** A cluster, and its calls: ranks register and transfer all at once unless a test says otherwise. */
export class Job {
  readonly cluster: ChaosCluster;
  step = 0;

  private constructor(cluster: ChaosCluster) {
    this.cluster = cluster;
  }

  static async start(programs: Programs, options: Partial<ClusterOptions> = {}): Promise<Job> {
    return new Job(
      await ChaosCluster.start(programs, { transport: "tcp", store: "tcp", commit: "direct", ...options }),
    );
  }

  /** At the first try, and long before a deadline. */
  async register(commit: "direct" | "staged" = "direct"): Promise<void> {
    const outcomes = await this.cluster.askAll({ act: "register", timeoutMs: longMs, commit });
    allSucceeded(outcomes);
    for (const { ms } of outcomes) expect(ms).toBeLessThan(longMs / 2);
  }

  /** One call each, of ranks that do not know a version. */
  call(timeoutMs: number, ranks = this.cluster.ranks): Promise<Outcome[]> {
    this.step += 1;
    return this.cluster.askAll({ act: "call", step: this.step, timeoutMs, unversioned: true }, ranks);
  }

  /** Each rank calls once, and each engine gets what the trainers had. */
  async lockstep(): Promise<void> {
    const outcomes = await this.call(longMs);
    allSucceeded(outcomes);
    const { trainers } = this.cluster.sides;
    for (const { steps } of outcomes.slice(trainers.length)) expect(steps).toEqual([this.step]);
  }

  /** At the latest the second call of all succeeds, once they have registered anew where the first did not. */
  async goOn(commit: "direct" | "staged" = "direct"): Promise<void> {
    const first = await this.call(3000);
    if (first.some(({ code }) => code !== "none")) await this.register(commit);
    await this.lockstep();
  }

  /** All have ended in time, with a code, and all or none has what a staged round brought. */
  judge(outcomes: readonly Outcome[], commit: "direct" | "staged", timeoutMs: number): void {
    const limitMs = timeoutMs + slackMs;
    expect(judgeRound(outcomes, { commit, step: this.step, limitMs })).toEqual([]);
  }
}
