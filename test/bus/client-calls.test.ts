import type { ChildProcess } from "node:child_process";
import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it, vi } from "vitest";
import { type ConnectOptions, TensorBusClient } from "../../src/bus/client/client.ts";
import type { CommandType } from "../../src/bus/queue/command-header.ts";
import type { Command, CommandOf } from "../../src/bus/queue/commands.ts";
import { decodeTensorTable } from "../../src/bus/queue/tensor-table.ts";
import { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { DeviceMesh, Replicate, Shard } from "../../src/layout/index.ts";
import type { ScriptedAgentOptions, ScriptedMessage } from "./children/scripted-agent.ts";
import { exitOf, forkFixture, freshPaths, kill, messageOf, stopIdle, stopped } from "./kit/processes.ts";

const code = (expected: string) => expect.objectContaining({ code: expected });

const clients: TensorBusClient[] = [];
afterEach(async () => {
  vi.useRealTimers();
  for (const client of clients.splice(0)) await client.close();
});

type Paths = ReturnType<typeof freshPaths>;

async function startAgent(paths: Paths, options: Partial<ScriptedAgentOptions> = {}) {
  const child = forkFixture("scripted-agent", { ...paths, ...options });
  const commands: Command[] = [];
  child.on("message", (message: ScriptedMessage) => {
    if ("command" in message) commands.push(message.command);
  });
  await messageOf<ScriptedMessage>(child, (message) => "ready" in message);
  const last = <T extends CommandType>(type: T) =>
    commands.findLast((command) => command.type === type) as CommandOf<T>;
  /** What the agent has seen so far is here once it has told of a question that comes last. */
  const heard = async (client: TensorBusClient) => {
    const question = `heard ${commands.length}`;
    await client.queryTransferSignal(question);
    const isQuestion = (command: Command) => command.type === "QueryStatus" && command.batch === question;
    while (!commands.some(isQuestion)) await sleep(1);
    commands.splice(commands.findIndex(isQuestion), 1);
  };
  return { child, commands, last, heard };
}

async function connect(paths: Paths, options: Partial<ConnectOptions> = {}): Promise<TensorBusClient> {
  const client = await TensorBusClient.connect({
    agentRank: 0,
    commandQueuePath: paths.queue,
    agentStatePath: paths.state,
    ...options,
  });
  clients.push(client);
  return client;
}

const gone = (child: ChildProcess) => messageOf<ScriptedMessage>(child, (message) => "gone" in message);

describe("connecting", () => {
  it("needs paths, given or in the environment, and a rank", async () => {
    const paths = freshPaths();
    await startAgent(paths);
    await expect(TensorBusClient.connect({ agentRank: 0 })).rejects.toThrow(TypeError);
    await expect(connect(paths, { agentRank: -1 })).rejects.toThrow(TypeError);
    process.env["TENSOR_BUS_COMMAND_QUEUE_PATH"] = paths.queue;
    process.env["TENSOR_BUS_STATE_PATH"] = paths.state;
    try {
      const client = await TensorBusClient.connect({ agentRank: 0 });
      clients.push(client);
      expect(client.agentRank).toBe(0);
      expect(client.agentStatePath).toBe(paths.state);
      expect(client.commandQueue.size()).toBe(0);
      expect(client.stateDb.agent()).toMatchObject({ rank: 0 });
      expect(client.stateEnv).toBe(client.stateDb.environment);
      expect(() => Object.assign(client, { agentRank: 1 })).toThrow(TypeError);
    } finally {
      delete process.env["TENSOR_BUS_COMMAND_QUEUE_PATH"];
      delete process.env["TENSOR_BUS_STATE_PATH"];
    }
  });

  it("tells an agent that is absent, another rank's, or stopped", async () => {
    const paths = freshPaths();
    await expect(connect(paths, { connectionTimeoutMs: 60 })).rejects.toEqual(code("TB_AGENT_LOST"));
    const controller = new AbortController();
    const waiting = connect(paths, { signal: controller.signal });
    controller.abort(new Error("enough"));
    await expect(waiting).rejects.toMatchObject({ code: "TB_CANCELLED", cause: new Error("enough") });
    const { child } = await startAgent(paths);
    await expect(connect(paths, { agentRank: 4 })).rejects.toMatchObject({
      code: "TB_AGENT_RANK",
      details: { wanted: 4, found: 0 },
    });
    child.kill("SIGSTOP");
    await stopped(child);
    await sleep(2100);
    await expect(connect(paths, { connectionTimeoutMs: 60 })).rejects.toEqual(code("TB_AGENT_UNRESPONSIVE"));
  });

  it("waits for an agent that comes later", async () => {
    const paths = freshPaths();
    const waiting = connect(paths);
    await startAgent(paths);
    expect(await (await waiting).queryTransferSignal("none")).toBe(false);
  });
});

describe("calls", () => {
  it("send what was asked, and give what was answered", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    const deviceMesh = new DeviceMesh([2, 2], { ranks: [3, 2, 1, 0], dimNames: ["dp", "tp"] });
    await client.initPair({
      pairName: "weights",
      localName: "trainer",
      remoteName: "engine",
      expectedWorldSize: 4,
      deviceMesh,
      placements: [Shard(0), "R"],
    });
    await agent.heard(client);
    expect(agent.last("InitPair")).toMatchObject({
      pair: "weights",
      local: "trainer",
      remote: "engine",
      worldSize: 4,
      layout: {
        mesh: { shape: [2, 2], ranks: [3, 2, 1, 0], dimNames: ["dp", "tp"] },
        placements: ["S(0)", "R"],
      },
    });
    const tensor = SharedTensor.allocate([3, 4], "float32");
    const handler = await client.registerTensors(
      7n,
      [
        [tensor.transpose(0, 1), "weights"],
        [{ data: tensor.data.subarray(4, 8), name: "row", globalShape: [8] }, "others"],
      ],
      { bucketSize: 65_536 },
    );
    expect(handler).toMatchObject({ batchId: 7, pairNames: ["weights", "others"], client, isOpen: true });
    await agent.heard(client);
    const registered = agent.last("RegisterTensors");
    expect(registered).toMatchObject({ batch: 7, bucketBytes: 65_536, regions: [{ kind: "shared" }] });
    const place = { region: 0, dtype: "float32" };
    const base = BigInt(tensor.storageOffset);
    expect(decodeTensorTable(registered.tensors, 1)).toEqual([
      { ...place, pair: "weights", shape: [4n, 3n], strides: [1n, 4n], offset: base },
      {
        ...place,
        pair: "others",
        shape: [4n],
        strides: [1n],
        offset: base + 16n,
        name: "row",
        globalShape: [8n],
      },
    ]);
    expect(await handler.queryTransferSignal()).toBe(true);
    const kinds: string[] = [];
    handler.events$.subscribe({ next: ({ kind }) => kinds.push(kind), complete: () => kinds.push("over") });
    const semaphore = await handler.transfer("recv");
    expect(await semaphore.wait()).toMatchObject({ bytesReceived: 4n, seconds: 0.5 });
    expect(semaphore.name).toMatch(/^\/command_Transfer_7_\d+_/);
    expect([...tensor.data]).toEqual([1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1]);
    const blocking = await client.transfer(7, "send", { blocking: true });
    expect(blocking.state).toBe("completed");
    await handler.close();
    await handler.close();
    await agent.heard(client);
    expect(agent.commands.filter(({ type }) => type === "CleanupBatch")).toHaveLength(1);
    expect(kinds).toEqual(["queued", "completed", "queued", "completed", "over"]);
    await expect(handler.transfer("recv")).rejects.toEqual(code("TB_CLOSED"));
    await expect(client.transfer(7, "recv", { blocking: true })).rejects.toEqual(code("TB_BATCH_UNKNOWN"));
    const failed = await client.transfer(7, "recv");
    await expect(failed.wait()).rejects.toEqual(code("TB_BATCH_UNKNOWN"));
  });

  it("refuse mistakes before they reach the agent", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    const pair = { pairName: "p", localName: "a", remoteName: "b", expectedWorldSize: 1 };
    const mesh = new DeviceMesh([1]);
    await expect(client.initPair({ ...pair, pairName: "" })).rejects.toThrow(TypeError);
    await expect(client.initPair({ ...pair, expectedWorldSize: 0 })).rejects.toThrow(TypeError);
    await expect(client.initPair({ ...pair, deviceMesh: mesh })).rejects.toThrow(TypeError);
    await expect(
      client.initPair({
        ...pair,
        deviceMesh: new DeviceMesh([1], { ranks: [5] }),
        placements: [Replicate()],
      }),
    ).rejects.toEqual(code("TB_MESH"));
    await expect(client.initPair({ ...pair, deviceMesh: mesh, placements: [] })).rejects.toEqual(
      code("TB_PLACEMENT"),
    );
    const tensor = SharedTensor.allocate([2], "float32");
    await expect(client.registerTensors("b", [])).rejects.toThrow(TypeError);
    await expect(client.registerTensors("b", [[tensor, ""]])).rejects.toThrow(TypeError);
    await expect(client.registerTensors("b", [[tensor, "p"]], { bucketSize: 0.5 })).rejects.toThrow(
      TypeError,
    );
    await expect(client.registerTensors(2n ** 70n, [[tensor, "p"]])).rejects.toEqual(code("TB_COMMAND"));
    await expect(client.transfer("b", "sideways" as "send")).rejects.toThrow(TypeError);
    await expect(client.transfer("b", "send", { timeoutMs: -1 })).rejects.toThrow(TypeError);
    await agent.heard(client);
    expect(agent.commands).toEqual([]);
  });

  it("end with the agent's errors, at their deadline, or with the answer that is none", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    const pair = { localName: "a", remoteName: "b", expectedWorldSize: 1 };
    await expect(client.initPair({ ...pair, pairName: "odd" })).rejects.toMatchObject({
      code: "TB_PAIR_MISMATCH",
      details: { pair: "odd", rank: 3 },
    });
    // Nobody waits for this one: the batch that needs it is told.
    await client.initPair({ ...pair, pairName: "odd", blocking: false });
    const tensor = SharedTensor.allocate([2], "float32");
    await expect(client.registerTensors("b", [[tensor, "odd"]])).rejects.toEqual(code("TB_PAIR_MISMATCH"));
    await expect(client.initPair({ ...pair, pairName: "never", timeoutMs: 50 })).rejects.toMatchObject({
      code: "TB_TIMEOUT",
      message: "the agent's own verdict",
    });
    await expect(client.queryTransferSignal("lie")).rejects.toEqual(code("TB_COMMAND"));
    await agent.heard(client);
    expect(agent.commands.filter(({ type }) => type === "RegisterTensors")).toEqual([]);
  });

  it("are taken back by an abort, the agent's part included", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    const controller = new AbortController();
    const semaphore = await client.transfer("slow", "send", { signal: controller.signal });
    expect(await client.queryTransferSignal("none")).toBe(false);
    controller.abort();
    // The agent's own answer, which says that the memory is quiet.
    await expect(semaphore.wait()).rejects.toMatchObject({ code: "TB_CANCELLED", details: { quiet: true } });
    await agent.heard(client);
    expect(agent.last("Cancel").command).toBe(agent.last("Transfer").id);
    await expect(client.queryTransferSignal("none", { signal: AbortSignal.abort() })).rejects.toEqual(
      code("TB_CANCELLED"),
    );
    await agent.heard(client);
    expect(agent.commands.filter(({ type }) => type === "QueryStatus")).toHaveLength(1);
  });

  it("leave no batch behind that nobody waited for", async () => {
    const paths = freshPaths();
    const agent = await startAgent(paths);
    const client = await connect(paths);
    const controller = new AbortController();
    const tensor = SharedTensor.allocate([2], "float32");
    const register = client.registerTensors("late", [[tensor, "p"]], { signal: controller.signal });
    while (agent.last("RegisterTensors") === undefined) await sleep(2);
    controller.abort();
    await expect(register).rejects.toEqual(code("TB_CANCELLED"));
    while (agent.last("CleanupBatch") === undefined) await sleep(2);
    expect(agent.last("CleanupBatch")).toMatchObject({ batch: "late", instance: 1n });
  });

  it("do not wait for room unless they may", async () => {
    const paths = freshPaths();
    const { child } = await startAgent(paths);
    const client = await connect(paths);
    await stopIdle(child, client.commandQueue.environment);
    // As many as the queue takes: the agent takes none of them off.
    const queued = await Promise.all(
      Array.from({ length: client.commandQueue.capacity }, () => client.transfer("none", "send")),
    );
    await expect(client.transfer("none", "send")).rejects.toEqual(code("TB_QUEUE_FULL"));
    const waits = client.queryTransferSignal("none");
    child.kill("SIGCONT");
    expect(await waits).toBe(false);
    for (const semaphore of queued) await expect(semaphore.wait()).rejects.toEqual(code("TB_BATCH_UNKNOWN"));
  });

  it("come to an end when the client is closed", async () => {
    const paths = freshPaths();
    const { child } = await startAgent(paths);
    const client = await connect(paths);
    const tensor = SharedTensor.allocate([2], "float32");
    const handler = await client.registerTensors("b", [[tensor, "p"]]);
    const semaphore = await client.transfer("slow", "send");
    const left = gone(child);
    await client.close();
    await client.close();
    await expect(semaphore.wait()).rejects.toEqual(code("TB_CLOSED"));
    await expect(client.queryTransferSignal("b")).rejects.toEqual(code("TB_CLOSED"));
    await expect(handler.transfer("send")).rejects.toEqual(code("TB_CLOSED"));
    await handler.close();
    expect(await left).toMatchObject({ batches: 1 });
  });
});

