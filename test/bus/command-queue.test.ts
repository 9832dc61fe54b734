import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { bootId, monotonicNs } from "../../src/bus/process/identity.ts";
import { openCommandQueue } from "../../src/bus/queue/command-queue.ts";
import { pack } from "../../src/bus/queue/commands.ts";
import { keyOf } from "../../src/bus/queue/environment.ts";
import { EchoClient } from "./children/echo-client.ts";
import { freshPaths } from "./kit/processes.ts";

const code = (expected: string) => expect.objectContaining({ code: expected });

/** Everything here runs in one process: this client, another one, and the agent's side of the queue. */
let client: EchoClient;
let paths: ReturnType<typeof freshPaths>;
const others: { close(): Promise<void> }[] = [];

beforeEach(async () => {
  paths = freshPaths();
  client = await EchoClient.connect(paths, { capacity: 4 });
});
afterEach(async () => {
  for (const other of others.splice(0)) await other.close();
  await client.close();
});

async function another(capacity = 4): Promise<EchoClient> {
  const other = await EchoClient.connect(paths, { capacity });
  others.push(other);
  return other;
}

async function agentSide() {
  const queue = await openCommandQueue({ path: paths.queue, port: client.port, capacity: 4 });
  others.push(queue);
  return queue;
}

const fill = async (from: number, to: number, by = client) => {
  for (let batch = from; batch <= to; batch++) await by.send(by.makeCommand(batch));
};

