/** What the compliance suite does not ask of a TCPStore: limits, broken peers, ends. */
import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import {
  serveTcpStore,
  type TcpStoreServer,
  type TcpStoreServerOptions,
} from "../../src/store/tcp-server.ts";
import { type TcpStoreOptions, tcpStore } from "../../src/store/tcp-store.ts";
import { converse, counted, dial, gone, list, number, ping, request } from "./kit/wire.ts";

const host = "127.0.0.1";
const one = Buffer.from("1");
const cleanUps: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function serve(options?: TcpStoreServerOptions): Promise<TcpStoreServer> {
  const server = await serveTcpStore(options);
  cleanUps.push(() => server.close());
  return server;
}

async function connect(server: { port: number }, options: Partial<TcpStoreOptions> = {}) {
  const store = await tcpStore({ host, port: server.port, ...options });
  cleanUps.push(() => store.close());
  return store;
}

/** Something that listens and is no store of ours. */
async function impostor(
  talk: (socket: Socket, chunk: Buffer) => void,
): Promise<{ port: number; server: Server }> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.on("error", () => {}).on("data", (chunk) => talk(socket, chunk)));
  });
  await once(server.listen(0, host), "listening");
  cleanUps.push(async () => {
    for (const socket of sockets) socket.destroy();
    await once(server.close(), "close");
  });
  return { port: (server.address() as { port: number }).port, server };
}

/** Answers the PING that a client begins with. */
const hello = (chunk: Buffer) => chunk.subarray(-4);

