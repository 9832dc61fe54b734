/** What goes wrong in agents that live in this process: each failure is told to its client, and the agents go on. */
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { BatchHandler } from "../../src/bus/client/batch-handler.ts";
import type { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { TensorBusError } from "../../src/errors.ts";
import type { Store } from "../../src/store/store.ts";
import {
  AgentWorld,
  arrayOf,
  failureOf,
  fill,
  initPair,
  joinPair,
  pairOptions,
  type Side,
  tensor,
} from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0, 1], placements: ["S(0)"] };
const inference: Side = { name: "inference", ranks: [2], placements: ["R"] };
const sides = [trainer, inference] as const satisfies [Side, Side];

/** What a round ends with when one of its ranks is gone. */
const gone = /TB_CANCELLED|TB_PEER_LOST|TB_INVALIDATED/;

interface Model {
  readonly rows: SharedTensor[];
  readonly whole: SharedTensor;
  readonly handlers: BatchHandler[];
  /** Runs a round on all ranks, and compares. */
  round(value: number): Promise<void>;
}

/** A matrix of 4 x 3 of which both trainers hold a half. */
async function register(
  clients: Awaited<ReturnType<typeof joinPair>>,
  options: { commit?: "direct" | "staged" } = {},
): Promise<Model> {
  const rows = [0, 1].map(() => tensor([2, 3]));
  const whole = tensor([4, 3], () => -1);
  const handlers = await Promise.all([
    ...rows.map((one, at) => clients[0][at]!.registerTensors("model", [[one, "weights"]], options)),
    clients[1][0]!.registerTensors("model", [[whole, "weights"]], options),
  ]);
  const round = async (value: number) => {
    for (const [at, one] of rows.entries()) fill(one, (index) => value + at * 6 + index);
    const ends = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "send" : "recv")));
    await Promise.all(ends.map((end) => end.wait()));
    expect([...arrayOf(whole)]).toEqual(Array.from({ length: 12 }, (_, index) => value + index));
  };
  return { rows, whole, handlers, round };
}

/** Three ranks, of which rank 2 receives, votes before rank 0, and does not learn any decision while it `isSilent`. */
async function withSilentDecisions() {
  const world = new AgentWorld();
  const deciding = { isSilent: false };
  let vote = () => {};
  const hasVoted = new Promise<void>((resolve) => {
    vote = resolve;
  });
  const silenced = (store: Store) => {
    const guard = async (...keys: readonly string[]) => {
      if (!deciding.isSilent || !keys.some((key) => key.endsWith("/decision"))) return;
      await sleep(20);
      throw new TensorBusError("TB_TIMEOUT", "no answer");
    };
    const { wait, compareAndSet, add } = store;
    store.wait = async (keys, options) => {
      await guard(...keys);
      return wait.call(store, keys, options);
    };
    store.compareAndSet = async (key, expected, desired, options) => {
      await guard(key);
      return compareAndSet.call(store, key, expected, desired, options);
    };
    store.add = async (key, ...rest) => {
      const sum = await add.call(store, key, ...rest);
      if (deciding.isSilent && key.endsWith("/votes")) vote();
      return sum;
    };
    return store;
  };
  const last = (store: Store) => {
    const { add } = store;
    store.add = async (key, ...rest) => {
      if (deciding.isSilent && key.endsWith("/votes")) await hasVoted;
      return add.call(store, key, ...rest);
    };
    return store;
  };
  const stores = [last, (store: Store) => store, silenced];
  for (const [rank, change] of stores.entries()) {
    await world.startAgent(rank, { store: () => change(world.newStore()) });
  }
  const model = await register(await joinPair(world, sides), { commit: "staged" });
  return { world, model, deciding };
}

/** A round that was committed, which rank 2 cannot know: what it held before, and the ends of those who sent. */
async function doubtfulRound(model: Model, deciding: { isSilent: boolean }) {
  await model.round(10);
  const before = [...arrayOf(model.whole)];
  for (const [at, one] of model.rows.entries()) fill(one, (index) => 500 + at * 6 + index);
  deciding.isSilent = true;
  const received = await model.handlers[2]!.transfer("recv", { timeoutMs: 5000 });
  const sent = await Promise.all(model.handlers.slice(0, 2).map((handler) => handler.transfer("send")));
  expect(await failureOf(received.wait())).toMatchObject({
    code: "TB_IN_DOUBT",
    details: { rank: 2, torn: false },
  });
  return { before, sent };
}