describe("the command queue", () => {
  it("gives commands in the order in which they were queued, by whomever", async () => {
    const other = await another();
    for (let i = 0; i < 4; i++) await fill(i, i, i % 2 === 0 ? client : other);
    expect(client.queue.size()).toBe(4);
    expect(client.queue.peek().map(({ type }) => type)).toEqual(["CleanupBatch"]);
    expect(client.queue.peek(3).map((command) => "batch" in command && command.batch)).toEqual([0, 1, 2]);
    expect(client.queue.peek(0)).toEqual([]);
    const agent = await agentSide();
    const first = await agent.dequeue(3);
    expect(first.started.map(({ position }) => position)).toEqual([1n, 2n, 3n]);
    expect(first.started.map(({ header }) => header.client.id)).toEqual(
      [client, other, client].map(({ identity }) => identity.id),
    );
    expect(first.started.map(({ command }) => command && "batch" in command && command.batch)).toEqual([
      0, 1, 2,
    ]);
    const second = await agent.dequeue(10, [1n]);
    expect(second.started).toHaveLength(1);
    expect(agent.size()).toBe(0);
    expect((await agent.dequeue(10)).started).toEqual([]);
    expect(agent.leftovers().map(({ position }) => position)).toEqual([2n, 3n, 4n]);
    await agent.finish([2n, 3n, 4n]);
    expect(agent.leftovers()).toEqual([]);
  });

  it("is bounded in commands: TB_QUEUE_FULL at once, or at the deadline", async () => {
    await fill(1, 4);
    const command = client.makeCommand(5);
    await expect(client.send(command, { blocking: false })).rejects.toEqual(code("TB_QUEUE_FULL"));
    await expect(client.send(command, { timeoutMs: 20 })).rejects.toMatchObject({
      code: "TB_QUEUE_FULL",
      details: { count: 4, capacity: 4 },
    });
    const abort = new AbortController();
    const waiting = client.send(command, { signal: abort.signal });
    await sleep(5);
    abort.abort();
    await expect(waiting).rejects.toEqual(code("TB_CANCELLED"));
    expect(client.queue.size()).toBe(4);
  });

  it("is bounded in bytes, though one command always fits", async () => {
    const queue = await openCommandQueue({ path: paths.queue, port: client.port, maxBytes: 100 });
    others.push(queue);
    await queue.enqueue(client.makeCommand("large"), client.waker, { blocking: false });
    const second = queue.enqueue(client.makeCommand("too much"), client.waker, { blocking: false });
    await expect(second).rejects.toMatchObject({
      code: "TB_QUEUE_FULL",
      details: { count: 1, maxBytes: 100 },
    });
  });

  it("wakes those who wait for room, who keep their order", async () => {
    await fill(1, 4);
    const done: number[] = [];
    const waiting = [5, 6, 7, 8, 9].map((batch) =>
      client.send(client.makeCommand(batch), { timeoutMs: 10_000 }).then(() => done.push(batch)),
    );
    // Nobody overtakes those who wait, not even without waiting.
    await expect(client.send(client.makeCommand(10), { blocking: false })).rejects.toEqual(
      code("TB_QUEUE_FULL"),
    );
    const agent = await agentSide();
    const seen: unknown[] = [];
    while (seen.length < 9) {
      const { started } = await agent.dequeue(2);
      seen.push(...started.map(({ command }) => command && "batch" in command && command.batch));
      await sleep(1);
    }
    await Promise.all(waiting);
    expect(seen).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(done).toEqual([5, 6, 7, 8, 9]);
  });

  it("wakes a second client too, when it is cleared", async () => {
    const other = await another();
    await fill(1, 4);
    const waiting = Promise.all(
      [client, other].map((each) => each.send(each.makeCommand("x"), { timeoutMs: 10_000 })),
    );
    await sleep(10);
    expect(await client.queue.clear()).toBe(4);
    await waiting;
    expect(client.queue.size()).toBe(2);
    expect(await client.queue.clear()).toBe(2);
    expect(await client.queue.clear()).toBe(0);
    expect(client.queue.peek(9)).toEqual([]);
  });

  it("lets a command that gave up waiting never be queued", async () => {
    await fill(1, 4);
    const givesUp = expect(client.send(client.makeCommand("given up"), { timeoutMs: 10 })).rejects.toEqual(
      code("TB_QUEUE_FULL"),
    );
    const stays = client.send(client.makeCommand("stays"), { timeoutMs: 10_000 });
    await givesUp;
    await client.queue.clear();
    await stays;
    expect(client.queue.peek(9).map((command) => "batch" in command && command.batch)).toEqual(["stays"]);
  });

  it("shows questions to be answered where they stand, as long as nothing else is to be done first", async () => {
    const agent = await agentSide();
    const ask = (batch: number) => client.send(client.makeQuestion(batch));
    const shown = (after = 0n) => agent.questions(10, after).map(({ position }) => position);
    await ask(1);
    // A client has come: that is taken from the queue first.
    expect(shown()).toEqual([]);
    await agent.dequeue(0);
    await ask(2);
    expect(shown()).toEqual([1n, 2n]);
    expect(agent.questions(1, 0n)).toEqual([]);
    // In a queue that is more than half full they are taken off first: their places are wanted.
    await ask(3);
    expect(shown()).toEqual([]);
    await agent.dequeue(1);
    await agent.finish([1n]);
    expect(shown()).toEqual([2n, 3n]);
    expect(agent.size()).toBe(2);
    // What was answered already is not answered again.
    expect(shown(2n)).toEqual([]);
    await agent.finish([2n]);
    expect(shown(2n)).toEqual([3n]);
    await fill(4, 4);
    expect(shown(2n)).toEqual([]);
    const { started } = await agent.dequeue(10, [3n]);
    expect(started.map(({ position }) => position)).toEqual([4n]);
    await agent.finish([4n]);
    expect(agent.size()).toBe(0);
    expect(agent.leftovers()).toEqual([]);
  });

  it("has room again once a question is answered, and says so", async () => {
    const agent = await agentSide();
    await agent.dequeue(0);
    for (let batch = 1; batch <= 4; batch++) await client.send(client.makeQuestion(batch));
    const blocked = client.send(client.makeCommand(5));
    await sleep(20);
    expect(agent.size()).toBe(4);
    await agent.dequeue(0, [1n, 2n, 3n, 4n]);
    await blocked;
    expect(agent.size()).toBe(1);
  });

  it("runs no command whose client has ended", async () => {
    const other = await another();
    await fill(1, 1, other);
    await fill(2, 2);
    expect(client.queue.isClientAlive(other.identity.id)).toBe(true);
    await others.splice(0)[0]!.close();
    expect(client.queue.isClientAlive(other.identity.id)).toBe(false);
    const agent = await agentSide();
    const { started, dropped } = await agent.dequeue(10);
    expect(started.map(({ header }) => header.client.id)).toEqual([client.identity.id]);
    expect(dropped).toEqual([{ position: 1n, error: code("TB_CLIENT_LOST") }]);
  });

  it("runs no command whose deadline has passed, or is of another boot, but has it answered", async () => {
    const make = (deadline: { boot: string; ns: bigint }) => ({ ...client.makeCommand("b"), deadline });
    await client.send(make({ boot: bootId(), ns: monotonicNs() }));
    await client.send(make({ boot: "another", ns: monotonicNs() + 10n ** 12n }));
    const agent = await agentSide();
    const { started, dropped } = await agent.dequeue(10);
    expect(dropped).toEqual([]);
    expect(started.map(({ error, command }) => [error?.code, command])).toEqual([
      ["TB_TIMEOUT", undefined],
      ["TB_TIMEOUT", undefined],
    ]);
  });

  it("survives messages that are malformed: answered where they say whose they are, else dropped", async () => {
    const { root } = client.queue.environment;
    const bad = [
      pack({ ...client.makeCommand("b"), batch: null }),
      Buffer.from([0xc1]),
      pack({ type: "QueryStatus" }),
    ];
    await client.queue.environment.write("forging commands", () => {
      bad.forEach((bytes, i) => {
        root.put(keyOf(2, BigInt(i + 1)), bytes);
      });
      const meta = Buffer.alloc(21);
      meta.writeBigUInt64BE(4n, 0);
      meta.writeUInt32BE(3, 8);
      meta.writeBigUInt64BE(BigInt(Buffer.concat(bad).length), 12);
      root.put(keyOf(1), meta);
    });
    await fill(1, 1);
    const agent = await agentSide();
    const { started, dropped } = await agent.dequeue(10);
    expect(started.map(({ error, command }) => error?.code ?? command?.type)).toEqual([
      "TB_COMMAND",
      "CleanupBatch",
    ]);
    expect(dropped.map(({ error }) => error.code)).toEqual(["TB_COMMAND", "TB_COMMAND"]);
    expect(agent.size()).toBe(0);
  });

  it("keeps what was queued when all who opened it have gone", async () => {
    await fill(1, 2);
    const id = client.identity.id;
    await client.close();
    client = await EchoClient.connect(paths);
    expect(client.queue.size()).toBe(2);
    expect(client.queue.peek(2).map((command) => command.client.id)).toEqual([id, id]);
  });

  it("refuses a malformed command before it is queued", async () => {
    const command = { ...client.makeCommand("b"), id: -1n };
    await expect(client.send(command)).rejects.toEqual(code("TB_COMMAND"));
    expect(client.queue.size()).toBe(0);
  });
});
