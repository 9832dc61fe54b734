/** One connection of the store's server, on a stream and a clock of the test: what it does in a turn, and what it counts. */

import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import { setImmediate as nextTurn } from "node:timers/promises";
import { afterEach, describe, expect, it, vi } from "vitest";
import { wireLimits } from "../../src/store/tcp-protocol.ts";
import { ServerSession } from "../../src/store/tcp-session.ts";
import { StoreTable } from "../../src/store/tcp-table.ts";
import { appended, storedValue } from "../../src/store/tcp-value.ts";
import { Turns } from "../../src/store/turns.ts";
import { counted, request, validate } from "./kit/wire.ts";

const KiB = 1024;
afterEach(() => vi.restoreAllMocks());

/** A connection whose client reads only while `reads` is true. */
function connection({
  table = new StoreTable(2 ** 30),
  turns = new Turns(),
  maxRequestBytes = 64 * KiB * KiB,
} = {}) {
  const unread: (() => void)[] = [];
  const state = { reads: true, heldBytes: 0 };
  const socket = new Duplex({
    read: () => {},
    write: (_, __, done) => void (state.reads ? done() : unread.push(done)),
  }) as Socket;
  const account = (delta: number) => {
    state.heldBytes += delta;
  };
  new ServerSession(socket, { table, turns, maxRequestBytes, account, validated: () => {} });
  socket.emit("data", validate);
  return Object.assign(state, { socket, table, say: (bytes: Uint8Array) => socket.emit("data", bytes) });
}

/** What a slow machine has put off is done then. */
async function settled(): Promise<void> {
  for (let turn = 0; turn < 10; turn += 1) await nextTurn();
}

/** A clock that stands still but for `passes`. */
function clock() {
  let now = 1000;
  vi.spyOn(performance, "now").mockImplementation(() => now);
  return {
    passes: (milliseconds: number) => {
      now += milliseconds;
    },
  };
}

describe("a connection of the server", () => {
  it("works a millisecond at a time and a few in a turn of the event loop, and the others between", async () => {
    const { passes } = clock();
    const [table, turns] = [new StoreTable(2 ** 30), new Turns()];
    const done: string[] = [];
    vi.spyOn(table, "set").mockImplementation((key) => {
      passes(0.125);
      done.push(key);
    });
    const [flood, other] = [connection({ table, turns }), connection({ table, turns })];
    const set = (key: string) => request("set", counted(key), counted("1"));
    flood.say(Buffer.concat(Array<Buffer>(1000).fill(set("flood"))));
    expect(done).toHaveLength(8);
    other.say(Buffer.concat(Array<Buffer>(40).fill(set("other"))));
    let turnCount = 0;
    for (; done.length < 1040; turnCount += 1) await nextTurn();
    // 130 milliseconds of work, of which a turn has six.
    expect(turnCount).toBeGreaterThanOrEqual(20);
    // The other's five are over as soon as its share of the time is.
    expect(done.lastIndexOf("other")).toBeLessThan(8 + 2 * 48);
  });

  it("makes a list only as far as it is read", async () => {
    const client = connection();
    const keys = 1000;
    for (let index = 0; index < keys; index += 1) {
      client.table.set(String(index).padEnd(wireLimits.keyBytes, "x"), storedValue(Buffer.of(1)));
    }
    client.reads = false;
    client.say(Buffer.concat(Array<Buffer>(4).fill(request("listKeys"))));
    for (let turn = 0; turn < 100; turn += 1) await nextTurn();
    expect(client.socket.writableLength).toBeGreaterThan(256 * KiB);
    expect(client.socket.writableLength).toBeLessThan(512 * KiB);
    // Nothing more is taken from it meanwhile, and what the list takes is counted.
    expect(client.socket.isPaused()).toBe(true);
    expect(client.heldBytes).toBeGreaterThan(keys * wireLimits.keyBytes);
    expect(client.socket.destroyed).toBe(false);
  });

  it("ends over a list of more keys, or of more bytes, than a request may have", async () => {
    const many = connection();
    vi.spyOn(many.table, "size", "get").mockReturnValue(wireLimits.keys + 1);
    many.socket.on("error", () => {});
    many.say(request("listKeys"));
    await settled();
    expect(many.socket.destroyed).toBe(true);
    const long = connection({ maxRequestBytes: 64 * KiB });
    for (let index = 0; index < 9; index += 1) {
      long.table.set(String(index).padEnd(wireLimits.keyBytes, "x"), storedValue(Buffer.of(1)));
    }
    long.say(request("listKeys"));
    await settled();
    expect(long.socket.destroyed).toBe(true);
  });

  it("ends over a request that is too long, before it is whole", async () => {
    const client = connection({ maxRequestBytes: 64 * KiB });
    const set = request("set", counted("/1"), counted(Buffer.alloc(1024 * KiB)));
    client.say(set.subarray(0, 300 * KiB));
    await settled();
    expect(client.socket.destroyed).toBe(false);
    client.say(set.subarray(300 * KiB, 330 * KiB));
    await settled();
    expect(client.socket.destroyed).toBe(true);
  });

  it("counts what the pieces take in which bytes come", async () => {
    const client = connection();
    const set = request("set", counted("/1"), counted(Buffer.alloc(100 * KiB)));
    client.say(set.subarray(0, 30));
    for (let index = 0; index < 1000; index += 1) client.say(set.subarray(30 + index, 31 + index));
    await settled();
    expect(client.heldBytes).toBeGreaterThan(1000 * 100);
    client.say(set.subarray(1030));
    await settled();
    expect(client.heldBytes).toBe(0);
  });
});

it("a value that grows byte by byte is copied now and then, not each time", () => {
  let value = storedValue(Buffer.alloc(1000 * KiB));
  let copies = 0;
  for (let index = 0; index < 2000; index += 1) {
    const grown = appended(value, Buffer.of(index));
    copies += grown === value ? 0 : 1;
    value = grown;
  }
  expect(copies).toBe(1);
  expect(value).toHaveLength(1000 * KiB + 2000);
});
