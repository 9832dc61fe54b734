/** The transport of the simulation keeps to the transports' compliance suite, but for what it never has to do: reductions, casts. */
import { describe, test } from "vitest";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { TransportSession } from "../../src/transport/transport.ts";
import { Random } from "../kit/random.ts";
import { randomCase, sameTypes } from "../transport/compliance/cases.ts";
import { columnsToRows } from "../transport/compliance/data.ts";
import { testFailures } from "../transport/compliance/failures.ts";
import { testLifecycle } from "../transport/compliance/lifecycle.ts";
import { testRefusals } from "../transport/compliance/refusals.ts";
import { testRounds } from "../transport/compliance/rounds.ts";
import { runCase, type Subject } from "../transport/compliance/world.ts";
import type { Frame } from "./transport/frames.ts";
import { virtualTransport } from "./transport/session.ts";
import { type Clock, Network } from "./world/network.ts";

/** Node.js's own time. */
const realClock: Clock = {
  get now() {
    return performance.now();
  },
  afterFor(_owner, ms, run) {
    const timer = setTimeout(run, ms);
    return { cancel: () => clearTimeout(timer), ref: () => {}, unref: () => {} };
  },
};

function newNetwork(): Network<Frame> {
  return new Network({ clock: realClock, random: new Random(1), latencyMs: [0, 2], peerTimeoutMs: 1000 });
}

const subject: Subject = {
  name: "virtual",
  capabilities: virtualTransport(newNetwork()).capabilities,
  async open(world) {
    const transport = virtualTransport(newNetwork());
    const store = memoryStores()();
    const sessions: TransportSession[] = [];
    for (let rank = 0; rank < world; rank++) sessions.push(await transport.open({ rank, world, store }));
    return {
      sessions,
      async [Symbol.asyncDispose]() {
        for (const session of sessions) await session.close();
      },
    };
  },
  openOne: (options) => virtualTransport(newNetwork()).open({ ...options, store: memoryStores()() }),
};

testFailures(subject);
testLifecycle(subject);
testRounds(subject);
testRefusals(subject);

describe("virtual: data", () => {
  test("columns to rows, several rounds", async () => {
    await using world = await subject.open(3);
    await runCase(world.sessions, columnsToRows(30, 24, {}, [0, 1, 2]), { rounds: 3, delays: new Random(2) });
  });

  test.each(Array.from({ length: 20 }, (_, seed) => seed))("a random case, seed %i", async (seed) => {
    const transfer = randomCase(seed, { types: sameTypes, options: { strategy: "direct" } });
    await using world = await subject.open(transfer.world);
    await runCase(world.sessions, transfer, { delays: new Random(seed) });
  });
});
