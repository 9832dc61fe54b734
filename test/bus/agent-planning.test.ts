/** Agents that know the cluster's links plan with them, and tell those who know others. */
import { describe, expect, it } from "vitest";
import { DeviceMesh, type Layout, parsePlacement } from "../../src/layout/index.ts";
import { type PlanOptions, planTransfer } from "../../src/plan/index.ts";
import { AgentWorld, arrayOf, failureOf, joinPair, type Side, tensor } from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0, 1], placements: ["S(0)"] };
const inference: Side = { name: "inference", ranks: [2, 3], placements: ["R"] };
/** Both replicas of the target stand on one host. */
const planning: PlanOptions = {
  topology: { ranksPerHost: 2, hostMBps: 100_000, networkMBps: 1000, latencyUs: 10 },
};
const [rows, columns] = [2048, 1024];
const bytes = BigInt(rows * columns * 4);

function layoutOf({ ranks, placements }: Side): Layout {
  return {
    mesh: new DeviceMesh([ranks.length], { ranks }),
    placements: (placements as readonly string[]).map(parsePlacement),
  };
}

async function register(world: AgentWorld) {
  const clients = await joinPair(world, [trainer, inference]);
  const sources = trainer.ranks.map((rank) =>
    tensor([rows / 2, columns], (at) => (rank * rows * columns) / 2 + at),
  );
  const targets = inference.ranks.map(() => tensor([rows, columns]));
  const all = [...clients[0], ...clients[1]];
  const handlers = await Promise.all(
    [...sources, ...targets].map((one, at) => all[at]!.registerTensors("model", [[one, "weights"]])),
  );
  return { targets, handlers };
}

describe("agents with a topology", () => {
  it("send each byte once over the slow link, and predict the first round", async () => {
    await using world = await AgentWorld.start(4, { planning });
    const { targets, handlers } = await register(world);
    const dryRun = await planTransfer({
      pairs: { weights: { source: layoutOf(trainer), target: layoutOf(inference) } },
      tensors: [{ name: "0", pair: "weights", shape: [rows, columns], dtype: "float32" }],
      ...planning,
    });
    for (const [at, { plans }] of handlers.entries()) {
      expect(at < 2 ? plans.send : plans.recv).toMatchObject({ digest: dryRun.digest });
    }
    const ends = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "send" : "recv")));
    const results = await Promise.all(ends.map((end) => end.wait()));
    for (const one of targets) expect(arrayOf(one).every((value, at) => value === at)).toBe(true);
    // The sources send every byte to one replica, which hand their halves to each other.
    expect(results.slice(0, 2).reduce((sum, { bytesSent }) => sum + bytesSent, 0n)).toBe(bytes);
    expect(results.slice(2).reduce((sum, { bytesSent }) => sum + bytesSent, 0n)).toBe(bytes);
    // Half of the bytes enter each replica's host link at 1 GB/s.
    for (const { predictedSeconds } of results) {
      expect(predictedSeconds).toBeGreaterThan(Number(bytes) / 2 / 1e9);
      expect(predictedSeconds).toBeLessThan(Number(bytes) / 1e9);
    }
  });

  it("refuse a batch whose agents know different links, on either side, with the option and both values", async () => {
    await using world = new AgentWorld();
    const other = { topology: { ...planning.topology!, networkMBps: 500 } };
    for (const rank of [0, 1, 2, 3]) await world.startAgent(rank, { planning: rank < 2 ? planning : other });
    const failed = await failureOf(register(world));
    expect(failed).toMatchObject({
      code: "TB_BATCH_MISMATCH",
      details: { batch: "model", pair: "weights", field: "topology.networkMBps" },
    });
    expect(failed.message).toMatch(/topology\.networkMBps of side (trainer is 1000|inference is 500)/);
  });

  it("name the odd rank of a side", async () => {
    await using world = new AgentWorld();
    for (const rank of [0, 1, 2, 3]) {
      await world.startAgent(rank, { planning: rank === 1 ? { ...planning, strategy: "direct" } : planning });
    }
    expect(await failureOf(register(world))).toMatchObject({
      code: "TB_BATCH_MISMATCH",
      details: { side: "trainer", rank: 1, field: "strategy", value: '"direct"', expected: '"auto"' },
    });
  });

  it("do not start with a topology that is none, and refuse batches of ranks that it does not name", async () => {
    const short = { topology: { hosts: [0, 0], hostMBps: 100, networkMBps: 10, latencyUs: 1 } };
    await using world = new AgentWorld();
    const broken = { topology: { ...short.topology, latencyUs: -1 } };
    expect((await failureOf(world.startAgent(0, { planning: broken }))).code).toBe("TB_TOPOLOGY");
    for (const rank of [0, 1, 2, 3]) await world.startAgent(rank, { planning: short });
    expect((await failureOf(register(world))).code).toBe("TB_TOPOLOGY");
  });
});