describe("the agent's end", () => {
  it("is noticed within a second, and ends the calls under way", async () => {
    const paths = freshPaths();
    const first = await startAgent(paths);
    const client = await connect(paths);
    const tensor = SharedTensor.allocate([2], "float32");
    const handler = await client.registerTensors("b", [[tensor, "p"]]);
    const semaphore = await handler.transfer("send");
    await semaphore.wait();
    const slow = await client.transfer("slow", "send");
    const pair = client.initPair({
      pairName: "never",
      localName: "a",
      remoteName: "b",
      expectedWorldSize: 1,
    });
    const lost = expect(pair).rejects.toEqual(code("TB_AGENT_LOST"));
    const killed = performance.now();
    // Whatever the wall clock does meanwhile.
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() - 86_400_000 });
    first.child.kill("SIGKILL");
    await expect(slow.wait()).rejects.toEqual(code("TB_AGENT_LOST"));
    expect(performance.now() - killed).toBeLessThan(1000);
    await lost;
    vi.useRealTimers();
    await expect(client.queryTransferSignal("b")).rejects.toEqual(code("TB_AGENT_LOST"));
    expect(handler.isOpen).toBe(false);
    await expect(handler.transfer("send")).rejects.toEqual(code("TB_AGENT_LOST"));
    const returned = client.awaitAgent();
    const second = await startAgent(paths);
    await returned;
    await expect(client.transfer("b", "send", { blocking: true })).rejects.toEqual(code("TB_BATCH_UNKNOWN"));
    const again = await client.registerTensors("b", [[tensor, "p"]]);
    await again.transfer("recv", { blocking: true });
    expect([...tensor.data]).toEqual([2, 2]);
    // The old handler's batch is another: closing it leaves this one alone.
    await handler.close();
    await second.heard(client);
    expect(second.last("CleanupBatch")).toBeUndefined();
    expect(await again.queryTransferSignal()).toBe(true);
  });

  it("drops what it had not begun: the next agent does not run it behind the caller's back", async () => {
    const paths = freshPaths();
    const first = await startAgent(paths);
    const client = await connect(paths);
    await stopIdle(first.child, client.commandQueue.environment);
    const tensor = SharedTensor.allocate([2], "float32");
    const register = expect(client.registerTensors("b", [[tensor, "p"]])).rejects.toEqual(
      code("TB_AGENT_LOST"),
    );
    while (client.commandQueue.size() === 0) await sleep(2);
    await kill(first.child);
    await register;
    const second = await startAgent(paths);
    expect(await client.queryTransferSignal("b")).toBe(false);
    await second.heard(client);
    expect(second.commands.map(({ type }) => type)).toEqual(["QueryStatus"]);
  });

  it("is told apart from a stop, which blocks no event loop", async () => {
    const paths = freshPaths();
    const { child } = await startAgent(paths);
    const client = await connect(paths);
    await stopIdle(child, client.commandQueue.environment);
    let ticks = 0;
    const ticking = setInterval(() => ticks++, 5);
    await expect(client.queryTransferSignal("b", { timeoutMs: 300 })).rejects.toMatchObject({
      ...{ code: "TB_AGENT_UNRESPONSIVE", details: { rank: 0 } },
    });
    clearInterval(ticking);
    expect(ticks).toBeGreaterThan(50);
    child.kill("SIGCONT");
    expect(await client.queryTransferSignal("b")).toBe(false);
  });

  it("leaves a client that is closed without its leave", async () => {
    const paths = freshPaths();
    const { child } = await startAgent(paths);
    const client = await connect(paths);
    const { wake } = client.commandQueue.clients()[0]!;
    const file = `/dev/shm/sem.${wake.slice(1)}`;
    expect(existsSync(file)).toBe(true);
    await kill(child);
    await client.close();
    expect(existsSync(file)).toBe(false);
    expect(await exitOf(child)).toMatchObject({ signal: "SIGKILL" });
  });
});
