import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import type { TensorBusError } from "../../../src/errors.ts";
import { createExecutor, type Execution } from "../../../src/exec/executor.ts";
import { DeviceMesh, Replicate, Shard } from "../../../src/layout/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import type { PostOptions, TransportEvent } from "../../../src/transport/transport.ts";
import { allocate, kindOf, type TestMemory, testDevices } from "../kit/test-memory.ts";
import type { TransferCase } from "./cases.ts";
import { columnsToRows } from "./data.ts";
import {
  type Outcome,
  outcomeOf,
  type PreparedCase,
  prepareCase,
  type Subject,
  until,
  type World,
} from "./world.ts";

/** Posts on one rank, and settles with how that ended. */
function post({ executions }: PreparedCase, rank: number, options?: PostOptions): Promise<Outcome> {
  return outcomeOf(executions[rank]!.run(options));
}

/** Two sources, two targets, and each target needs both sources. */
const twoToTwo: TransferCase = {
  ...columnsToRows(64, 48, {}, [0, 1, 2, 3]),
  input: {
    pairs: {
      all: {
        source: { mesh: new DeviceMesh([2], { ranks: [0, 1] }), placements: [Shard(1)] },
        target: { mesh: new DeviceMesh([2], { ranks: [2, 3] }), placements: [Shard(0)] },
      },
    },
    tensors: [{ name: "matrix", pair: "all", shape: [64, 48], dtype: "float32" }],
  },
};
/** Ranks 0 and 1 exchange a row each way of nothing else, and so do 2 and 3: two groups that no channel connects. */
const twoApart: TransferCase = {
  ...columnsToRows(8, 8, {}, [0, 1, 2, 3]),
  input: {
    pairs: Object.fromEntries(
      [0, 2].map((rank) => [
        `from ${rank}`,
        {
          source: { mesh: new DeviceMesh([1], { ranks: [rank] }), placements: [Replicate()] },
          target: { mesh: new DeviceMesh([1], { ranks: [rank + 1] }), placements: [Replicate()] },
        },
      ]),
    ),
    tensors: [0, 2].map((rank) => ({
      name: `m${rank}`,
      pair: `from ${rank}`,
      shape: [8, 8],
      dtype: "float32",
    })),
  },
};
const allToAll = columnsToRows(96, 60, {}, [0, 1, 2]);

let attempt = 1;