describe("a pair", () => {
  it("of which one side never comes is a timeout that says so, and can be tried again", async () => {
    await using world = await AgentWorld.start(3);
    const [zero, one] = [await world.client(0), await world.client(1)];
    const alone = { ...pairOptions(trainer, inference), timeoutMs: 150 };
    const failures = await Promise.all([failureOf(zero.initPair(alone)), failureOf(one.initPair(alone))]);
    for (const { code, message } of failures) {
      expect(code).toBe("TB_TIMEOUT");
      expect(message).toContain("weights");
    }
    await initPair([[zero, one], [await world.client(2)]], sides);
  });

  it("of which one rank comes alone says which did not", async () => {
    await using world = await AgentWorld.start(1);
    const zero = await world.client(0);
    const failure = await failureOf(zero.initPair({ ...pairOptions(trainer, inference), timeoutMs: 150 }));
    expect(failure).toMatchObject({
      code: "TB_TIMEOUT",
      message: expect.stringContaining("rank 1 did not come"),
    });
  });

  it("with one rank that says something else names that rank and both values, to all of its side", async () => {
    await using world = await AgentWorld.start(4);
    const wide: Side = { name: "trainer", ranks: [0, 1, 2], placements: ["S(0)"] };
    const odd: Side = { ...wide, placements: ["S(1)"] };
    const clients = await Promise.all([0, 1, 2].map((rank) => world.client(rank)));
    const calls = clients.map((client, rank) =>
      client.initPair(pairOptions(rank === 1 ? odd : wide, inference)),
    );
    for (const failure of await Promise.all(calls.map(failureOf))) {
      expect(failure).toMatchObject({
        code: "TB_PAIR_MISMATCH",
        details: {
          pair: "weights",
          side: "trainer",
          rank: 1,
          field: "placements",
          value: "S(1)",
          expected: "S(0)",
        },
      });
    }
    const again = clients.map((client) => client.initPair(pairOptions(wide, { ...inference, ranks: [3] })));
    const three = await world.client(3);
    await Promise.all([...again, three.initPair(pairOptions({ ...inference, ranks: [3] }, wide))]);
  });

  it("registered twice is refused while its client lives, and found by the next one", async () => {
    await using world = await AgentWorld.start(3);
    const clients = await joinPair(world, sides);
    expect(await failureOf(clients[1][0]!.initPair(pairOptions(inference, trainer)))).toMatchObject({
      code: "TB_EXISTS",
      details: { pair: "weights", side: "inference", rank: 2 },
    });
    await clients[1][0]!.close();
    const next = await world.client(2);
    await next.initPair(pairOptions(inference, trainer));
    const model = await register([clients[0], [next]]);
    await model.round(1);
  });
});

describe("a registration", () => {
  it("in which sides differ names pair, rank and both values", async () => {
    await using world = await AgentWorld.start(3);
    const clients = await joinPair(world, sides);
    const attempt = async (shape: number[], options: object = {}, name = "w") => {
      const all = [
        ...clients[0].map((client) =>
          client.registerTensors("b", [[{ data: tensor([2, 3]), name: "w" }, "weights"]], {
            timeoutMs: 5000,
          }),
        ),
        clients[1][0]!.registerTensors("b", [[{ data: tensor(shape), name }, "weights"]], {
          timeoutMs: 5000,
          ...options,
        }),
      ];
      return Promise.all(all.map(failureOf));
    };
    for (const failure of await attempt([4, 5])) {
      expect(failure).toMatchObject({ code: "TB_SHAPE", details: { pair: "weights", tensor: "w" } });
      expect([String(failure.details["value"]), String(failure.details["expected"])].sort()).toEqual([
        "4,3",
        "4,5",
      ]);
    }
    for (const failure of await attempt([4, 3], { bucketSize: 8192 })) {
      expect(failure).toMatchObject({ code: "TB_BUCKET_SIZE", details: { pair: "weights" } });
    }
    for (const failure of await attempt([4, 3], {}, "v")) {
      expect(failure).toMatchObject({ code: "TB_BATCH_MISMATCH", details: { pair: "weights" } });
      expect([failure.details["value"], failure.details["expected"]].sort()).toEqual(["v", "w"]);
    }
    const model = await register(clients);
    await model.round(5);
  });

  it("in which one rank of a side differs names that rank", async () => {
    await using world = await AgentWorld.start(3);
    const clients = await joinPair(world, sides);
    const calls = [
      clients[0][0]!.registerTensors("b", [[tensor([2, 3]), "weights"]]),
      clients[0][1]!.registerTensors("b", [[tensor([2, 4]), "weights"]]),
      // It may come when the others have failed already: then its own deadline tells.
      clients[1][0]!.registerTensors("b", [[tensor([4, 3]), "weights"]], { timeoutMs: 300 }),
    ];
    for (const failure of await Promise.all(calls.map(failureOf))) {
      expect(failure).toMatchObject({
        code: "TB_SHAPE",
        details: { pair: "weights", side: "trainer", rank: 1, value: [2, 4], expected: [2, 3] },
      });
    }
  });

  it("of a batch that is there, of an unknown pair, and of tensors that overlap", async () => {
    await using world = await AgentWorld.start(3);
    const clients = await joinPair(world, sides);
    const model = await register(clients);
    expect(
      await failureOf(clients[1][0]!.registerTensors("model", [[tensor([4, 3]), "weights"]])),
    ).toMatchObject({
      code: "TB_EXISTS",
      details: { batch: "model", side: "inference" },
    });
    expect(await failureOf(clients[1][0]!.registerTensors("x", [[tensor([4, 3]), "other"]]))).toMatchObject({
      code: "TB_PAIR_UNKNOWN",
      details: { pair: "other", rank: 2 },
    });
    await model.round(3);
    const twice = tensor([4, 3]);
    const handlers = await Promise.all([
      ...clients[0].map((client) =>
        client.registerTensors("t", [
          [tensor([2, 3]), "weights"],
          [tensor([2, 3]), "weights"],
        ]),
      ),
      clients[1][0]!.registerTensors("t", [
        [twice, "weights"],
        [twice, "weights"],
      ]),
    ]);
    const refused = await failureOf(handlers[0]!.transfer("send", { blocking: true }));
    expect(refused).toMatchObject({ code: "TB_ALIAS", details: { rank: 2 } });
    const back = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "recv" : "send")));
    await Promise.all(back.map((end) => end.wait()));
  });
});

