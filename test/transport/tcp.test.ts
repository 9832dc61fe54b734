import { describe, expect, test } from "vitest";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportEvent, TransportSession } from "../../src/transport/transport.ts";
import { type TcpTransportOptions, tcp } from "../../transports/tcp/index.ts";
import { randomCase } from "./compliance/cases.ts";
import { columnsToRows } from "./compliance/data.ts";
import { testTransport } from "./compliance/suite.ts";
import { outcomeOf, prepareCase, prepareEach, runCase, until } from "./compliance/world.ts";
import {
  type Change,
  corruptingProxy,
  exchangeBuckets,
  flipAt,
  hello,
  listen,
  openTcp,
  portOf,
  sendTo,
  storeSaying,
  watchReads,
} from "./kit/tcp-world.ts";

testTransport({
  name: "tcp",
  capabilities: tcp().capabilities,
  open: openTcp,
  openOne: (options) => tcp().open({ ...options, store: memoryStores()() }),
});

const pair = columnsToRows(24, 24, {}, [0, 1]);
const apart = () => ({ key: "apart", timeoutMs: 1000, input: pair.input });

function faultsOf(session: TransportSession): TransportEvent[] {
  const events: TransportEvent[] = [];
  session.events$.subscribe((event) => {
    if (event.kind === "fault") events.push(event);
  });
  return events;
}

const [one, two] = ["one secret of the tests", "two secrets of the tests"] as const;

describe("tcp: strangers at the port", () => {
  test.each([
    ["garbage", Buffer.alloc(4096, "GET / HTTP/1.1\r\n"), "TB_PROTOCOL"],
    ["another version", hello({ version: 99 }), "TB_VERSION"],
    ["another world", hello({ world: 3 }), "TB_AUTH"],
    ["another rank's peer", hello({ to: 1 }), "TB_AUTH"],
  ])("%s is refused, told, and disturbs nobody", async (_, bytes, code) => {
    await using world = await openTcp(2);
    const faults = faultsOf(world.sessions[0]!);
    const prepared = await prepareCase(world.sessions, pair);
    await sendTo(portOf(world.sessions[0]!), bytes);
    await until(() => faults.length > 0);
    expect(faults).toMatchObject([{ kind: "fault", error: { code } }]);
    await prepared.round();
  });

  test("a peer of another version fails the prepare with its rank", async () => {
    await using listener = await listen((socket) => socket.write(hello({ version: 99, from: 1, to: 0 })));
    const store = await storeSaying({ 1: listener.port });
    await using session = await tcp().open({ rank: 0, world: 2, store });
    const other = await tcp().open({ rank: 1, world: 2, store: await storeSaying({ 0: listener.port }) });
    const [first, second] = await prepareEach([session, other], apart);
    // Of two ranks one connects: it alone meets the stranger at all.
    expect([first, second]).toContainEqual({ code: "TB_VERSION", rank: expect.any(Number) });
    await other.close();
  });
});

describe("tcp: secrets", () => {
  const open = async (options: TcpTransportOptions[], forged: boolean) => {
    const stores = memoryStores();
    const sessions: TransportSession[] = [];
    for (const [rank, option] of options.entries()) {
      sessions.push(await tcp(option).open({ rank, world: 2, store: stores() }));
    }
    if (!forged) return sessions;
    const believing: TransportSession[] = [];
    for (const [rank, option] of options.entries()) {
      const store = await storeSaying(
        { [1 - rank]: portOf(sessions[1 - rank]!) },
        String(option.secret),
        option.namespace,
      );
      believing.push(await tcp(option).open({ rank, world: 2, store }));
    }
    return [...sessions, ...believing];
  };

  test.each([
    ["the same", one, one],
    ["bytes", Buffer.from(one), one],
    ["two during a rotation", [two, one], [one, two]],
  ])("%s let ranks meet", async (_, first, second) => {
    const sessions = await open([{ secret: first }, { secret: second }], false);
    await runCase(sessions, pair);
    for (const session of sessions) await session.close();
  });

  test("an address that another secret wrote is TB_AUTH", async () => {
    const sessions = await open([{ secret: one }, { secret: two }], false);
    const outcomes = await prepareEach(sessions, apart);
    expect(outcomes).toEqual([
      { code: "TB_AUTH", rank: 1 },
      { code: "TB_AUTH", rank: 0 },
    ]);
    for (const session of sessions) await session.close();
  });

  test("a peer that cannot prove the secret is TB_AUTH, at both ends", async () => {
    const [zero, first, ...believing] = await open([{ secret: one }, { secret: two }], true);
    const faults = [faultsOf(zero!), faultsOf(first!)];
    const outcomes = await prepareEach(believing, apart);
    expect(outcomes).toContainEqual({ code: "TB_AUTH", rank: expect.any(Number) });
    await until(() => faults.flat().length > 0);
    expect(faults.flat()[0]).toMatchObject({ error: { code: "TB_AUTH" } });
    for (const session of [zero!, first!, ...believing]) await session.close();
  });

  test("ranks of another namespace are refused", async () => {
    const options = [
      { secret: one, namespace: "a" },
      { secret: one, namespace: "b" },
    ];
    const [zero, first, ...believing] = await open(options, true);
    expect(await prepareEach(believing, apart)).toContainEqual({ code: "TB_AUTH", rank: expect.any(Number) });
    for (const session of [zero!, first!, ...believing]) await session.close();
  });
});

