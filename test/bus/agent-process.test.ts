/** Agents as processes of their own: over TCP and a store that rank 0 serves, killed, stopped and started again. */
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { TensorBusClient } from "../../src/bus/client/client.ts";
import type { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { freePort } from "../kit/free-ports.ts";
import { Cluster } from "./kit/agent-cluster.ts";
import { arrayOf, failureOf, fill, initPair, type Side, tensor } from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0, 1], placements: ["S(0)"] };
const inference: Side = { name: "inference", ranks: [2], placements: ["R"] };
const sides = [trainer, inference] as const satisfies [Side, Side];

async function startCluster(): Promise<{
  cluster: Cluster;
  clients: [TensorBusClient[], TensorBusClient[]];
}> {
  const cluster = new Cluster(await freePort());
  await Promise.all([0, 1, 2].map((rank) => cluster.start(rank)));
  const [zero, one, two] = await Promise.all([0, 1, 2].map((rank) => cluster.client(rank)));
  return { cluster, clients: [[zero!, one!], [two!]] };
}

async function register(clients: [TensorBusClient[], TensorBusClient[]], rows: number) {
  const halves = [0, 1].map(() => tensor([rows, 64]));
  const whole = tensor([2 * rows, 64]);
  const handlers = await Promise.all([
    ...halves.map((one, at) => clients[0][at]!.registerTensors("model", [[one, "weights"]])),
    clients[1][0]!.registerTensors("model", [[whole, "weights"]]),
  ]);
  const round = async (value: number) => {
    halves.forEach((one: SharedTensor, at) => {
      fill(one, (index) => value + at * rows * 64 + index);
    });
    const ends = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "send" : "recv")));
    await Promise.all(ends.map((end) => end.wait()));
    expect(arrayOf(whole)[0]).toBe(value);
    expect(arrayOf(whole).at(-1)).toBe(value + 2 * rows * 64 - 1);
  };
  return { handlers, round };
}

describe("agents in processes of their own", () => {
  it("plan with the links of a spec, and refuse a batch with one that knows none", async () => {
    const cluster = new Cluster(await freePort());
    const spec = ["--spec", join("examples", "specs", "llama-3-8b.yaml")];
    await Promise.all([0, 1, 2].map((rank) => cluster.start(rank, rank === 2 ? [] : spec)));
    const [zero, one, two] = await Promise.all([0, 1, 2].map((rank) => cluster.client(rank)));
    const clients: [TensorBusClient[], TensorBusClient[]] = [[zero!, one!], [two!]];
    await initPair(clients, sides);
    expect(await failureOf(register(clients, 32))).toMatchObject({
      code: "TB_BATCH_MISMATCH",
      details: { batch: "model", pair: "weights", field: expect.stringMatching(/^(strategy|topology\.)/) },
    });
  });

  it("say at their start what is wrong with the address that they listen on", async () => {
    const started = ["0.0.0.0", "no..name"].map(
      async (host) => new Cluster(await freePort()).run(0, {}, ["--host", host]).finished,
    );
    const [anywhere, nowhere] = await Promise.all(started);
    expect([anywhere!.code, nowhere!.code]).toEqual([2, 2]);
    expect(anywhere!.stderr).toMatch(/needs one that others connect to: give advertise \(--advertise\)/);
    expect(nowhere!.stderr).toMatch(/the name no\.\.name to listen on cannot be resolved/);
  });

  it("move tensors, outlive one of them, find its successor, and drain at SIGTERM", async () => {
    const { cluster, clients } = await startCluster();
    await initPair(clients, sides);
    const first = await register(clients, 32);
    await first.round(1);
    await first.round(2);

    const second = cluster.run(1, { TENSOR_BUS_STORE: "tcp://127.0.0.1:1" });
    expect((await second.finished).code).toBe(2);

    const waiting = await first.handlers[2]!.transfer("recv");
    cluster.agents[1]!.process.kill("SIGKILL");
    expect(await failureOf(waiting.wait())).toMatchObject({ code: "TB_PEER_LOST", details: { rank: 1 } });
    await cluster.start(1);
    await clients[0][1]!.awaitAgent();
    await Promise.all([first.handlers[0]!.close(), first.handlers[2]!.close()]);
    const again = await register(clients, 16);
    await again.round(7);

    const { process: last, finished } = cluster.agents[2]!;
    last.kill("SIGTERM");
    expect((await finished).code).toBe(0);
  });

  it("clean up after a client that closes in the middle of a round, and tell the others", async () => {
    const { clients, cluster } = await startCluster();
    await initPair(clients, sides);
    const { handlers } = await register(clients, 8);
    const waiting = await handlers[2]!.transfer("recv");
    await clients[0][0]!.close();
    expect((await failureOf(waiting.wait())).code).toMatch(/TB_CANCELLED|TB_PEER_LOST|TB_INVALIDATED/);
    clients[0][0] = await cluster.client(0);
    const again = await register(clients, 8);
    await again.round(3);
  });

  it("lose the store with rank 0, and go on with its successor's", async () => {
    const { cluster, clients } = await startCluster();
    await initPair(clients, sides);
    const { handlers, round } = await register(clients, 8);
    await round(1);
    cluster.agents[0]!.process.kill("SIGKILL");
    await expect
      .poll(
        async () => (await failureOf(handlers[2]!.transfer("recv", { blocking: true, timeoutMs: 200 }))).code,
        {
          timeout: 10_000,
        },
      )
      .toMatch(/TB_BATCH_UNKNOWN|TB_STORE_LOST/);
    await cluster.start(0);
    await clients[0][0]!.awaitAgent();
    const again = await register(clients, 8);
    await again.round(5);
  });
});
