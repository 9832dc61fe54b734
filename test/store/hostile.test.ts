/** Whoever reaches a store's server may ask it anything: what that may cost the server, and everybody else. */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { buildSync } from "esbuild";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type IgnoredRecord, signedStore } from "../../src/store/signed.ts";
import { serveTcpStore, type TcpStoreServerOptions } from "../../src/store/tcp-server.ts";
import { tcpStore } from "../../src/store/tcp-store.ts";
import type { ServerReport } from "./children/store-server.ts";
import { converse, counted, dial, gone, list, number, ping, request } from "./kit/wire.ts";

const MiB = 2 ** 20;
const memory = 64 * MiB;
/** What an empty server takes besides, and what the collector has not taken back yet. */
const slack = 160 * MiB;
/** A turn is a few milliseconds; the rest is the collector's, with its threads. */
const stall = 300;

let folder: string;
const cleanUps: (() => unknown)[] = [];

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "tensorbus-hostile-"));
  buildSync({
    entryPoints: [join(import.meta.dirname, "children/store-server.ts")],
    outfile: join(folder, "server.mjs"),
    bundle: true,
    platform: "node",
    format: "esm",
    logLevel: "warning",
  });
});
afterAll(() => rmSync(folder, { recursive: true }));
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

/** A server in a process of its own. */
async function serve(options: TcpStoreServerOptions = {}) {
  const child: ChildProcess = fork(join(folder, "server.mjs"), [
    JSON.stringify({ maxMemoryBytes: memory, ...options }),
  ]);
  cleanUps.push(() => child.kill("SIGKILL"));
  const [{ port }] = (await once(child, "message")) as [{ port: number }];
  const report = async () => {
    child.send("report");
    return ((await once(child, "message")) as [ServerReport])[0];
  };
  await report();
  return { port, report };
}

const set = (key: string, value: Uint8Array) => request("set", counted(key), counted(value));
const append = (key: string, value: Uint8Array) => request("append", counted(key), counted(value));

async function stranger(port: number, ...requests: readonly Uint8Array[]): Promise<Socket> {
  const socket = await dial(port);
  cleanUps.push(() => socket.destroy());
  socket.write(Buffer.concat(requests));
  return socket;
}

/** Resolves once all that was written is read at the other end, or the connection is gone. */
async function sent(socket: Socket): Promise<void> {
  if (socket.writableLength > 0) await Promise.race([once(socket, "drain").catch(() => {}), gone(socket)]);
}