describe("tcp: where it listens", () => {
  const open = (options: TcpTransportOptions) =>
    tcp(options).open({ rank: 0, world: 1, store: memoryStores()() });

  test("a port in use is TB_ADDRESS_IN_USE", async () => {
    await using listener = await listen(() => {});
    await expect(open({ port: listener.port })).rejects.toMatchObject({ code: "TB_ADDRESS_IN_USE" });
  });

  test("beyond loopback only with a secret, and everywhere only with an address to tell", async () => {
    await expect(open({ host: "0.0.0.0", advertise: "127.0.0.1" })).rejects.toMatchObject({
      code: "TB_AUTH",
    });
    await expect(open({ host: "0.0.0.0", secret: one })).rejects.toMatchObject({ code: "TB_ADDRESS" });
    await expect(open({ advertise: "host:99999" })).rejects.toMatchObject({ code: "TB_ADDRESS" });
    await using world = await openTcp(2, () => ({ host: "0.0.0.0", advertise: "localhost", secret: one }));
    await runCase(world.sessions, pair);
  });

  test("options out of range are refused", () => {
    for (const options of [{ port: -1 }, { connections: 17 }, { ioThreads: 0 }, { peerTimeoutMs: 1.5 }]) {
      expect(() => tcp(options)).toThrow(TypeError);
    }
  });

  test("several connections and threads carry the same", async () => {
    await using world = await openTcp(6, () => ({ connections: 3, ioThreads: 2 }));
    await runCase(world.sessions, columnsToRows(120, 90, { bucketBytes: 4096 }));
    for (let seed = 800; seed < 804; seed++) await runCase(world.sessions, randomCase(seed));
    await runCase(world.sessions, randomCase(804, { partial: "sum" }), { checksum: true });
  });
});

describe("tcp: bytes that change on the way,", () => {
  const bucketBytes = 4096;
  const wide = columnsToRows(128, 128, { bucketBytes }, [0, 1]);

  const roundOf = async (change: () => Change, checksum: boolean) => {
    let ports: number[] = [];
    await using first = await corruptingProxy(() => ports[0]!, change);
    await using second = await corruptingProxy(() => ports[1]!, change);
    const proxies = [first, second];
    await using world = await openTcp(2, (rank) => ({ advertise: `127.0.0.1:${proxies[rank]!.port}` }));
    ports = world.sessions.map(portOf);
    const { memories, executions } = await prepareCase(world.sessions, wide, { checksum });
    for (const memory of memories) memory.fill(1);
    const outcomes = await Promise.all(executions.map((execution) => outcomeOf(execution.run())));
    return { outcomes, memories };
  };

  test("are of a payload, unnoticed without checksums", async () => {
    const { outcomes, memories } = await roundOf(() => flipAt(7000), false);
    expect(outcomes).toEqual(["done", "done"]);
    expect(() => {
      for (const memory of memories) memory.check();
    }).toThrow(/not/);
  });

  test("are of a payload, found by checksums", async () => {
    const { outcomes } = await roundOf(() => flipAt(7000), true);
    // Both ways are corrupted: where both ranks notice at once, each is where it began.
    for (const outcome of outcomes) {
      expect(outcome).toEqual({ code: "TB_CHECKSUM", rank: expect.any(Number) });
    }
  });

  test.each([
    true,
    false,
  ])("are of headers, found with checksums of payloads or without: %s", async (checksum) => {
    const { outcomes } = await roundOf(() => exchangeBuckets(bucketBytes), checksum);
    // Whoever notices ends the connection: that is what the other one may see first.
    expect(outcomes).toContainEqual({ code: "TB_CHECKSUM", rank: expect.any(Number) });
    for (const outcome of outcomes) {
      expect(outcome).toEqual({
        code: expect.stringMatching(/^TB_(CHECKSUM|PEER_LOST)$/),
        rank: expect.any(Number),
      });
    }
  });
});

describe("tcp: ranks that come back", () => {
  test.each([0, 1])("rank %i left, opened again elsewhere, and is found there", async (who) => {
    const stores = memoryStores();
    const open = (rank: number) => tcp().open({ rank, world: 2, store: stores() });
    const sessions = [await open(0), await open(1)];
    await runCase(sessions, pair);
    await sessions[who]!.close();
    sessions[who] = await open(who);
    await runCase(sessions, pair);
    for (const session of sessions) await session.close();
  });

  test("an address that leads nowhere is read again", async () => {
    const dead = await listen(() => {});
    await dead[Symbol.asyncDispose]();
    const store = await storeSaying({ 1: dead.port });
    const { watched, read } = watchReads(store);
    const first = await tcp().open({ rank: 0, world: 2, store: watched });
    const early = prepareEach([first], () => ({ ...apart(), timeoutMs: 20_000 }));
    // Rank 0 follows the record of an earlier rank 1; the new one writes its own in its place.
    await read;
    const second = await tcp().open({ rank: 1, world: 2, store });
    const late = prepareEach([second], () => ({ ...apart(), timeoutMs: 20_000 }));
    expect(await Promise.all([early, late])).toEqual([["done"], ["done"]]);
    for (const session of [first, second]) await session.close();
  });
});
