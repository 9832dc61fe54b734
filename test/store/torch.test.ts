/** Against the real torch: its client on our server, our client on its server, and both servers asked the same. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Store } from "../../src/store/store.ts";
import { serveTcpStore, type TcpStoreServer } from "../../src/store/tcp-server.ts";
import { tcpStore } from "../../src/store/tcp-store.ts";
import { storeCompliance } from "./kit/compliance.ts";
import { type Exchange, RecordingProxy } from "./kit/exchange.ts";
import { everyOperation } from "./kit/scenario.ts";
import { TorchServer, torchMissing, torchStartMs, torchVersion } from "./kit/torch.ts";
import { converse, counted, list, number, request } from "./kit/wire.ts";

const folder = join(import.meta.dirname, "../golden/tcpstore");
/** Writes the recordings anew, from the torch that is installed. */
const record = process.env.TENSORBUS_RECORD === "1";
const host = "127.0.0.1";

async function golden(name: string, live: Exchange): Promise<Exchange> {
  const file = join(folder, name);
  if (record) await writeFile(file, `${JSON.stringify(live)}\n`);
  return JSON.parse(await readFile(file, "utf8")) as Exchange;
}

/** The nonce of torch's first PING is its process's: everything else is the same each time. */
function withoutNonce(exchange: Exchange): Exchange["connections"] {
  return exchange.connections.map(([hello, echo, ...turns]) => [
    [">", hello![1].slice(0, 12) + hello![1].slice(20)],
    ["<", echo![1].slice(8)],
    ...turns,
  ]);
}

if (torchMissing !== undefined) {
  describe("torch", () => it.skip(torchMissing!, () => {}));
} else {
  storeCompliance(
    "tcp on torch's server",
    async () => {
      const server = await TorchServer.start();
      return {
        connect: (namespace) =>
          tcpStore({ host, port: server.port, ...(namespace === undefined ? {} : { namespace }) }),
        tearDown: () => server[Symbol.asyncDispose](),
      };
    },
    torchStartMs,
  );

  describe("torch", () => {
    let torch: TorchServer;
    let ours: TcpStoreServer;
    beforeAll(async () => {
      [torch, ours] = await Promise.all([TorchServer.start(), serveTcpStore()]);
    }, torchStartMs);
    afterAll(async () => {
      await Promise.all([torch?.[Symbol.asyncDispose](), ours?.close()]);
    });

    it("its client gets from our server what it gets from its own, byte for byte", async () => {
      await using toTorch = await RecordingProxy.to(torch.port);
      await using toOurs = await RecordingProxy.to(ours.port);
      const both = [toTorch, toOurs].map((proxy) => torch.client("client", proxy.port));
      const [results, same] = (await Promise.all(both)) as [string[], string[]];
      expect(same).toEqual(results);
      const live = {
        torch: torchVersion!,
        results: results.map((line) => JSON.parse(line) as [string, unknown]),
        connections: toTorch.connections,
      };
      expect(withoutNonce({ ...live, connections: toOurs.connections })).toEqual(withoutNonce(live));
      const recorded = await golden("torch-client.json", live);
      expect({ results: live.results, connections: withoutNonce(live) }).toEqual({
        results: recorded.results,
        connections: withoutNonce(recorded),
      });
    });

    it("both servers answer our client as was recorded", async () => {
      await using toTorch = await RecordingProxy.to(torch.port);
      await using toOurs = await RecordingProxy.to(ours.port);
      expect(await everyOperation(toOurs.port)).toEqual(await everyOperation(toTorch.port));
      expect(toOurs.connections).toEqual(toTorch.connections);
      const live = { torch: torchVersion!, connections: toTorch.connections };
      expect(live.connections).toEqual((await golden("tensorbus-client.json", live)).connections);
    });

    it.each([
      ["our server", () => ours.port],
      ["its server", () => torch.port],
    ])("its client and ours meet in %s", async (_, port) => {
      const meeting = torch.client("meet", port());
      await using store: Store = await tcpStore({ host, port: port() });
      await store.add("counter", 2n);
      await store.compareAndSet("cas", undefined, Buffer.from("mine"));
      await store.set("from-tensorbus", Buffer.from([1, 2, 3]));
      await store.wait(["from-torch"]);
      const seen = JSON.parse(Buffer.from((await store.get("from-torch"))!).toString());
      expect(seen).toEqual(["010203", 42, Buffer.from("theirs").toString("hex")]);
      expect(await store.add("counter", 0n)).toBe(42n);
      await store.set("all-done", Buffer.from("1"));
      expect(await meeting).toEqual(["done"]);
    });

    it("both servers answer three thousand random requests alike", async () => {
      const burst = randomRequests(3000);
      const [theirs, mine] = await Promise.all([
        converse(torch.port, ...burst),
        converse(ours.port, ...burst),
      ]);
      expect(theirs).toBeDefined();
      expect(mine!.equals(theirs!)).toBe(true);
    });

    it.each(closing())("both servers close the connection over %s, or neither", async (_, ...requests) => {
      const [theirs, mine] = await Promise.all([
        converse(torch.port, ...requests),
        converse(ours.port, ...requests),
      ]);
      expect(mine).toEqual(theirs);
    });

    it("its server's end is the store's", async () => {
      const store = await tcpStore({ host, port: torch.port });
      const waiting = expect(store.wait(["never"])).rejects.toMatchObject({ code: "TB_STORE_LOST" });
      await store.set("key", Buffer.from("1"));
      await torch.kill();
      await waiting;
      await expect(store.get("key")).rejects.toMatchObject({ code: "TB_STORE_LOST" });
      await store.close();
    });
  });
}

