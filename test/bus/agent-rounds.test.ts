/** Rounds that realign, with real agents: each a small input that once left a cluster failing, or its ranks waiting. */
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { BatchHandler } from "../../src/bus/client/batch-handler.ts";
import type { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { TensorBusError } from "../../src/errors.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { Store } from "../../src/store/store.ts";
import { memory } from "../../transports/memory/index.ts";
import { AgentWorld, arrayOf, failureOf, fill, joinPair, type Side, tensor } from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0, 1], placements: ["S(0)"] };
const inference: Side = { name: "inference", ranks: [2, 3], placements: ["S(0)"] };
const sides = [trainer, inference] as const satisfies [Side, Side];

interface Model {
  readonly rows: readonly SharedTensor[];
  readonly copies: readonly SharedTensor[];
  readonly handlers: readonly BatchHandler[];
  /** One call of a rank. */
  call(rank: number, options?: object): Promise<unknown>;
  /** Each rank calls once. */
  lockstep(value: number, options?: object): Promise<void>;
}

/** A matrix of 4 x 3, its halves on ranks 0 and 1; rank 2 gets the first half, rank 3 the second: no channel joins the two. */
async function register(
  clients: Awaited<ReturnType<typeof joinPair>>,
  options: { commit?: "direct" | "staged" } = {},
): Promise<Model> {
  const all = clients.flat();
  const rows = [0, 1].map(() => tensor([2, 3]));
  const copies = [2, 3].map(() => tensor([2, 3], () => -1));
  const tensors = [...rows, ...copies];
  const handlers = await Promise.all(
    all.map((client, rank) => client.registerTensors("model", [[tensors[rank]!, "weights"]], options)),
  );
  const call = (rank: number, more: object = {}) =>
    handlers[rank]!.transfer(rank < 2 ? "send" : "recv", { blocking: true, timeoutMs: 5000, ...more });
  const lockstep = async (value: number, more: object = {}) => {
    for (const [at, one] of rows.entries()) fill(one, (index) => value + at * 6 + index);
    await Promise.all([0, 1, 2, 3].map((rank) => call(rank, more)));
    for (const [at, one] of copies.entries())
      expect([...arrayOf(one)]).toEqual(Array.from({ length: 6 }, (_, index) => value + at * 6 + index));
  };
  return { rows, copies, handlers, call, lockstep };
}

interface Watcher {
  /** Called with what was read before it is given, with the rank; what it waits for, the reader waits for until its deadline. */
  readonly onRead?: (rank: number, key: string, value: Uint8Array | undefined) => Promise<void> | void;
  /** The same of waits. */
  readonly onWoken?: (rank: number, keys: readonly string[]) => Promise<void> | void;
  /** Called before something is written by compare-and-set. */
  readonly onSwap?: (key: string, deadline: { readonly timeoutMs?: number }) => Promise<void> | void;
}

/** Agents whose stores are watched. */
async function startWatched({ onRead, onWoken, onSwap }: Watcher): Promise<AgentWorld> {
  const open = memoryStores();
  let opened = 0;
  const world = new AgentWorld(memory(), () => {
    const store = open();
    const rank = opened++;
    const get: Store["get"] = async (key, options = {}) => {
      const value = await store.get(key, options);
      const late = sleep(options.timeoutMs ?? 30_000, undefined, { ref: false }).then(() => {
        throw new TensorBusError("TB_TIMEOUT", `${key} was not read in time`);
      });
      await Promise.race([onRead?.(rank, key, value), late]);
      return value;
    };
    const wait: Store["wait"] = async (keys, options) => {
      await store.wait(keys, options);
      await onWoken?.(rank, keys);
    };
    const compareAndSet: Store["compareAndSet"] = async (key, expected, desired, options) => {
      await onSwap?.(key, options ?? {});
      return store.compareAndSet(key, expected, desired, options);
    };
    const watched: Partial<Record<string | symbol, unknown>> = { get, wait, compareAndSet };
    return new Proxy(store, {
      get(_, name) {
        const member = watched[name] ?? Reflect.get(store, name, store);
        return typeof member === "function" ? member.bind(store) : member;
      },
    });
  });
  for (let rank = 0; rank < 4; rank++) await world.startAgent(rank);
  return world;
}

