import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import type { BatchHandler } from "../../src/bus/client/batch-handler.ts";
import type { TensorBusClient } from "../../src/bus/client/client.ts";
import type { ClientTensor } from "../../src/bus/client/memory.ts";
import { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { DeviceMesh } from "../../src/layout/index.ts";
import { type BusWorld, connectTo, startWorld } from "./kit/bus-world.ts";

const code = (expected: string) => expect.objectContaining({ code: expected });

const worlds: BusWorld[] = [];
afterEach(async () => {
  for (const world of worlds.splice(0)) await world.close();
});

async function open(ranks: number, options = {}): Promise<BusWorld> {
  const world = await startWorld(ranks, options);
  worlds.push(world);
  return world;
}

interface Side {
  readonly name: string;
  readonly ranks: readonly number[];
  readonly placements?: readonly string[];
}

/** Every rank's client registers its side of a pair. */
function initPair(world: BusWorld, pairName: string, sides: readonly [Side, Side]): Promise<unknown> {
  const calls = sides.flatMap(({ name, ranks, placements }, index) =>
    ranks.map((rank) =>
      world.clients[rank]!.initPair({
        pairName,
        localName: name,
        remoteName: sides[1 - index]!.name,
        expectedWorldSize: ranks.length,
        ...(placements === undefined
          ? {}
          : { deviceMesh: new DeviceMesh([ranks.length], { ranks }), placements }),
      }),
    ),
  );
  return Promise.all(calls);
}

type Tensors = readonly (readonly [ClientTensor, string])[];

function register(
  clients: readonly TensorBusClient[],
  batch: string,
  tensors: (rank: number) => Tensors,
  options = {},
): Promise<BatchHandler[]> {
  return Promise.all(
    clients.map((client) => client.registerTensors(batch, tensors(client.agentRank), options)),
  );
}

async function round(handlers: readonly BatchHandler[], sources: readonly number[]) {
  const semaphores = await Promise.all(
    handlers.map((handler, rank) => handler.transfer(sources.includes(rank) ? "send" : "recv")),
  );
  return Promise.all(semaphores.map((semaphore) => semaphore.wait()));
}

const trainer = { name: "trainer", ranks: [0, 1] };
const engine = { name: "engine", ranks: [2, 3] };

describe("clients and agents", () => {
  it("move uneven shards to another layout, several rounds, both ways", async () => {
    const world = await open(4);
    await initPair(world, "w", [
      { ...trainer, placements: ["S(0)"] },
      { ...engine, placements: ["S(1)"] },
    ]);
    const [rows, columns] = [5, 7];
    const shapes = [
      [3, columns],
      [2, columns],
      [rows, 4],
      [rows, 3],
    ];
    const locals = shapes.map((shape) => SharedTensor.allocate(shape, "float32"));
    const handlers = await register(world.clients, "b", (rank) => [[locals[rank]!, "w"]]);
    const value = (round: number, i: number, j: number) => round * 1000 + i * columns + j;
    /** Sets the locals of a side, or gives the values that they have. */
    const visit = (
      side: "rows" | "columns",
      each: (local: SharedTensor<"float32">, at: number, i: number, j: number) => void,
    ) => {
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          if (side === "rows") each(locals[i < 3 ? 0 : 1]!, (i % 3) * columns + j, i, j);
          else each(locals[j < 4 ? 2 : 3]!, i * (j < 4 ? 4 : 3) + (j % 4), i, j);
        }
      }
    };
    for (let number = 1; number <= 3; number++) {
      const [from, to] = number === 2 ? (["columns", "rows"] as const) : (["rows", "columns"] as const);
      visit(from, (local, at, i, j) => {
        local.data[at] = value(number, i, j);
      });
      const results = await round(handlers, number === 2 ? [2, 3] : [0, 1]);
      visit(to, (local, at, i, j) => expect(local.data[at]).toBe(value(number, i, j)));
      const bytes = results.map(({ bytesReceived }) => Number(bytesReceived));
      expect(bytes.reduce((sum, each) => sum + each)).toBeGreaterThanOrEqual(rows * columns * 4);
    }
    await Promise.all(handlers.map((handler) => handler.close()));
    await expect(handlers[0]!.transfer("send")).rejects.toEqual(code("TB_CLOSED"));
    await expect(world.clients[0]!.transfer("b", "send", { blocking: true })).rejects.toEqual(
      code("TB_BATCH_UNKNOWN"),
    );
  });

  it("move strided views, plain arrays and bit patterns, of several pairs at once", async () => {
    const world = await open(2);
    const sides = [
      { name: "a", ranks: [0] },
      { name: "b", ranks: [1] },
    ] as const;
    await initPair(world, "whole", sides);
    await initPair(world, "sharded", [
      { ...sides[0], placements: ["S(0)"] },
      { ...sides[1], placements: ["R"] },
    ]);
    const source = SharedTensor.allocate([4, 6], "float32");
    const target = SharedTensor.allocate([6, 4], "float32");
    const plain = [Float64Array.of(1, 2, 3, 4), new Float64Array(4)];
    const bits = [SharedTensor.allocate([8], "float32"), SharedTensor.allocate([8], "bfloat16")];
    source.data.forEach((_, i) => {
      source.data[i] = i;
    });
    bits[0]!.fromFloat32([1, 1.001, -2, 3, 4, 5, 6, 1 / 3]);
    const handlers = await register(world.clients, "b", (rank) => [
      [rank === 0 ? source.transpose(0, 1).slice(0, 1, 4) : target.slice(0, 1, 4), "whole"],
      [plain[rank]!, "whole"],
      [{ data: bits[rank]!, name: "cast" }, "sharded"],
    ]);
    await round(handlers, [0]);
    expect([...target.toFloat32()]).toEqual([
      ...[0, 0, 0, 0],
      ...[1, 7, 13, 19],
      ...[2, 8, 14, 20],
      ...[3, 9, 15, 21],
      ...[0, 0, 0, 0, 0, 0, 0, 0],
    ]);
    expect([...plain[1]!]).toEqual([1, 2, 3, 4]);
    expect([...bits[1]!.toFloat32()]).toEqual([1, 1, -2, 3, 4, 5, 6, 0.333984375]);
    // Memory that a batch holds cannot be detached.
    structuredClone(plain[0]!.buffer, { transfer: [] });
    const { transfer } = plain[0]!.buffer as unknown as { transfer: () => void };
    expect(() => transfer.call(plain[0]!.buffer)).toThrow(TypeError);
  });

  it("show the signal once the senders are ready, until the round was taken", async () => {
    const world = await open(2);
    await initPair(world, "w", [
      { name: "a", ranks: [0] },
      { name: "b", ranks: [1] },
    ]);
    const locals = [SharedTensor.allocate([3], "int64"), SharedTensor.allocate([3], "int64")];
    const handlers = await register(world.clients, "b", (rank) => [[locals[rank]!, "w"]]);
    expect(await handlers[1]!.queryTransferSignal()).toBe(false);
    locals[0]!.data.set([1n, 2n ** 60n + 1n, -1n]);
    const sent = await handlers[0]!.transfer("send");
    while (!(await handlers[1]!.queryTransferSignal())) await sleep(2);
    await handlers[1]!.transfer("recv", { blocking: true });
    await sent.wait();
    expect([...locals[1]!.data]).toEqual([1n, 2n ** 60n + 1n, -1n]);
    while (await handlers[1]!.queryTransferSignal()) await sleep(2);
  });

  it("end a transfer that is aborted on all ranks, and go on", async () => {
    const world = await open(2);
    await initPair(world, "w", [
      { name: "a", ranks: [0] },
      { name: "b", ranks: [1] },
    ]);
    const locals = [SharedTensor.allocate([3], "float32"), SharedTensor.allocate([3], "float32")];
    const handlers = await register(world.clients, "b", (rank) => [[locals[rank]!, "w"]]);
    const controller = new AbortController();
    const sent = await handlers[0]!.transfer("send", { signal: controller.signal });
    controller.abort(new Error("no longer wanted"));
    await expect(sent.wait()).rejects.toEqual(code("TB_CANCELLED"));
    const late = await handlers[0]!.transfer("send", { timeoutMs: 50 });
    await expect(late.wait()).rejects.toEqual(code("TB_TIMEOUT"));
    locals[0]!.data.set([1, 2, 3]);
    const good = await handlers[0]!.transfer("send");
    // The other side had taken part in none of these rounds: it is told of their end, and then meets this one.
    const failures: unknown[] = [];
    for (let done = false; !done; ) {
      const got = await handlers[1]!.transfer("recv");
      await got.wait().then(
        () => {
          done = true;
        },
        (error) => failures.push(error),
      );
    }
    await good.wait();
    expect(failures.length).toBeLessThanOrEqual(2);
    for (const failure of failures) expect(failure).toMatchObject({ details: { rank: 0 } });
    expect([...locals[1]!.data]).toEqual([1, 2, 3]);
  });

  it("report what does not fit, and go on", async () => {
    const world = await open(2);
    const [first, second] = world.clients as [TensorBusClient, TensorBusClient];
    await initPair(world, "w", [
      { name: "a", ranks: [0] },
      { name: "b", ranks: [1] },
    ]);
    const make = () => SharedTensor.allocate([3], "float32");
    await expect(first.registerTensors("b", [[make(), "unknown"]], { timeoutMs: 500 })).rejects.toEqual(
      code("TB_PAIR_UNKNOWN"),
    );
    await expect(first.registerTensors("b", [[make(), "w"]], { timeoutMs: 200 })).rejects.toEqual(
      code("TB_TIMEOUT"),
    );
    await expect(
      register([first, second], "b", (rank) => [[SharedTensor.allocate([3 + rank], "float32"), "w"]], {
        timeoutMs: 2000,
      }),
    ).rejects.toEqual(code("TB_SHAPE"));
    await expect(first.transfer("b", "send", { blocking: true })).rejects.toEqual(code("TB_BATCH_UNKNOWN"));
    await expect(first.registerTensors("c", [[make(), "w"]], { timeoutMs: 1 })).rejects.toMatchObject({
      name: "TensorBusError",
    });
    const handlers = await register([first, second], "d", () => [[make(), "w"]]);
    await expect(first.registerTensors("d", [[make(), "w"]])).rejects.toEqual(code("TB_EXISTS"));
    await round(handlers, [0]);
  });

  it("register and move 70,000 small tensors in one batch", async () => {
    const world = await open(2);
    await initPair(world, "w", [
      { name: "a", ranks: [0] },
      { name: "b", ranks: [1] },
    ]);
    const locals = world.clients.map(() =>
      Array.from({ length: 70_000 }, () => SharedTensor.allocate([4], "float32")),
    );
    const handlers = await register(
      world.clients,
      "b",
      (rank) => locals[rank]!.map((tensor) => [tensor, "w"] as const),
      { timeoutMs: 60_000 },
    );
    locals[0]!.forEach((tensor, i) => {
      tensor.data.fill(i);
    });
    await round(handlers, [0]);
    expect(locals[1]!.every((tensor, i) => tensor.data[3] === i)).toBe(true);
  }, 90_000);

  it("free what a client held that closes in the middle of a round", async () => {
    const world = await open(2);
    const other = await connectTo(world.folder, 0);
    const sides = [
      { name: "a", ranks: [0] },
      { name: "b", ranks: [1] },
    ] as const;
    await initPair({ ...world, clients: [other, world.clients[1]!] }, "w", sides);
    const tensor = SharedTensor.allocate([3], "float32");
    const target = SharedTensor.allocate([3], "float32");
    const [, receiver] = await Promise.all([
      other.registerTensors("b", [[tensor, "w"]]),
      world.clients[1]!.registerTensors("b", [[target, "w"]]),
    ]);
    const sent = await other.transfer("b", "send");
    await other.close();
    await expect(sent.wait()).rejects.toEqual(code("TB_CLOSED"));
    await expect(receiver.transfer("recv", { blocking: true, timeoutMs: 5000 })).rejects.toMatchObject({
      name: "TensorBusError",
    });
    await receiver.close();
    // The pair waits for this side to come again; the batch is registered anew.
    await initPair({ ...world, clients: [world.clients[0]!] }, "w", [sides[0], { ...sides[1], ranks: [] }]);
    const handlers = await register(world.clients, "b", (rank) => [[rank === 0 ? tensor : target, "w"]]);
    tensor.data.fill(4);
    await round(handlers, [0]);
    expect([...target.data]).toEqual([4, 4, 4]);
  });
});