export function testFailures(subject: Subject): void {
  /** A world in which a case is prepared. */
  const within = async (
    transfer: TransferCase,
    body: (prepared: PreparedCase, world: World) => Promise<void>,
  ) => {
    await using world = await subject.open(transfer.world);
    const prepared = await prepareCase(world.sessions, transfer);
    for (const memory of prepared.memories) memory.fill(1);
    await body(prepared, world);
  };

  describe(`${subject.name}: failures`, () => {
    test("a round that was cancelled before it began ends everywhere, and the next one works", () =>
      within(allToAll, async (prepared) => {
        const reason = new Error("not wanted");
        const rounds = [0, 1, 2].map((rank) =>
          prepared.executions[rank]!.run(rank === 1 ? { signal: AbortSignal.abort(reason) } : {}),
        );
        const [outcomes] = await Promise.all([
          Promise.all(rounds.map(outcomeOf)),
          expect(rounds[1]).rejects.toMatchObject({ code: "TB_CANCELLED", cause: reason }),
        ]);
        expect(outcomes).toEqual(Array(3).fill({ code: "TB_CANCELLED", rank: 1 }));
        await prepared.round();
      }));

    test.each([
      ["a source", 0],
      ["a target", 2],
    ])("a round that %s cancels ends everywhere, and the next one works", (_, who) =>
      within(twoToTwo, async (prepared) => {
        const controller = new AbortController();
        const early = [0, 2].map((rank) =>
          post(prepared, rank, rank === who ? { signal: controller.signal } : {}),
        );
        controller.abort();
        const cancelled = { code: "TB_CANCELLED", rank: who };
        expect(await Promise.all(early)).toEqual([cancelled, cancelled]);
        expect(await Promise.all([post(prepared, 1), post(prepared, 3)])).toEqual([cancelled, cancelled]);
        await prepared.round();
      }));

    test("memory is quiet once a round has failed", () =>
      within(allToAll, async (prepared) => {
        const controller = new AbortController();
        const early = [post(prepared, 0), post(prepared, 1, { signal: controller.signal })];
        await until(() => prepared.executions[1]!.progress().bytesDone > 0n);
        controller.abort();
        await early[1];
        const snapshot = prepared.memories[1]!.snapshot();
        // What the others still do must not reach it.
        prepared.memories[2]!.fill(2);
        await Promise.all([early[0], post(prepared, 2)]);
        expect(prepared.memories[1]!.isUnchangedSince(snapshot)).toBe(true);
        await prepared.round();
      }));

    test("cancelled while bytes flow, at either end, memory is quiet and the next round works", () =>
      cancelManyTimes(subject));

    test("a timeout is TB_TIMEOUT there and TB_CANCELLED elsewhere, with its rank", () =>
      within(allToAll, async (prepared) => {
        const early = [post(prepared, 0, { timeoutMs: 40 }), post(prepared, 1)];
        expect(await Promise.all(early)).toEqual([
          { code: "TB_TIMEOUT", rank: 2 },
          { code: "TB_CANCELLED", rank: 2 },
        ]);
        expect(prepared.executions[0]!.awaited()).toContainEqual({ rank: 2, absent: true });
        expect(await post(prepared, 2)).toEqual({ code: "TB_CANCELLED", rank: 2 });
        await prepared.round();
      }));

    test("a timeout lists who was absent and who is waited for", () =>
      within(allToAll, async ({ executions }) => {
        const one = executions[1]!.run().catch(() => {});
        const failure = await executions[0]!.run({ timeoutMs: 40 }).catch((error: TensorBusError) => error);
        expect(failure).toMatchObject({
          code: "TB_TIMEOUT",
          details: { rank: 2, absent: [2], waitsFor: expect.arrayContaining([2]) },
        });
        await one;
      }));

    test("a round that another rank had given up fails when it is posted, and says that it had failed before", () =>
      within(allToAll, async (prepared) => {
        const { executions } = prepared;
        const given = executions[0]!.run({ signal: AbortSignal.abort() }).catch(() => {});
        await given;
        // It is heard of by way of the ranks; until then it is a round like any other, and fails while it is under way.
        const failed = (error: TensorBusError) => error;
        const ends = await Promise.all([1, 2].map((rank) => executions[rank]!.run().catch(failed)));
        expect(ends).toMatchObject([1, 2].map(() => ({ code: "TB_CANCELLED", details: { rank: 0 } })));
        await expect
          .poll(async () => {
            attempt += 1;
            const round = attempt;
            await executions[0]!.run({ round, signal: AbortSignal.abort() }).catch(() => {});
            await delay(5);
            const failure = await executions[1]!.run({ round }).catch(failed);
            await executions[2]!.run({ round }).catch(failed);
            return (failure as TensorBusError).details["hadFailed"];
          })
          .toBe(true);
      }));

    test("ranks that are linked keep pace, and hear of each other's failures", () =>
      within(twoApart, async ({ executions }) => {
        expect(executions.map(({ linked }) => linked)).toEqual([[2], [], [0], []]);
        const [zero, one] = [0, 1].map((rank) => executions[rank]!.run());
        await one;
        expect(await Promise.race([zero, delay(50)])).toBe(undefined);
        expect(executions[0]!.awaited()).toEqual([{ rank: 2, absent: true }]);
        await Promise.all([zero, ...[2, 3].map((rank) => executions[rank]!.run())]);
        const ends = [0, 2].map((rank) => outcomeOf(executions[rank]!.run()));
        await executions[1]!.run({ signal: AbortSignal.abort() }).catch(() => {});
        // Rank 3 is by itself with rank 2, and hears of it all the same.
        const cancelled = { code: "TB_CANCELLED", rank: 1 };
        expect(await Promise.all(ends)).toEqual([cancelled, cancelled]);
        expect(await outcomeOf(executions[3]!.run())).toEqual(cancelled);
      }));

    test("ranks that are linked hear of each other's end", () =>
      within(twoApart, async ({ executions }, { sessions }) => {
        const two = outcomeOf(executions[2]!.run());
        await sessions[0]!.close();
        expect(await two).toEqual({ code: "TB_PEER_LOST", rank: 0 });
      }));

    test("a session that closes in a round is a lost peer to all others, at once", () =>
      within(allToAll, async (prepared, { sessions }) => {
        const events: TransportEvent[] = [];
        sessions[0]!.events$.subscribe((event) => events.push(event));
        const rounds = [0, 1, 2].map((rank) => (rank === 2 ? undefined : post(prepared, rank)));
        await sessions[2]!.close();
        expect(await Promise.all(rounds.slice(0, 2))).toEqual(
          Array(2).fill({ code: "TB_PEER_LOST", rank: 2 }),
        );
        await until(() => events.length > 0);
        expect(events).toMatchObject([{ kind: "peerLeft", rank: 2, error: { code: "TB_PEER_LOST" } }]);
        expect(await post(prepared, 0)).toEqual({ code: "TB_PEER_LOST", rank: 2 });
      }));

    test("a session that closes ends its own round with TB_CLOSED", () =>
      within(allToAll, async (prepared, { sessions }) => {
        const round = post(prepared, 1);
        await sessions[1]!.close();
        expect(await round).toEqual({ code: "TB_CLOSED", rank: undefined });
      }));

    test("preparing alone ends at its deadline or by its signal, and works later", async () => {
      await using world = await subject.open(2);
      const { sessions } = world;
      const transfer = columnsToRows(8, 8, {}, [0, 1]);
      const plan = await planTransfer(transfer.input);
      const { memory } = allocate(kindOf(subject.capabilities), 4096);
      sessions[0]!.register(memory);
      const tensors = new Map([[0, { source: { memory, offset: 0n }, target: { memory, offset: 2048n } }]]);
      const alone = (options: object) =>
        outcomeOf(createExecutor(sessions[0]!).prepare(plan, { key: "alone", tensors, ...options }));
      expect(await alone({ timeoutMs: 40 })).toMatchObject({ code: "TB_TIMEOUT" });
      const controller = new AbortController();
      const cancelled = alone({ signal: controller.signal });
      setTimeout(() => controller.abort(), 5);
      expect(await cancelled).toMatchObject({ code: "TB_CANCELLED" });
      sessions[0]!.unregister(memory);
      const prepared = await prepareCase(sessions, transfer);
      await prepared.round();
    });
  });
}