describe.each(["direct", "staged"] as const)("%s rounds", (commit) => {
  it("go on after one rank of four has skipped a call", async () => {
    await using world = await AgentWorld.start(4);
    const model = await register(await joinPair(world, sides), { commit });
    await model.lockstep(10);
    // Rank 0 keeps pace with rank 1, rank 3 needs its rows; rank 2 needs rank 0 alone, but for the others' votes.
    const two = model.call(2).catch(() => {});
    const ends = await Promise.all([0, 3].map((rank) => failureOf(model.call(rank, { timeoutMs: 300 }))));
    for (const { code, details } of ends) {
      expect(code).toMatch(/TB_TIMEOUT|TB_CANCELLED/);
      expect(details["rank"]).toBe(1);
    }
    await two;
    await model.lockstep(20);
    await model.lockstep(30);
  });

  it("that one rank takes back are TB_CANCELLED with that rank elsewhere, and all go on", async () => {
    await using world = await AgentWorld.start(4);
    const model = await register(await joinPair(world, sides), { commit });
    await model.lockstep(1);
    const abort = new AbortController();
    const [zero, three] = [model.call(0), model.call(3, { signal: abort.signal })].map(failureOf);
    const started = (rank: number) =>
      world.events[rank]!.filter(({ kind }) => kind === "roundStarted").length;
    await expect.poll(() => [0, 3].map(started)).toEqual([2, 2]);
    abort.abort();
    expect(await three).toMatchObject({ code: "TB_CANCELLED" });
    expect(await zero).toMatchObject({ code: "TB_CANCELLED", details: { rank: 3 } });
    await model.lockstep(2);
  });

  // Ranks and which way they send; 0 and 1 are the trainer's.
  it.each([
    ["two sides that both send", "AABB"],
    ["two sides that both receive", "BBAA"],
    ["one rank that calls the other way", "AAAB"],
    ["two ranks of four, one of each side", "ABAB"],
  ])("in opposite directions are told at once, and all go on: %s", async (_, ways) => {
    await using world = await AgentWorld.start(4);
    const model = await register(await joinPair(world, sides), { commit });
    await model.lockstep(1);
    const began = performance.now();
    const ends = await Promise.allSettled(
      [...ways].map((way, rank) =>
        model.handlers[rank]!.transfer((way === "A") === rank < 2 ? "send" : "recv", {
          blocking: true,
          timeoutMs: 60_000,
        }),
      ),
    );
    expect(performance.now() - began).toBeLessThan(15_000);
    const told = ends.flatMap((end, rank) =>
      end.status === "rejected" ? [{ rank, error: end.reason }] : [],
    );
    // A rank that deals with none of the other way may have what it asked for, where targets change as bytes arrive.
    if (commit === "staged") expect(told.length).toBe(4);
    const opposed = told.filter(({ error }) => error.code === "TB_BUSY");
    for (const { rank, error } of opposed) expect(ways[error.details.rank]).not.toBe(ways[rank]);
    expect(new Set(opposed.map(({ rank }) => ways[rank]))).toEqual(new Set(["A", "B"]));
    for (const { error } of told) expect(error.code).toMatch(/TB_BUSY|TB_CANCELLED/);
    await model.lockstep(2);
  });

  it("never mix two versions: the older call fails alone, and joins with the newer one", async () => {
    await using world = await AgentWorld.start(4);
    const model = await register(await joinPair(world, sides), { commit });
    const newer = [0, 1, 2].map((rank) => model.call(rank, { version: 7 }));
    await expect.poll(() => world.events[0]!.some(({ kind }) => kind === "roundStarted")).toBe(true);
    expect(await failureOf(model.call(3, { version: 6 }))).toMatchObject({
      code: "TB_STALE_VERSION",
      details: { rank: 3, version: 6n, expected: 7n },
    });
    await model.call(3, { version: 7 });
    await Promise.all(newer);
    await model.lockstep(40, { version: 8 });
    // A newer version ends the round of who waits with an older one, and goes on by itself.
    const old = failureOf(model.call(0, { version: 9 }));
    await expect.poll(() => world.events[0]!.filter(({ kind }) => kind === "roundStarted").length).toBe(3);
    const rest = [1, 2, 3].map((rank) => model.call(rank, { version: 10 }));
    expect(await old).toMatchObject({ code: "TB_STALE_VERSION", details: { expected: 10n } });
    await Promise.all([model.call(0, { version: 10 }), ...rest]);
  });
});

