/**
 * Small inputs that once split a round, left ranks waiting, or had a cluster fail for ever: each again, with real agents and
 * hosts, which stay the same from test to test, so that each has to get over the one before.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Random } from "../kit/random.ts";
import { etcdMissing } from "../store/kit/etcd-server.ts";
import { ask } from "./children.ts";
import { Job, slackMs } from "./job.ts";
import { judgeEnds } from "./judge.ts";
import { ownPrograms } from "./programs.ts";

let built: Awaited<ReturnType<typeof ownPrograms>>;
beforeAll(async () => {
  built = await ownPrograms();
});
afterAll(() => built.remove());

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
    for (let round = 0; round < 16; round++) {
      const calls = job.call(5000);
      await sleep(random.below(120));
      hosts[random.pick(ranks)]!.process.send({ abort: true });
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
    // Rank 2 has no channel to rank 3, and hears of its end by way of the store.
    job.judge(await calls, "staged", 3000);
    for (const rank of ranks) storeProxies[rank]!.delay(0);
    await job.cluster.startRank(3);
    await job.register("staged");
    await job.lockstep();
  });

  describe("of which one side of a way is lost", () => {
    it("ends in time while one rank reaches the store and no peer, and goes on", async () => {
      await job.register();
      const { peerProxies } = job.cluster;
      peerProxies[3]!.hold(true);
      const calls = job.call(700);
      await sleep(1500);
      peerProxies[3]!.hold(false);
      const ends = await calls;
      job.judge(ends, "direct", 1500);
      expect(ends[3]).toMatchObject({ code: expect.stringMatching(/TB_TIMEOUT|TB_CANCELLED/) });
      await job.goOn();
    });

    it.each([
      ["one rank", [3]],
      ["a rank of each side", [1, 2]],
    ] as const)("ends in time while %s reaches its peers and no store, and goes on", async (_, ranks) => {
      await job.register("staged");
      const { storeProxies } = job.cluster;
      for (const rank of ranks) storeProxies[rank]!.refuse(true);
      const ends = await job.call(1000);
      job.judge(ends, "staged", 1000);
      for (const { code } of ends) expect(code).not.toBe("none");
      for (const rank of ranks) storeProxies[rank]!.refuse(false);
      await job.goOn("staged");
    });

    it("takes back a client that ends while its rank is in doubt", async () => {
      await job.register("staged");
      const { storeProxies, hosts, agents } = job.cluster;
      const voted = storeProxies[3]!.passed(/\/votes/);
      const calls = job.call(3000);
      await voted;
      // The vote is on its way; its outcome never comes.
      storeProxies[3]!.hold(true, ["back"]);
      await sleep(200);
      await hosts[3]!.kill();
      job.judge(await calls, "staged", 3000);
      expect(agents[3]!.isRunning).toBe(true);
      await job.cluster.startHost(3);
      storeProxies[3]!.hold(false);
      await job.goOn("staged");
    });

    it("takes back a rank whose memory its peers had to give up", async () => {
      await job.register();
      const agent = job.cluster.agents[3]!;
      const calls = job.call(500);
      agent.signal("SIGSTOP");
      // Longer than the transport waits for memory to be quiet.
      await sleep(5900);
      agent.signal("SIGCONT");
      job.judge(await calls, "direct", 5900);
      await job.goOn();
    });
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