describe("a round", () => {
  it("that a call gives up is a timeout there; others join the next one, and all go on together", async () => {
    await using world = await AgentWorld.start(3);
    const model = await register(await joinPair(world, sides));
    const [zero, one, two] = model.handlers as [BatchHandler, BatchHandler, BatchHandler];
    // Rank 0 gives up three times before anyone else has begun.
    for (let attempt = 0; attempt < 3; attempt++) {
      const failure = await failureOf(zero.transfer("send", { blocking: true, timeoutMs: 400 }));
      expect(failure).toMatchObject({ code: "TB_TIMEOUT", details: { rank: 2, torn: false } });
    }
    // Whoever comes later joins the round that has not failed, and waits there for rank 0.
    const late = await Promise.all([one.transfer("send"), two.transfer("recv")]);
    await zero.transfer("send", { blocking: true });
    expect(await Promise.all(late.map((end) => end.wait()))).toMatchObject([{ round: 4 }, { round: 4 }]);
    await model.round(100);
    await model.round(200);
  });

  it("is one at a time", async () => {
    await using world = await AgentWorld.start(3);
    const model = await register(await joinPair(world, sides));
    const first = await model.handlers[2]!.transfer("recv");
    expect(await failureOf(model.handlers[2]!.transfer("recv", { blocking: true }))).toMatchObject({
      code: "TB_BUSY",
    });
    expect(await failureOf(model.handlers[2]!.transfer("send", { blocking: true }))).toMatchObject({
      code: "TB_BUSY",
    });
    const sends = await Promise.all(model.handlers.slice(0, 2).map((handler) => handler.transfer("send")));
    await Promise.all([first, ...sends].map((end) => end.wait()));
  });

  it("ends everywhere when a client closes in the middle of it; the batch waits to be registered anew", async () => {
    await using world = await AgentWorld.start(3);
    const clients = await joinPair(world, sides);
    const model = await register(clients);
    const ends = [await model.handlers[0]!.transfer("send"), await model.handlers[2]!.transfer("recv")];
    for (const rank of [0, 2]) {
      await expect.poll(() => world.events[rank]!.some(({ kind }) => kind === "roundStarted")).toBe(true);
    }
    await clients[0][1]!.close();
    // The target has taken all of rank 0 already, so that rank 0 may be done; the target is not.
    const [sent, received] = await Promise.allSettled(ends.map((end) => end.wait()));
    expect(sent!.status === "fulfilled" || gone.test(sent!.reason.code)).toBe(true);
    expect(received).toMatchObject({
      reason: { code: expect.stringMatching(gone), details: { rank: 1, torn: true } },
    });
    await expect
      .poll(
        async () =>
          (await failureOf(model.handlers[2]!.transfer("recv", { blocking: true, timeoutMs: 100 }))).code,
      )
      .toBe("TB_PEER_LOST");
    clients[0][1] = await world.client(1);
    const again = await register(clients);
    await again.round(9);
  });

  it("in an agent that is closed is cancelled, and its successor finds the pair", async () => {
    await using world = await AgentWorld.start(3);
    const clients = await joinPair(world, sides);
    const model = await register(clients);
    const end = await model.handlers[2]!.transfer("recv");
    await world.agents[1]!.close({ drainMs: 0 });
    expect((await failureOf(end.wait())).code).toMatch(gone);
    await world.startAgent(1);
    await clients[0][1]!.close();
    clients[0][1] = await world.client(1);
    await model.handlers[0]!.close();
    await model.handlers[2]!.close();
    const again = await register(clients);
    await again.round(4);
  });
});