it("a round that is complete is no failure if the store does not say which version it carried", async () => {
  let isSilent = false;
  await using world = await startWatched({
    onRead: (_, key) => (isSilent && key.endsWith("/named") ? new Promise(() => {}) : undefined),
  });
  const model = await register(await joinPair(world, sides));
  const versions = async (version: number) => {
    const results = await Promise.all(
      model.handlers.map(async (handler, rank) => {
        const more = rank < 2 ? { version } : { tellVersion: true, timeoutMs: 1000 };
        return (await handler.transfer(rank < 2 ? "send" : "recv", more)).wait();
      }),
    );
    return results.slice(2).map(({ version: told, versionUnknown }) => (versionUnknown ? "unknown" : told));
  };
  expect(await versions(7)).toEqual([7n, 7n]);
  isSilent = true;
  const asking = versions(8);
  const completed = () => world.events[2]!.filter(({ kind }) => kind === "roundCompleted").length;
  await expect.poll(completed).toBe(2);
  // The call goes on until it is answered: another one would change targets before the client knows of this one.
  expect(await failureOf(model.call(2))).toMatchObject({ code: "TB_BUSY", details: { rank: 2 } });
  expect(await asking).toEqual(["unknown", "unknown"]);
});

it.each([
  "direct",
  "staged",
] as const)("a %s call that a newer version has ended is told so, though a peer says first that the round is over", async (commit) => {
  // Nobody is woken by the log: what a peer says comes before, and the log has to be asked.
  let isDeaf = false;
  await using world = await startWatched({
    onWoken: (_, keys) =>
      isDeaf && keys.some((key) => key.includes("/log/")) ? new Promise(() => {}) : undefined,
  });
  const model = await register(await joinPair(world, sides), { commit });
  await model.lockstep(1, { version: 1 });
  isDeaf = true;
  const older = [0, 1].map((rank) => failureOf(model.call(rank, { version: 2 })));
  const begun = (rank: number) => world.events[rank]!.filter(({ kind }) => kind === "roundStarted").length;
  await expect.poll(() => [0, 1].map(begun)).toEqual([2, 2]);
  const newer = [2, 3].map((rank) => model.call(rank, { version: 3 }));
  for (const { code, details } of await Promise.all(older)) {
    expect(code).toBe("TB_STALE_VERSION");
    expect([2, 3]).toContain(details["rank"]);
    expect(details["expected"]).toBe(3n);
  }
  await Promise.all([...newer, model.call(0, { version: 3 }), model.call(1, { version: 3 })]);
});

it("a rank that has voted is told which version has ended its round", async () => {
  let votes = 0;
  const open = memoryStores();
  await using world = new AgentWorld(memory(), () => {
    const store = open();
    const { add } = store;
    store.add = async (key, ...rest) => {
      if (key.endsWith("/votes")) votes++;
      return add.call(store, key, ...rest);
    };
    return store;
  });
  for (let rank = 0; rank < 4; rank++) await world.startAgent(rank);
  const model = await register(await joinPair(world, sides), { commit: "staged" });
  const older = [0, 1, 2].map((rank) => failureOf(model.call(rank, { version: 2 })));
  await expect.poll(() => votes).toBeGreaterThan(0);
  const newer = model.call(3, { version: 3 });
  for (const { code, details } of await Promise.all(older)) {
    expect(code).toBe("TB_STALE_VERSION");
    expect(details).toMatchObject({ rank: 3, expected: 3n });
  }
  await Promise.all([newer, ...[0, 1, 2].map((rank) => model.call(rank, { version: 3 }))]);
});

