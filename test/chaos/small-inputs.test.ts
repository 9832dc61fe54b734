/**
 * Small inputs that once split a round, left ranks waiting, or had a cluster fail for ever: each again, with real agents and
 * hosts, which stay the same from test to test, so that each has to get over the one before.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { etcdMissing } from "../store/kit/etcd-server.ts";
import { ask, type Programs } from "./children.ts";
import { ChaosCluster, type ClusterOptions } from "./cluster.ts";
import { judgeEnds, judgeRound } from "./judge.ts";
import { ownPrograms } from "./programs.ts";
import type { Outcome } from "./protocol.ts";
import { Random } from "./random.ts";

/** What a machine with other things to do may take beyond the 250 ms that a call has. */
const slackMs = 250 + 3000;
/** A deadline that nothing here comes near unless somebody waits for what does not come. */
const longMs = 30_000;

let built: Awaited<ReturnType<typeof ownPrograms>>;
beforeAll(async () => {
  built = await ownPrograms();
});
afterAll(() => built.remove());

/** A cluster, and its calls: ranks register and transfer all at once unless a test says otherwise. */
class Job {
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
    expect(outcomes.map(({ code, message }) => message ?? code)).toEqual(outcomes.map(() => "none"));
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
    expect(outcomes.map(({ code, message }) => message ?? code)).toEqual(outcomes.map(() => "none"));
    const { trainers } = this.cluster.sides;
    for (const { steps } of outcomes.slice(trainers.length)) expect(steps).toEqual([this.step]);
  }

  /** All have ended in time, with a code, and all or none has what a staged round brought. */
  judge(outcomes: readonly Outcome[], commit: "direct" | "staged", timeoutMs: number): void {
    const limitMs = timeoutMs + slackMs;
    expect(judgeRound(outcomes, { commit, step: this.step, limitMs })).toEqual([]);
  }
}

describe("a cluster", () => {
  let job: Job;
  beforeAll(async () => {
    job = await Job.start(built.programs, { sides: { trainers: [0, 1], engines: [3, 4] } });
  });
  afterAll(async () => {
    expect(await job.cluster.end()).toEqual([]);
  });

  it("that is killed and comes back with engines 2 and 3 in place of 3 and 4 registers at the first try", async () => {
    await job.register();
    await job.lockstep();
    await job.cluster.relaunch({ trainers: [0, 1], engines: [2, 3] });
    await job.register();
    await job.lockstep();
  });

  describe.each(["direct", "staged"] as const)("with %s rounds", (commit) => {
    it("goes on after rank 1 has skipped a call", async () => {
      await job.register(commit);
      await job.lockstep();
      const ends = await job.call(700, [0, 2, 3]);
      // What rank 0 had for the engines has come there: only a staged round fails for it as well.
      for (const { code, rank } of ends.slice(1))
        expect([code, rank]).toEqual([expect.stringMatching(/TB_TIMEOUT|TB_CANCELLED/), 1]);
      expect(ends[0]!.code === "none").toBe(commit === "direct");
      expect(judgeEnds(ends, 700 + slackMs)).toEqual([]);
      await job.lockstep();
      await job.lockstep();
    });

    it("goes on after the agent of rank 1 was stopped beyond a deadline", async () => {
      const agent = job.cluster.agents[1]!;
      agent.signal("SIGSTOP");
      const calls = job.call(700);
      await sleep(1500);
      agent.signal("SIGCONT");
      const ends = await calls;
      job.judge(ends, commit, 1500);
      for (const { code } of ends.slice(1)) expect(code).not.toBe("none");
      await job.call(5000);
      await job.lockstep();
    });
  });

  it("splits no staged round that is aborted at a random moment, with the store 8 ms away", async () => {
    await job.register("staged");
    await job.lockstep();
    const { storeProxies, ranks, hosts } = job.cluster;
    for (const rank of ranks) storeProxies[rank]!.delay(8);
    const random = new Random(8);
    const ended = new Set<string>();
    for (let round = 0; round < 25; round++) {
      const calls = job.call(5000);
      await sleep(random.below(120));
      hosts[random.of(ranks)]!.process.send({ abort: true });
      const ends = await calls;
      job.judge(ends, "staged", 5000);
      for (const { code } of ends) ended.add(code);
    }
    // They met rounds before and after their decision.
    expect([...ended]).toEqual(expect.arrayContaining(["none", "TB_CANCELLED"]));
    for (const rank of ranks) storeProxies[rank]!.delay(0);
    await job.lockstep();
  });

  it("tells rank 2, which polls the signal, that rank 3 was killed; all register again with no deadline burnt", async () => {
    const polling = ask(job.cluster.hosts[2]!, { act: "poll" });
    await sleep(100);
    const began = performance.now();
    await job.cluster.killRank(3);
    expect(await polling).toMatchObject({ code: "TB_PEER_LOST", rank: 3 });
    expect(performance.now() - began).toBeLessThan(1000 + slackMs);
    await job.cluster.startRank(3);
    await job.register();
    await job.lockstep();
    await job.cluster.killRank(0);
    await job.cluster.startRank(0);
    await job.register();
    await job.lockstep();
  });

  it("gives nobody a batch while rank 3 cannot be reached, and everybody once it can", async () => {
    const { peerProxies, ranks } = job.cluster;
    // It is not who asks that counts: nobody gets through to rank 3, and it gets through to nobody.
    for (const rank of ranks) peerProxies[rank]!.cut();
    peerProxies[3]!.refuse(true);
    const ends = await job.cluster.askAll({ act: "register", timeoutMs: 2000 });
    expect(judgeEnds(ends, 4 * 2000 + slackMs)).toEqual([]);
    expect(ends.map(({ code }) => code)).not.toContain("none");
    peerProxies[3]!.refuse(false);
    await job.register();
    await job.lockstep();
  });

  it("ends a staged round whose rank dies after its part alike on all others, with the store 150 ms away", async () => {
    await job.register("staged");
    await job.lockstep();
    const { storeProxies, ranks } = job.cluster;
    for (const rank of ranks) storeProxies[rank]!.delay(150);
    const voted = storeProxies[3]!.passed(/\/votes/);
    const calls = job.call(8000);
    await voted;
    await job.cluster.killRank(3);
    job.judge(await calls, "staged", 8000);
    for (const rank of ranks) storeProxies[rank]!.delay(0);
    await job.cluster.startRank(3);
    await job.register("staged");
    await job.lockstep();
  });
});

describe.skipIf(etcdMissing)(`a cluster on etcd [${etcdMissing ?? "runs"}]`, () => {
  it("that is killed and comes back with engines 2 and 3 in place of 3 and 4 registers at the first try", async () => {
    const job = await Job.start(built.programs, {
      store: "etcd",
      transport: "shm",
      sides: { trainers: [0, 1], engines: [3, 4] },
    });
    await job.register();
    await job.lockstep();
    await job.cluster.relaunch({ trainers: [0, 1], engines: [2, 3] });
    await job.register();
    await job.lockstep();
    expect(await job.cluster.end()).toEqual([]);
  });
});
