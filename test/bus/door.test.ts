/** The agent's socket: who is let in, what is refused and how, and that a client's end is noticed. */
import { mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { Agent } from "../../src/bus/agent/agent.ts";
import { exactIntegers, fitIntegers } from "../../src/bus/door/integers.ts";
import { encodeFrame, FrameReader, readCommand, readHello } from "../../src/bus/door/protocol.ts";
import { pack, unpack } from "../../src/bus/queue/commands.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { memory } from "../../transports/memory/index.ts";
import { AgentWorld } from "./kit/agent-kit.ts";
import { frameOf, type Message, RawClient, rawClient, welcomed } from "./kit/door-kit.ts";

const pair = { pair: "weights", local: "trainer", remote: "engine", worldSize: 1 };

describe("the agent's socket", () => {
  it("belongs to the agent's user alone, and goes with the agent", async () => {
    const world = await AgentWorld.start(1);
    const { commandQueuePath } = world.paths(0);
    for (const name of ["client.sock", "client.fds"]) {
      expect(statSync(join(commandQueuePath, name)).mode & 0o777).toBe(0o600);
    }
    await world[Symbol.asyncDispose]();
    expect(() => statSync(join(commandQueuePath, "client.sock"))).toThrow("ENOENT");
  });

  it("welcomes a client, and answers its commands", async () => {
    await using world = await AgentWorld.start(1);
    const client = rawClient(world.paths(0).commandQueuePath);
    expect(await client.hello()).toMatchObject({ type: "welcome", protocol: 1, rank: 0, pid: process.pid });
    expect(await client.ask("QueryStatus", { batch: "none" })).toMatchObject({
      type: "answer",
      id: 1,
      ok: false,
      error: { code: "TB_BATCH_UNKNOWN", details: { batch: "none", rank: 0 } },
    });
    expect(await client.ask("Cancel", { command: 7 })).toMatchObject({ ok: true, value: { found: false } });
  });

  it("takes an integer for its value, whatever its width", async () => {
    await using world = await AgentWorld.start(1);
    const client = await welcomed(world.paths(0).commandQueuePath);
    client.send({ type: "CleanupBatch", id: 5n, timeoutMs: 1000n, body: { batch: 2n ** 40n, instance: 7 } });
    expect(await client.next()).toMatchObject({ id: 5, ok: true, value: { freed: false } });
    client.send({ type: "InitPair", id: 6, timeoutMs: 50, body: { ...pair, worldSize: 2n } });
    expect(await client.next()).toMatchObject({ id: 6, ok: false, error: { code: "TB_TIMEOUT" } });
  });

  it("refuses a version that it does not speak, and says which it does", async () => {
    await using world = await AgentWorld.start(1);
    const client = rawClient(world.paths(0).commandQueuePath);
    expect(await client.hello({ protocol: [2, 3] })).toMatchObject({
      type: "refused",
      error: { code: "TB_VERSION", details: { client: [2, 3], agent: [1, 1] } },
    });
    await client.closed;
  });

  it.each([
    ["what is no MessagePack", Buffer.from([4, 0, 0, 0, 0xc1, 0xc1, 0xc1, 0xc1])],
    ["a frame that is no map", frameOf([1, 2, 3])],
    ["another first frame", frameOf({ type: "QueryStatus", id: 1, timeoutMs: 1, body: { batch: 1 } })],
    ["a first frame of many bytes", Buffer.from([0, 0, 0, 4])],
  ])("refuses %s, and serves others on", async (_, bytes) => {
    await using world = await AgentWorld.start(1);
    const { commandQueuePath } = world.paths(0);
    const client = rawClient(commandQueuePath);
    client.socket.write(bytes);
    expect(await client.next()).toMatchObject({ type: "refused", error: { code: "TB_COMMAND" } });
    await client.closed;
    await welcomed(commandQueuePath);
  });

  it("answers what is no command under its number", async () => {
    await using world = await AgentWorld.start(1);
    const client = await welcomed(world.paths(0).commandQueuePath);
    const wrong = [
      { type: "Nonsense", body: {} },
      { type: "InitPair", body: {} },
      { type: "InitPair", body: { ...pair, surprise: 1 } },
      { type: "RegisterTensors", body: { batch: "b", regions: [], tensors: {} } },
    ];
    for (const { type, body } of wrong) {
      expect(await client.ask(type, body)).toMatchObject({ ok: false, error: { code: "TB_COMMAND" } });
    }
    expect(await client.ask("QueryStatus", { batch: 1 }, { id: -1 })).toMatchObject({ ok: false });
  });

  it("has no memory of its own process for a client, and none that was not handed over", async () => {
    await using world = await AgentWorld.start(1);
    const client = await welcomed(world.paths(0).commandQueuePath);
    const column = (bytes: number) => Buffer.alloc(bytes);
    const tensors = {
      count: 1,
      pairs: ["weights"],
      names: [],
      pair: column(2),
      dtype: column(1),
      dims: column(1),
      layout: column(0),
      region: column(4),
      offset: column(8),
      shape: column(0),
      strides: column(0),
      globalShapes: [],
    };
    const register = (region: unknown, more = {}) =>
      client.ask("RegisterTensors", { batch: "b", regions: [region], tensors }, more);
    const shared = { kind: "shared", fd: 0, device: 1, inode: 2, bytes: 3 };
    expect(await register({ kind: "host", key: 1, bytes: 8 })).toMatchObject({
      error: { code: "TB_UNSUPPORTED" },
    });
    expect(await register(shared)).toMatchObject({ error: { code: "TB_TENSOR_MISSING" } });
    expect(await register(shared, { handOvers: [1, 1] })).toMatchObject({
      error: { code: "TB_TENSOR_MISSING" },
    });
    expect(await client.ask("Lend")).toMatchObject({ error: { code: "TB_PROTOCOL" } });
  });

  it("ends a client with its connection, and what it waited for", async () => {
    await using world = await AgentWorld.start(1);
    const { commandQueuePath } = world.paths(0);
    const client = await welcomed(commandQueuePath);
    client.send({ type: "InitPair", id: 1, timeoutMs: 60_000, body: pair });
    const second = await welcomed(commandQueuePath);
    for (;;) {
      const { error } = await second.ask("InitPair", pair, { timeoutMs: 1000 });
      if (error.code === "TB_EXISTS") break;
    }
    client.socket.destroy();
    for (;;) {
      if (world.events[0]!.some(({ kind }) => kind === "clientEnded")) break;
      await second.ask("QueryStatus", { batch: 0 });
    }
    const again = second.ask("InitPair", pair, { timeoutMs: 50 });
    expect(await again).toMatchObject({ error: { code: "TB_TIMEOUT" } });
  });

  it("says that it drains, and ends its connections when it has", async () => {
    await using world = await AgentWorld.start(1);
    const client = await welcomed(world.paths(0).commandQueuePath);
    const closing = world.agents[0]!.close();
    expect(await client.next()).toEqual({ type: "draining" });
    await closing;
    expect(await client.next()).toBeUndefined();
  });

  it("stands behind a path that is too long for a socket, and is refused to a second agent", async () => {
    await using world = new AgentWorld();
    const folder = join(world.folder, "x".repeat(120));
    mkdirSync(folder, { mode: 0o700 });
    const clientSocketPath = join(folder, "client.sock");
    await world.startAgent(0, { clientSocketPath });
    const other = Agent.start({
      rank: 1,
      ...world.paths(1),
      store: memoryStores()(),
      transport: memory(),
      clientSocketPath,
    });
    await expect(other).rejects.toMatchObject({ code: "TB_EXISTS" });
    expect(statSync(clientSocketPath).isSocket()).toBe(true);
  });

  it("does not wait for a hello that never ends, and serves others meanwhile", async () => {
    await using world = await AgentWorld.start(1);
    const { commandQueuePath } = world.paths(0);
    const slow = rawClient(commandQueuePath);
    slow.socket.write(frameOf({ type: "hello", protocol: [1, 1] }).subarray(0, 6));
    await welcomed(commandQueuePath);
    expect(await slow.next()).toMatchObject({ type: "refused", error: { code: "TB_TIMEOUT" } });
    await slow.closed;
  }, 15_000);

  it("serves a thousand clients, one after another", async () => {
    await using world = await AgentWorld.start(1);
    const path = join(world.paths(0).commandQueuePath, "client.sock");
    for (let i = 0; i < 1000; i++) {
      const client = new RawClient(path);
      expect((await client.hello())["type"]).toBe("welcome");
      client.socket.destroy();
    }
  });
});

describe("frames", () => {
  const golden = JSON.parse(
    readFileSync(join(import.meta.dirname, "../golden/client-protocol.json"), "utf8"),
  ) as {
    exchanges: { name: string; frames: { from: "client" | "agent"; hex: string; message: Message }[] }[];
  };

  it.each(
    golden.exchanges.map(({ name, frames }) => [name, frames] as const),
  )("are read as recorded: %s", (_, frames) => {
    for (const { from, hex, message } of frames) {
      const bytes = Buffer.from(hex, "hex");
      const [body] = [...new FrameReader().push(bytes, () => bytes.length)];
      expect(plain(unpack(body!))).toEqual(message);
      if (from === "agent") {
        const { error, ...rest } = unpack(body!) as { type: "welcome"; error?: object };
        const frame = error === undefined ? rest : { ...rest, error };
        expect(encodeFrame(frame as never).toString("hex")).toBe(hex);
      } else if (message["type"] === "hello") {
        const version = message["protocol"][0] === 1 ? 1 : "TB_VERSION";
        expect(versionOf(body!)).toBe(version);
      } else {
        expect(readCommand(body!)).toMatchObject({ type: message["type"], id: message["id"] });
      }
    }
  });

  it("are cut the same however they come", () => {
    const all = Buffer.concat(
      golden.exchanges.flatMap(({ frames }) => frames.map(({ hex }) => Buffer.from(hex, "hex"))),
    );
    const whole = [...new FrameReader().push(all, () => 1e6)].map((body) => body.toString("hex"));
    for (const step of [1, 3, 64]) {
      const reader = new FrameReader();
      const cut: string[] = [];
      for (let at = 0; at < all.length; at += step) {
        for (const body of reader.push(all.subarray(at, at + step), () => 1e6))
          cut.push(body.toString("hex"));
      }
      expect(cut).toEqual(whole);
      expect(reader.unfinishedBytes).toBe(0);
    }
  });

  it("are held in few pieces, however small those are in which they come", () => {
    const body = Buffer.from(Array.from({ length: 200_000 }, (_, index) => index % 251));
    const all = Buffer.concat([Buffer.alloc(4), body]);
    all.writeUInt32LE(body.length, 0);
    for (const steps of [[1], [7, 1, 1], [1000, 1], [65_536], [3000, 2000, 1000]]) {
      const reader = new FrameReader();
      let [at, most, step] = [0, 0, 0];
      let frame: Buffer | undefined;
      while (at < all.length) {
        const end = at + steps[step++ % steps.length]!;
        for (const whole of reader.push(all.subarray(at, end), () => 1e6)) frame = Buffer.from(whole);
        at = end;
        most = Math.max(most, reader.pieces);
      }
      expect(frame?.equals(body)).toBe(true);
      // An object for each byte would take hundreds of times what is counted.
      expect(most).toBeLessThan(32);
    }
  });
});

describe("integers", () => {
  const schema = z.strictObject({
    count: z.int(),
    id: z.bigint().optional(),
    any: z.union([z.string(), z.int(), z.bigint()]),
    list: z.array(
      z.discriminatedUnion("kind", [z.strictObject({ kind: z.literal("a"), value: z.bigint() })]),
    ),
    pairs: z.array(z.tuple([z.int(), z.string()])),
  });

  it("become what the schema asks for", () => {
    const given = { count: 3n, id: 7, any: 9n, list: [{ kind: "a", value: 5 }], pairs: [[1n, "x"]] };
    const fitted = fitIntegers(schema, given);
    expect(fitted).toEqual({ count: 3, id: 7n, any: 9, list: [{ kind: "a", value: 5n }], pairs: [[1, "x"]] });
    expect(schema.safeParse(fitted).success).toBe(true);
    expect(fitIntegers(schema, { any: 2n ** 63n })).toEqual({ any: 2n ** 63n });
  });

  it("that do not fit are left for the schema to refuse", () => {
    for (const value of [null, 5, "x", { count: "3" }, { list: [{ kind: "b" }] }, { id: 1.5 }]) {
      expect(schema.safeParse(fitIntegers(schema, value)).success).toBe(false);
    }
  });

  it("are never written as floats", () => {
    const bytes = pack(exactIntegers({ a: 2 ** 40, b: -(2 ** 33), c: [2 ** 31], d: 0.5 }));
    expect(unpack(bytes)).toEqual({ a: 2n ** 40n, b: -(2n ** 33n), c: [2n ** 31n], d: 0.5 });
  });
});

function versionOf(hello: Buffer): unknown {
  try {
    return readHello(hello).protocol;
  } catch (error) {
    return (error as { code: string }).code;
  }
}

/** A message as JSON has it. */
function plain(value: unknown): unknown {
  if (typeof value === "bigint") return Number(value);
  if (value instanceof Uint8Array) return { bytes: Buffer.from(value).toString("hex") };
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, plain(member)]));
}