describe("a batch that ends", () => {
  it("is heard of by clients that only listen, each once, with or without traffic between them", async () => {
    await using world = await AgentWorld.start(4);
    const clients = await joinPair(world, sides);
    const model = await register(clients);
    const heard = model.handlers.map((handler, rank) => {
      const kinds: string[] = [];
      handler.events$.subscribe((event) =>
        kinds.push(event.kind === "ended" ? event.error.code : event.kind),
      );
      return { handler, kinds, rank };
    });
    await model.handlers[3]!.close();
    await expect
      .poll(() => heard.slice(0, 3).map(({ kinds }) => kinds))
      .toEqual(Array(3).fill(["TB_PEER_LOST"]));
    for (const { handler } of heard.slice(0, 3)) expect(handler.over?.details["rank"]).toBe(3);
    // Who closed it knows.
    expect(heard[3]!.kinds).toEqual([]);
    // Registered anew, nothing is left of what was told.
    const again = await register(clients);
    await again.lockstep(5);
    await again.lockstep(6);
    expect(again.handlers.map(({ over }) => over)).toEqual(Array(4).fill(undefined));
    for (const { stateDb } of clients.flat()) {
      const results = stateDb.clientsWithResults().flatMap((client) => stateDb.results(client));
      expect(results.filter(([, { ok }]) => !ok)).toEqual([]);
    }
    expect(heard.slice(0, 3).map(({ kinds }) => kinds.length)).toEqual([1, 1, 1]);
  });

  it.each([
    ["closes the batch", (_: AgentWorld, { handlers }: Model, rank: number) => handlers[rank]!.close()],
    ["closes its client", ({ clients }: AgentWorld, _: Model, rank: number) => clients[rank]!.close()],
    ["ends its agent", ({ agents }: AgentWorld, _: Model, rank: number) => agents[rank]!.close()],
  ] as const)("since a rank that has its part %s, goes on where the round does", async (_, leave) => {
    const ends = new Set<number>();
    await using world = await startWatched({
      onRead: (rank, key, value) => {
        if (value !== undefined && /\/log\/\d+$/.test(key)) ends.add(rank);
      },
    });
    const model = await register(await joinPair(world, sides));
    await model.lockstep(1);
    for (const [at, one] of model.rows.entries()) fill(one, (index) => 100 + at * 6 + index);
    // Rank 0 waits for rank 1 to begin, and for nothing of rank 3.
    const one = model.call(1);
    await Promise.all(
      [0, 2].map(async (rank) => {
        await model.call(rank);
        await leave(world, model, rank);
      }),
    );
    const told = () => [1, 3].filter((rank) => world.events[rank]!.some(({ kind }) => kind === "batchEnded"));
    await expect.poll(() => ends.has(1) && ends.has(3)).toBe(true);
    expect(told()).toEqual([]);
    await Promise.all([one, model.call(3)]);
    expect([...arrayOf(model.copies[1]!)]).toEqual([106, 107, 108, 109, 110, 111]);
    await expect.poll(told).toEqual([1, 3]);
    for (const rank of [1, 3]) {
      const { code, details } = await failureOf(model.call(rank));
      expect(code).toBe("TB_PEER_LOST");
      expect([0, 2]).toContain(details["rank"]);
    }
  });

  it("is heard of by clients that only listen when another's process has ended", async () => {
    await using world = await AgentWorld.start(4);
    const clients = await joinPair(world, sides);
    const { handlers } = await register(clients);
    await clients[1][1]!.close();
    await expect.poll(() => handlers.slice(0, 3).map(({ over }) => over?.details["rank"])).toEqual([3, 3, 3]);
  });

  it("has ended on ranks that exchange nothing with the one that ended it, though nobody transfers", async () => {
    await using world = await AgentWorld.start(4);
    const clients = await joinPair(world, sides);
    const model = await register(clients);
    await model.lockstep(1);
    await world.agents[3]!.close({ drainMs: 0 });
    // Rank 0 deals with rank 2 alone, and only polls the signal.
    await expect
      .poll(async () => (await failureOf(model.handlers[0]!.queryTransferSignal())).details["rank"], {
        timeout: 3000,
      })
      .toBe(3);
    for (const rank of [0, 1, 2]) {
      const end = world.events[rank]!.find(({ kind }) => kind === "batchEnded");
      expect(end).toMatchObject({ reason: { code: "TB_PEER_LOST", details: { rank: 3 } } });
    }
  });

  it("is registered anew at once after a rank's agent and client are gone", async () => {
    await using world = await AgentWorld.start(4);
    const clients = await joinPair(world, sides);
    const model = await register(clients);
    await model.lockstep(1);
    await world.agents[3]!.close({ drainMs: 0 });
    await world.startAgent(3);
    const next = await world.client(3);
    const again = await register([clients[0], [clients[1][0]!, next]]);
    await again.lockstep(50);
  });
});

