import type { ChildProcess } from "node:child_process";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { BatchHandler } from "../../src/bus/client/batch-handler.ts";
import type { TensorBusClient } from "../../src/bus/client/client.ts";
import { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { serveTcpStore, type TcpStoreServer } from "../../src/store/index.ts";
import { connectTo, pathsOf } from "./kit/bus-world.ts";
import { exitOf, forkFixture, kill, messageOf, stopIdle, temporaryFolder } from "./kit/processes.ts";

const code = (expected: string) => expect.objectContaining({ code: expected });

let store: TcpStoreServer;
let folder: string;
let agents: ChildProcess[];
let clients: TensorBusClient[];

beforeEach(async () => {
  store = await serveTcpStore();
  folder = temporaryFolder();
  agents = await Promise.all([startAgent(0), startAgent(1)]);
  clients = await Promise.all([connectTo(folder, 0), connectTo(folder, 1)]);
});
afterEach(async () => {
  await Promise.all(clients.map((client) => client.close()));
  await Promise.all(agents.map((agent) => kill(agent)));
  await store.close();
});

async function startAgent(rank: number): Promise<ChildProcess> {
  const agent = forkFixture("real-agent", { rank, storePort: store.port, ...pathsOf(folder, rank) });
  await messageOf(agent, (message) => message === "ready");
  return agent;
}

const names = ["a", "b"];
function initSide(rank: number): Promise<void> {
  return clients[rank]!.initPair({
    pairName: "w",
    localName: names[rank]!,
    remoteName: names[1 - rank]!,
    expectedWorldSize: 1,
  });
}

function register(tensors: readonly SharedTensor[]): Promise<BatchHandler[]> {
  return Promise.all(
    clients.map((client, rank) =>
      client.registerTensors("b", [[tensors[rank]!, "w"]], { timeoutMs: 10_000 }),
    ),
  );
}

async function round(
  handlers: readonly BatchHandler[],
  tensors: readonly SharedTensor<"float32">[],
  value: number,
) {
  tensors[0]!.data.fill(value);
  const semaphores = await Promise.all([handlers[0]!.transfer("send"), handlers[1]!.transfer("recv")]);
  await Promise.all(semaphores.map((semaphore) => semaphore.wait()));
  expect(tensors[1]!.data.every((each) => each === value)).toBe(true);
}

const allocate = () => [SharedTensor.allocate([1000], "float32"), SharedTensor.allocate([1000], "float32")];

describe("clients of agents in processes of their own", () => {
  it("outlive the kill of one: its successor finds the pair, and the batch is registered anew", async () => {
    const tensors = allocate();
    await Promise.all([initSide(0), initSide(1)]);
    const handlers = await register(tensors);
    await round(handlers, tensors, 1);
    const waiting = await handlers[0]!.transfer("send");
    const killed = performance.now();
    agents[0]!.kill("SIGKILL");
    await expect(waiting.wait()).rejects.toEqual(code("TB_AGENT_LOST"));
    expect(performance.now() - killed).toBeLessThan(1000);
    // The other side's round cannot be: it ends with a typed error, at the latest at its deadline.
    const orphan = handlers[1]!.transfer("recv", { blocking: true, timeoutMs: 5000 });
    await expect(orphan).rejects.toMatchObject({ name: "TensorBusError" });
    const returned = clients[0]!.awaitAgent();
    agents[0] = await startAgent(0);
    await returned;
    await initSide(0);
    await handlers[1]!.close();
    const again = await register(tensors);
    await round(again, tensors, 2);
    await round(again, tensors, 3);
  });

  it("are told when one is drained, and go on with the next", async () => {
    const [agent] = agents as [ChildProcess];
    expect(await clients[0]!.queryTransferSignal("none").catch(({ code }) => code)).toBe("TB_BATCH_UNKNOWN");
    agent.kill("SIGTERM");
    expect(await exitOf(agent)).toEqual({ code: 0, signal: null });
    await expect(clients[0]!.queryTransferSignal("none")).rejects.toEqual(code("TB_AGENT_LOST"));
    agents[0] = await startAgent(0);
    await expect(clients[0]!.queryTransferSignal("none")).rejects.toEqual(code("TB_BATCH_UNKNOWN"));
  });

  it("call one that is stopped unresponsive, and are served once it goes on", async () => {
    const tensors = allocate();
    await Promise.all([initSide(0), initSide(1)]);
    const handlers = await register(tensors);
    const [agent] = agents as [ChildProcess];
    await stopIdle(agent, clients[0]!.commandQueue.environment);
    await expect(handlers[0]!.queryTransferSignal({ timeoutMs: 100 })).rejects.toEqual(
      code("TB_AGENT_UNRESPONSIVE"),
    );
    agent.kill("SIGCONT");
    await round(handlers, tensors, 4);
  });
});