/** A linear congruential generator: the same requests every time. */
function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** Requests that keep the connection, on few keys so that they meet: counters, texts and barriers apart. */
function randomRequests(count: number): Buffer[] {
  const below = generator(20_260_101);
  const counter = () => `/counter${below(4)}`;
  const text = () => `/text${below(4)}`;
  const barrier = () => `/barrier${below(2)}`;
  const any = () => [counter, text, barrier][below(3)]!();
  const some = () => list(Array.from({ length: below(4) }, any));
  const numeral = () => ["0", "7", "-3", "+5", " 12", "\t\n4x", "9".repeat(18), "0x10"][below(8)]!;
  const word = () => ["", "a", "bb", "a\0b", "w".repeat(300)][below(5)]!;
  const makers: (() => Buffer)[] = [
    () => request("set", counted(counter()), counted(numeral())),
    () => request("set", counted(text()), counted(word())),
    () => request("compareSet", counted(text()), counted(word()), counted(word())),
    () => request("get", counted(any())),
    () => request("add", counted(counter()), number(below(1000) - 500)),
    () => request("check", some()),
    () => request("getNumKeys"),
    () => request("deleteKey", counted(any())),
    () => request("append", counted(text()), counted(word())),
    () => request("multiGet", some()),
    () => request("multiSet", number(2), counted(text()), counted(word()), counted(text()), counted(word())),
    () => request("cancelWait"),
    () => request("queuePush", counted(text()), counted(word())),
    () => request("queuePop", counted(text())),
    () => request("queueLen", counted(text())),
    () => request("barrier", counted(barrier()), number(below(2) - 1)),
  ];
  return Array.from({ length: count }, () => makers[below(makers.length)]!());
}

/** What may end a connection, each beside its neighbour that does not. */
function closing(): [string, ...Buffer[]][] {
  const set = (value: string) => request("set", counted("/odd"), counted(value));
  const add = request("add", counted("/odd"), number(1));
  const key = (length: number) => counted("k".repeat(length));
  return [
    ["ADD to a word", set("word"), add],
    ["ADD to nothing but a sign", set("-"), add],
    ["ADD to an empty value", set(""), add],
    ["ADD to a number beyond 64 bits", set("9".repeat(19)), add],
    ["ADD beyond 64 bits", set(String(2n ** 63n - 1n)), add],
    ["BARRIER on a word", set("word"), request("barrier", counted("/odd"), number(1))],
    ["a key of 8192 bytes", request("get", key(8192))],
    ["a key of 8193 bytes", request("get", key(8193))],
    [
      "a value of 8 MiB",
      request("set", counted("/big"), counted(Buffer.alloc(2 ** 23))),
      request("check", list(["/big"])),
    ],
    ["a value larger than 8 MiB", request("set", counted("/big"), counted(Buffer.alloc(2 ** 23 + 1)))],
    ["131072 keys", request("check", list(Array<string>(131_072).fill("/none")))],
    ["131073 keys", request("check", list(Array<string>(131_073).fill("/none")))],
    ["2^40 keys", request("multiGet", number(2 ** 40))],
    ["a second VALIDATE", Buffer.from("00cef7853c", "hex")],
    ["opcode 19", Buffer.of(19)],
    ["opcode 255", Buffer.of(255)],
  ];
}