describe("a stranger", () => {
  it("does not have millions of digits parsed", async () => {
    const { port, report } = await serve();
    for (const digits of ["9", "0", " "]) {
      const value = Buffer.alloc(8 * MiB, digits);
      const add = request("add", counted("/d"), number(1));
      expect(await converse(port, set("/d", value), add)).toBeUndefined();
    }
    expect((await report()).stallMs).toBeLessThan(stall);
  });

  it("does not have a value copied for each byte that it appends", async () => {
    const { port, report } = await serve();
    const bytes = Array.from({ length: 2000 }, () => append("/a", Buffer.of(1)));
    expect(await converse(port, set("/a", Buffer.alloc(7 * MiB)), ...bytes)).toBeDefined();
    const { rssBytes, stallMs } = await report();
    expect(stallMs).toBeLessThan(stall);
    expect(rssBytes).toBeLessThan(memory + slack);
  });

  it("appends no more than a value may have", async () => {
    const { port } = await serve();
    expect(
      await converse(port, set("/a", Buffer.alloc(8 * MiB)), append("/a", Buffer.of(1))),
    ).toBeUndefined();
    expect(
      await converse(port, set("/a", Buffer.alloc(8 * MiB - 1)), append("/a", Buffer.of(1))),
    ).toBeDefined();
  });

  it("makes the server hold no more than it may by not reading", async () => {
    const { port, report } = await serve();
    // Each asks for a value, reads nothing of it, and has it replaced: what is under way stays in memory.
    for (let index = 0; index < 25; index += 1) {
      const keys = Array.from({ length: 8 }, (_, key) => `/${key}`);
      await converse(port, ...keys.map((key) => set(key, Buffer.alloc(4 * MiB, index)).subarray()));
      await stranger(port, request("multiGet", list(keys)), ping(1));
    }
    expect((await report()).rssBytes).toBeLessThan(memory + slack);
  });

  it("makes the server hold no more than it may by tiny values", async () => {
    const { port, report } = await serve();
    const attacker = await dial(port);
    cleanUps.push(() => attacker.destroy());
    const tooMany = 1_500_000;
    for (let from = 0; from < tooMany && !attacker.destroyed; from += 10_000) {
      const part = Array.from({ length: 10_000 }, (_, index) =>
        set((from + index).toString(36), Buffer.of(1)),
      );
      attacker.write(Buffer.concat(part));
      await sent(attacker);
    }
    await gone(attacker.resume());
    const { rssBytes, stallMs, keys } = await report();
    expect(keys).toBeGreaterThan(100_000);
    expect(rssBytes).toBeLessThan(memory + slack);
    expect(stallMs).toBeLessThan(stall);
  });

  it("makes the server hold no more than it may by what it leaves behind", async () => {
    const { port, report } = await serve();
    // One value of a page's worth in twenty stays: what it shares memory with must not stay with it.
    for (let round = 0; round < 40; round += 1) {
      const requests: Buffer[] = [];
      for (let index = 0; index < 2000; index += 1) requests.push(set(`/${index}`, Buffer.alloc(1500)));
      for (let index = 0; index < 2000; index += 20)
        requests.push(set(`/keep${round}-${index}`, Buffer.of(1)));
      expect(await converse(port, ...requests)).toBeDefined();
    }
    expect((await report()).rssBytes).toBeLessThan(memory + slack);
  });

  it("does not freeze the server by long lists and by many small requests", async () => {
    const { port, report } = await serve({ maxMemoryBytes: 512 * MiB });
    for (let from = 0; from < 400_000; from += 50_000) {
      const entries = Array.from({ length: 50_000 }, (_, index) => [
        counted(`/${from + index}`),
        counted("1"),
      ]);
      await converse(port, request("multiSet", number(50_000), ...entries.flat()));
    }
    const small = Buffer.alloc(MiB, request("getNumKeys"));
    const lists = await Promise.all(
      Array.from({ length: 8 }, () => stranger(port, ...Array(16).fill(request("listKeys")))),
    );
    const floods = await Promise.all(Array.from({ length: 8 }, () => stranger(port, small)));
    for (const socket of [...lists, ...floods]) socket.resume();
    const store = await tcpStore({ host: "127.0.0.1", port });
    cleanUps.push(() => store.close());
    for (let round = 1; round <= 20; round += 1) expect(await store.add("round", 1n)).toBe(BigInt(round));
    const { rssBytes, stallMs } = await report();
    expect(stallMs).toBeLessThan(stall);
    expect(rssBytes).toBeLessThan(512 * MiB + slack);
  });

  it.each([
    ["taken back", (socket: Socket) => socket.write(request("cancelWait"))],
    ["left", (socket: Socket) => socket.destroy()],
  ])("has its many keys left in turns when its wait is %s", async (_, end) => {
    const server = await serveTcpStore();
    cleanUps.push(() => server.close());
    const count = 100_000;
    const keys = Array.from({ length: count }, (_, index) => `/never/${index}`);
    const socket = await stranger(server.port, request("wait", list(keys)));
    while (server.stats.awaitedKeys < count && !socket.destroyed) await nextTurn();
    expect(server.stats.awaitedKeys).toBe(count);
    end(socket);
    const seen = new Set<number>();
    while (server.stats.awaitedKeys > 0) {
      seen.add(server.stats.awaitedKeys);
      await nextTurn();
    }
    seen.delete(count);
    expect(seen.size).toBeGreaterThan(1);
    if (socket.destroyed) return;
    // Nothing of the wait is left, and the connection goes on.
    const [answer] = (await once(socket, "data")) as [Buffer];
    expect(answer).toHaveLength(1);
    const asked = once(socket, "data");
    socket.write(request("wait", list([])));
    expect((await asked)[0]).toHaveLength(1);
  });

  it("keeps nobody out by connections that say nothing", async () => {
    const server = await serveTcpStore({ maxUnvalidated: 64 });
    cleanUps.push(() => server.close());
    const silent = await Promise.all(Array.from({ length: 300 }, () => dial(server.port, new Uint8Array())));
    cleanUps.push(() => silent.forEach((socket) => void socket.destroy()));
    const store = await tcpStore({ host: "127.0.0.1", port: server.port });
    cleanUps.push(() => store.close());
    await store.set("key", Buffer.of(1));
    expect(server.stats.connections).toBeLessThanOrEqual(65);
  });

  it("ends no reader of a signed record by appending to it", async () => {
    const server = await serveTcpStore();
    cleanUps.push(() => server.close());
    const ignored: IgnoredRecord[] = [];
    const plain = await tcpStore({ host: "127.0.0.1", port: server.port });
    const secrets = [Buffer.from("a secret of the tests")];
    const store = signedStore(plain, { secrets, onIgnored: (record) => ignored.push(record) });
    cleanUps.push(() => store.close());
    await store.set("key", Buffer.from("value"));
    await converse(server.port, append("/tensorbus/key", Buffer.of(1)));
    expect(await store.get("key")).toBeUndefined();
    expect(ignored).toEqual([{ namespace: "tensorbus", key: "key", reason: "signature" }]);
    expect((await store.compareAndSet("key", undefined, Buffer.from("anew"))).swapped).toBe(true);
    expect(Buffer.from((await store.get("key"))!).toString()).toBe("anew");
  });

  it("ends no reader of a signed record by making it longer than any may be", async () => {
    // torch's server lets a value grow without end.
    const long = Buffer.alloc(9 * MiB);
    let there = true;
    const server = createServer((socket) => {
      socket.on("error", () => {});
      socket.on("data", (chunk: Buffer) => {
        if (chunk[0] === 0) socket.write(chunk.subarray(-4));
        else if (chunk[0] === 3) socket.write(there ? counted(long) : number(0));
        else if (chunk[0] === 8) {
          there = false;
          socket.write(number(1));
        }
      });
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    cleanUps.push(() => server.close());
    const ignored: IgnoredRecord[] = [];
    const plain = await tcpStore({ host: "127.0.0.1", port: (server.address() as AddressInfo).port });
    const secrets = [Buffer.from("a secret of the tests")];
    const store = signedStore(plain, { secrets, onIgnored: (record) => ignored.push(record) });
    cleanUps.push(() => store.close());
    await expect(plain.get("key")).rejects.toMatchObject({ code: "TB_STORE_VALUE" });
    expect(await store.get("key")).toBeUndefined();
    expect(ignored).toEqual([{ namespace: "tensorbus", key: "key", reason: "form" }]);
    expect(await store.delete("key")).toBe(false);
    expect(await plain.get("key")).toBeUndefined();
  });
});