/** 16 MiB from rank 0 to rank 1, cancelled by one of them when a part of it is there. */
async function cancelManyTimes(subject: Subject): Promise<void> {
  await using world = await subject.open(2);
  const bytes = 16 * 2 ** 20;
  const only = (rank: number) => ({
    mesh: new DeviceMesh([1], { ranks: [rank] }),
    placements: [Replicate()],
  });
  const plan = await planTransfer({
    pairs: { only: { source: only(0), target: only(1) } },
    tensors: [{ name: "big", pair: "only", shape: [bytes], dtype: "uint8" }],
    bucketBytes: 2 ** 20,
  });
  const memories = [0, 1].map((rank) => allocate(kindOf(subject.capabilities), bytes, testDevices.of(rank)));
  const [from, to] = memories as [TestMemory, TestMemory];
  const fill = (value: number) => {
    from.bytes.fill(value);
    from.push();
  };
  const received = () => {
    to.pull();
    return Buffer.from(to.bytes);
  };
  const executions: Execution[] = await Promise.all(
    world.sessions.map((session, rank) => {
      const { memory } = memories[rank]!;
      session.register(memory);
      const place = { memory, offset: 0n };
      const tensors = new Map([[0, rank === 0 ? { source: place } : { target: place }]]);
      return createExecutor(session).prepare(plan, { key: "big", tensors });
    }),
  );
  for (let attempt = 1; attempt <= 8; attempt++) {
    fill(attempt);
    const who = attempt % 2;
    const controller = new AbortController();
    const rounds = executions.map((execution, rank) =>
      outcomeOf(execution.run(rank === who ? { signal: controller.signal } : {})),
    );
    let settled = false;
    void rounds[who]!.then(() => {
      settled = true;
    });
    await until(() => settled || executions[who]!.progress().bytesDone > 0n);
    controller.abort();
    const outcomes = await Promise.all(rounds);
    const quiet = received();
    fill(255);
    await delay(2);
    expect(quiet.equals(received())).toBe(true);
    for (const outcome of outcomes) {
      if (outcome !== "done") expect(outcome).toEqual({ code: "TB_CANCELLED", rank: who });
    }
    fill(attempt + 100);
    await Promise.all(executions.map((execution) => execution.run()));
    expect(received().equals(from.bytes)).toBe(true);
  }
}