describe("the server", () => {
  it("listens on loopback unless told otherwise, and says when a port is taken", async () => {
    const server = await serve();
    expect(server.host).toBe(host);
    await expect(serveTcpStore({ port: server.port })).rejects.toMatchObject({ code: "TB_ADDRESS_IN_USE" });
    await expect(serveTcpStore({ host: "192.0.2.1" })).rejects.toMatchObject({ code: "TB_SYSTEM" });
  });

  it("closes connections that are no client's, and goes on", async () => {
    const server = await serve({ validateTimeoutMs: 50 });
    for (const garbage of ["GET / HTTP/1.1\r\n\r\n", "\0\0\0\0\0", "\x01".repeat(100), ""]) {
      const socket = await dial(server.port, Buffer.from(garbage, "latin1"));
      await gone(socket);
    }
    const store = await connect(server);
    await store.set("key", one);
    await expect.poll(() => server.stats.connections).toBe(1);
  });

  it("outlives two hundred clients that talk nonsense", async () => {
    const server = await serve();
    const store = await connect(server);
    let state = 1;
    const below = (limit: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * limit);
    };
    // Opcodes and lengths are likely, so that most of it gets past the first byte.
    const byte = () => (below(3) === 0 ? below(256) : below(4) === 0 ? below(19) : 0);
    for (let round = 0; round < 200; round += 1) {
      const socket = await dial(server.port);
      socket.write(Uint8Array.from({ length: 1 + below(400) }, byte));
      socket.end();
      await gone(socket);
    }
    await store.set("key", one);
    expect(await store.get("key")).toEqual(one);
    await expect.poll(() => server.stats).toMatchObject({ connections: 1, awaitedKeys: 0 });
  });

  it("forgets who waits with the connection", async () => {
    const server = await serve();
    const socket = await dial(server.port);
    socket.write(request("wait", list(["/a", "/b"])));
    await expect.poll(() => server.stats.awaitedKeys).toBe(2);
    expect(server.stats.memoryBytes).toBeGreaterThan(0);
    socket.destroy();
    await expect.poll(() => server.stats).toMatchObject({ awaitedKeys: 0, memoryBytes: 0, connections: 0 });
  });

  it("does not let one connection wait twice at once", async () => {
    const server = await serve();
    const waits = [request("wait", list(["/a"])), request("wait", list(["/b"]))];
    expect(await converse(server.port, ...waits)).toBeUndefined();
    await expect.poll(() => server.stats.awaitedKeys).toBe(0);
  });

  it("holds no more than it may: in values, in requests, in one request", async () => {
    const server = await serve({ maxMemoryBytes: 2 ** 20, maxRequestBytes: 2 ** 18 });
    const set = (key: string, bytes: number) => request("set", counted(key), counted(Buffer.alloc(bytes, 1)));
    for (const key of ["/1", "/2", "/3", "/4"])
      expect(await converse(server.port, set(key, 200_000))).toBeDefined();
    // Replacing takes nothing more, and deleting gives back.
    expect(await converse(server.port, set("/4", 200_000))).toBeDefined();
    expect(await converse(server.port, set("/5", 250_000))).toBeUndefined();
    expect(
      await converse(server.port, request("deleteKey", counted("/1")), set("/5", 200_000)),
    ).toBeDefined();
    expect(await converse(server.port, set("/6", 400_000))).toBeUndefined();
    const many = Array.from({ length: 30 }, (_, index) => [
      counted(`/m${index}`),
      counted(Buffer.alloc(10_000)),
    ]);
    expect(await converse(server.port, request("multiSet", number(30), ...many.flat()))).toBeUndefined();
    expect(
      await converse(server.port, request("queuePush", counted("/q"), counted(Buffer.alloc(250_000)))),
    ).toBeUndefined();
    const half = set("/half", 200_000).subarray(0, 150_000);
    const held = await Promise.all([dial(server.port), dial(server.port)]);
    held[0]!.write(half);
    await expect.poll(() => server.stats.memoryBytes).toBeGreaterThan(900_000);
    held[1]!.write(half);
    await gone(held[1]!);
    held[0]!.destroy();
    expect(await (await connect(server, { namespace: "" })).get("2")).toHaveLength(200_000);
  });

  it("turns away one connection too many", async () => {
    const server = await serve({ maxConnections: 2 });
    const sockets = [await dial(server.port), await dial(server.port), await dial(server.port)];
    await gone(sockets[2]!);
    for (const socket of sockets) socket.destroy();
  });

  it("answers no faster than it is read, and serves others meanwhile", async () => {
    const server = await serve();
    const value = Buffer.alloc(2 ** 20, 7);
    const store = await connect(server, { namespace: "" });
    await store.set("big", value);
    const slow = await dial(server.port);
    const gets = 64;
    slow.write(Buffer.concat(Array(gets).fill(request("get", counted("/big")))));
    slow.write(Buffer.concat([request("multiGet", list(Array(gets).fill("/big"))), ping(9)]));
    for (let round = 0; round < 50; round += 1) expect(await store.add("round", 1n)).toBe(BigInt(round + 1));
    // What has not been read stands in no buffer of the server's: its values are sent from where they are.
    expect(server.stats.memoryBytes).toBeLessThan(3 * 2 ** 20);
    let heard = 0;
    for await (const chunk of slow) {
      heard += (chunk as Buffer).length;
      if (heard >= 2 * gets * (value.length + 8) + 4) break;
    }
    expect(heard).toBe(2 * gets * (value.length + 8) + 4);
  });

  it("wakes one taker for each queued value, and all who wait for a key", async () => {
    const server = await serve();
    const [first, second] = [await dial(server.port), await dial(server.port)];
    const heard = { first: 0, second: 0 };
    first.on("data", (chunk: Buffer) => (heard.first += chunk.length));
    second.on("data", (chunk: Buffer) => (heard.second += chunk.length));
    first.write(request("wait", list(["/q"])));
    await expect.poll(() => server.stats.awaitedKeys).toBe(1);
    second.write(request("wait", list(["/q", "/other"])));
    await expect.poll(() => server.stats.awaitedKeys).toBe(2);
    await converse(server.port, request("queuePush", counted("/q"), counted("1")));
    await expect.poll(() => heard).toEqual({ first: 1, second: 0 });
    await converse(
      server.port,
      request("queuePush", counted("/q"), counted("2")),
      request("set", counted("/other"), counted("3")),
    );
    await expect.poll(() => heard).toEqual({ first: 1, second: 1 });
    first.destroy();
    second.destroy();
  });

  it("serves many clients, each of which waits", async () => {
    const server = await serve();
    const stores = await Promise.all(Array.from({ length: 200 }, () => connect(server)));
    const waits = stores.map((store) => store.wait(["go"]));
    await expect.poll(() => server.stats.connections).toBe(400);
    await stores[0]!.set("go", one);
    await Promise.all(waits);
  });

  it("ends with everybody's connection", async () => {
    const server = await serve();
    const store = await connect(server);
    const waits = [store.wait(["never"]), store.wait(["never", "ever"])].map((wait) =>
      expect(wait).rejects.toMatchObject({ code: "TB_STORE_LOST" }),
    );
    await expect.poll(() => server.stats.awaitedKeys).toBe(2);
    const unread = await dial(server.port);
    await Promise.all([server.close(), server.close()]);
    await Promise.all(waits);
    unread.destroy();
    await expect(dial(server.port)).rejects.toThrow("ECONNREFUSED");
  });
});