describe("a staged round", () => {
  it("changes all targets or none", async () => {
    await using world = await AgentWorld.start(3);
    const model = await register(await joinPair(world, sides), { commit: "staged" });
    await model.round(10);
    const before = [...arrayOf(model.whole)];
    for (const one of model.rows) fill(one, () => 99);
    const early = await model.handlers[0]!.transfer("send", { timeoutMs: 100 });
    const target = await model.handlers[2]!.transfer("recv");
    expect((await failureOf(early.wait())).code).toBe("TB_TIMEOUT");
    expect(await failureOf(target.wait())).toMatchObject({
      code: "TB_CANCELLED",
      details: { rank: 0, torn: false },
    });
    // Rank 1 took no part in it, and joins the next one with all others.
    expect([...arrayOf(model.whole)]).toEqual(before);
    await model.round(20);
  });

  it("that a rank cannot learn the end of is in doubt there, unchanged, and settled by the next one", async () => {
    const { world, model, deciding } = await withSilentDecisions();
    await using _world = world;
    const { before, sent } = await doubtfulRound(model, deciding);
    expect([...arrayOf(model.whole)]).toEqual(before);
    await Promise.all(sent.map((end) => end.wait()));
    deciding.isSilent = false;
    await expect
      .poll(() =>
        model.round(900).then(
          () => true,
          () => false,
        ),
      )
      .toBe(true);
    expect(world.events[2]!.find(({ kind }) => kind === "resolved")).toMatchObject({ committed: true });
  });

  it("that is in doubt when its batch is closed gets its bytes once the decision is known: the memory is kept for them", async () => {
    const { world, model, deciding } = await withSilentDecisions();
    await using _world = world;
    const { before } = await doubtfulRound(model, deciding);
    await model.handlers[2]!.close();
    expect([...arrayOf(model.whole)]).toEqual(before);
    deciding.isSilent = false;
    const resolved = () => world.events[2]!.find(({ kind }) => kind === "resolved");
    await expect.poll(resolved).toMatchObject({ committed: true });
    expect([...arrayOf(model.whole)]).toEqual(before.map((_, index) => 500 + index));
  });

  it("needs the same choice on both sides", async () => {
    await using world = await AgentWorld.start(3);
    const clients = await joinPair(world, sides);
    const calls = [
      ...clients[0].map((client) =>
        client.registerTensors("b", [[tensor([2, 3]), "weights"]], { commit: "staged" }),
      ),
      clients[1][0]!.registerTensors("b", [[tensor([4, 3]), "weights"]], { commit: "direct" }),
    ];
    for (const failure of await Promise.all(calls.map(failureOf))) {
      expect(failure).toMatchObject({ code: "TB_BATCH_MISMATCH", details: { field: "commit" } });
    }
  });
});

describe("a store", () => {
  it("that is lost ends its pairs; they register again with the next one", async () => {
    const stores: { lose(): void }[] = [];
    await using world = new AgentWorld();
    const open = world.newStore;
    const losable = () => {
      const store = open();
      const lost = new AbortController();
      const { wait } = store;
      store.wait = async (keys, options) => {
        const signal =
          options?.signal === undefined ? lost.signal : AbortSignal.any([options.signal, lost.signal]);
        await wait.call(store, keys, { ...options, signal }).catch((error) => {
          throw lost.signal.aborted ? new TensorBusError("TB_STORE_LOST", "it went away") : error;
        });
      };
      stores.push({ lose: () => lost.abort() });
      return store;
    };
    for (let rank = 0; rank < 3; rank++) await world.startAgent(rank, { store: losable });
    const clients = await joinPair(world, sides);
    const model = await register(clients);
    await model.round(1);
    for (const store of stores.splice(0)) store.lose();
    await expect.poll(() => world.events.flat().filter(({ kind }) => kind === "storeFound").length).toBe(3);
    const failure = await failureOf(model.handlers[0]!.transfer("send", { blocking: true }));
    expect(failure.code).toMatch(/TB_BATCH_UNKNOWN|TB_STORE_LOST/);
    expect(failure.details).toMatchObject({ rank: 0 });
    await sleep(10);
    const again = await register(clients);
    await again.round(2);
  });
});