describe("a registration", () => {
  it("in which one rank's memory does not hold its tensor is every rank's error at once", async () => {
    await using world = await AgentWorld.start(4);
    const clients = await joinPair(world, sides);
    const began = performance.now();
    const failures = await Promise.all(
      clients.flat().map((client, rank) => {
        const shape = rank === 3 ? [3] : [2, 3];
        const one = client.registerTensors("b", [[{ data: tensor(shape), name: "w" }, "weights"]], {
          timeoutMs: 20_000,
        });
        return failureOf(one);
      }),
    );
    for (const { code, details } of failures) {
      expect(code).toMatch(/TB_SHAPE|TB_PLACEMENT|TB_BATCH_MISMATCH/);
      expect(typeof details["rank"]).toBe("number");
    }
    expect(performance.now() - began).toBeLessThan(10_000);
    const model = await register(clients);
    await model.lockstep(1);
  });

  it("that one rank never comes to ends at its deadline, with that rank, and works when it comes", async () => {
    await using world = await AgentWorld.start(4);
    const clients = await joinPair(world, sides);
    const began = performance.now();
    const failures = await Promise.all(
      clients
        .flat()
        .slice(0, 3)
        .map((client) =>
          failureOf(client.registerTensors("b", [[tensor([2, 3]), "weights"]], { timeoutMs: 400 })),
        ),
    );
    expect(performance.now() - began).toBeLessThan(2000);
    expect(failures[2]).toMatchObject({ code: "TB_TIMEOUT", details: { rank: 3 } });
    await sleep(1);
    const model = await register(clients);
    await model.lockstep(1);
  });
});

/** A call that ended before it was in a round had noted which one it would join: the other direction took it for one that waits. */
it("a call that was in no round ends none of the other direction later", async () => {
  let isSlow = true;
  await using world = await startWatched({
    onSwap: async (key, { timeoutMs = 0 }) => {
      if (!isSlow || !key.endsWith("/named")) return;
      await sleep(timeoutMs);
      throw new TensorBusError("TB_TIMEOUT", `${key} was not written in time`);
    },
  });
  const model = await register(await joinPair(world, sides));
  const options = { version: 1, blocking: true, timeoutMs: 600 } as const;
  expect(await failureOf(model.handlers[0]!.transfer("recv", options))).toMatchObject({ code: "TB_TIMEOUT" });
  isSlow = false;
  // Longer than a call waits before it looks into the notes.
  const waiting = [0, 2, 3].map((rank) => model.call(rank));
  await sleep(500);
  await Promise.all([...waiting, model.call(1)]);
});