describe("the client", () => {
  it("may start before the server", async () => {
    const server = await serve();
    const { port } = server;
    await server.close();
    const connecting = tcpStore({ host, port });
    await new Promise((resolve) => setTimeout(resolve, 60));
    await serve({ port });
    const store = await connecting;
    await store.set("key", one);
    await store.close();
  });

  it("gives up at its deadline, by its signal, and on what is no store", async () => {
    const server = await serve();
    const { port } = server;
    await server.close();
    await expect(tcpStore({ host, port, timeoutMs: 50 })).rejects.toMatchObject({
      code: "TB_CONNECT",
      details: { host, port },
    });
    await expect(tcpStore({ host: "no..name", port, timeoutMs: 50 })).rejects.toMatchObject({
      code: "TB_CONNECT",
      message: expect.stringMatching(/no\.\.name:\d+: .*ENOTFOUND/),
    });
    const signal = AbortSignal.timeout(20);
    await expect(tcpStore({ host, port, signal })).rejects.toMatchObject({ code: "TB_CANCELLED" });
    const mute = await impostor(() => {});
    await expect(tcpStore({ host, port: mute.port, timeoutMs: 50 })).rejects.toMatchObject({
      code: "TB_CONNECT",
    });
    const web = await impostor((socket) => socket.write("HTTP/1.1 400 Bad Request\r\n\r\n"));
    await expect(tcpStore({ host, port: web.port })).rejects.toMatchObject({ code: "TB_STORE_PROTOCOL" });
    await expect(tcpStore({ host, port, namespace: "a/b" })).rejects.toMatchObject({
      code: "TB_STORE_OPTIONS",
    });
  });

  it("is lost with its server, for every call under way and later, for good", async () => {
    const server = await serve();
    const store = await connect(server);
    const lost = { code: "TB_STORE_LOST" };
    const waiting = expect(store.wait(["never"])).rejects.toMatchObject(lost);
    await store.set("key", one);
    const { port } = server;
    await server.close();
    await waiting;
    await serve({ port });
    for (const call of [
      store.get("key"),
      store.set("key", one),
      store.add("count", 1n),
      store.wait(["key"]),
      store.delete("key"),
      store.compareAndSet("key", undefined, one),
    ]) {
      await expect(call).rejects.toMatchObject(lost);
    }
    await store.close();
    await expect(store.get("key")).rejects.toMatchObject({ code: "TB_CLOSED" });
  });

  it.each([
    ["a call", (store: Awaited<ReturnType<typeof tcpStore>>) => store.get("key")],
    ["a parked wait", (store: Awaited<ReturnType<typeof tcpStore>>) => store.wait(["key"])],
  ])("notices in %s that a server has gone silent", async (_, call) => {
    // It greets, says that the key is not there, lets the wait park, and then never speaks again.
    const { port } = await impostor((socket, chunk) => {
      if (chunk[0] === 0) socket.write(hello(chunk));
      else if (chunk[0] === 5) socket.write(Buffer.of(1));
    });
    const store = await connect({ port }, { silenceMs: 60 });
    await expect(call(store)).rejects.toMatchObject({ code: "TB_STORE_LOST" });
  });

  it("is lost with a server that breaks the protocol, and says so", async () => {
    const { port } = await impostor((socket, chunk) => {
      if (chunk[0] === 0) socket.write(hello(chunk));
      else socket.write(Buffer.alloc(16, 0xff));
    });
    const store = await connect({ port });
    await expect(store.get("key")).rejects.toMatchObject({ code: "TB_STORE_PROTOCOL" });
    await expect(store.get("key")).rejects.toMatchObject({ code: "TB_STORE_PROTOCOL" });
  });

  it("understands a cancelled wait whose keys came at the last moment", async () => {
    const steps: string[] = [];
    const { port } = await impostor((socket, chunk) => {
      if (chunk[0] === 0) socket.write(hello(chunk));
      else if (chunk[0] === 5) socket.write(Buffer.of(1));
      // The keys came before the cancellation did: both are answered.
      else if (chunk[0] === 12) socket.write(Buffer.of(0, 1), () => steps.push("cancelled"));
      else if (steps.push("parked") > 1) socket.write(Buffer.of(0));
    });
    const store = await connect({ port });
    const abort = new AbortController();
    const wait = store.wait(["key"], { signal: abort.signal });
    await expect.poll(() => steps).toEqual(["parked"]);
    abort.abort();
    await expect(wait).rejects.toMatchObject({ code: "TB_CANCELLED" });
    await expect.poll(() => steps).toEqual(["parked", "cancelled"]);
    await store.wait(["key"]);
    expect(steps).toEqual(["parked", "cancelled", "parked"]);
  });

  it("splits lists that a server would not take", async () => {
    const server = await serve();
    const store = await connect(server, { namespace: "" });
    const keys = Array.from({ length: 131_074 }, (_, index) => `k${index}`);
    for (let from = 0; from < keys.length; from += 65_537) {
      const part = keys.slice(from, from + 65_537).flatMap((key) => [counted(`/${key}`), counted("1")]);
      await converse(server.port, request("multiSet", number(part.length / 2), Buffer.concat(part)));
    }
    await store.wait(keys);
    const wait = store.wait([...keys, "last"]);
    await store.set("last", one);
    await wait;
  });

  it("keeps no more lines of waits than it may need again", async () => {
    const server = await serve();
    const store = await connect(server);
    await Promise.all([...Array.from({ length: 50 }, () => store.wait(["go"])), store.set("go", one)]);
    await expect.poll(() => server.stats.connections).toBeLessThanOrEqual(9);
  });
});
