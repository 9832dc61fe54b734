/** Ranks that are not in the same round at the same time: what is kept of peers that are ahead, and what is not. */
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { DeviceMesh, Replicate, Shard } from "../../../src/layout/index.ts";
import type { PostOptions } from "../../../src/transport/transport.ts";
import type { TransferCase } from "./cases.ts";
import { columnsToRows } from "./data.ts";
import { outcomeOf, type PreparedCase, prepareCase, type Subject } from "./world.ts";

/** Ranks 0 and 1 send halves to rank 2. */
const twoToOne: TransferCase = {
  ...columnsToRows(32, 24, {}, [0, 1, 2]),
  input: {
    pairs: {
      all: {
        source: { mesh: new DeviceMesh([2], { ranks: [0, 1] }), placements: [Shard(0)] },
        target: { mesh: new DeviceMesh([1], { ranks: [2] }), placements: [Replicate()] },
      },
    },
    tensors: [{ name: "matrix", pair: "all", shape: [32, 24], dtype: "float32" }],
  },
};

/** What has been said arrives, wherever it goes. */
const saidMs = 30;

export function testRounds(subject: Subject): void {
  const within = async (body: (prepared: PreparedCase) => Promise<void>) => {
    await using world = await subject.open(3);
    const prepared = await prepareCase(world.sessions, twoToOne);
    for (const memory of prepared.memories) memory.fill(1);
    await body(prepared);
  };
  const post = ({ executions }: PreparedCase, rank: number, options?: PostOptions) =>
    outcomeOf(executions[rank]!.run(options));
  const cancelled = { signal: AbortSignal.abort(new Error("not wanted")) };

  describe(`${subject.name}: ranks in different rounds`, () => {
    test("what a target grants before its sources begin is kept for them", () =>
      within(async (prepared) => {
        const target = post(prepared, 2, { round: 3 });
        await delay(saidMs);
        const first = post(prepared, 0, { round: 3 });
        await delay(saidMs);
        expect(await Promise.all([target, first, post(prepared, 1, { round: 3 })])).toEqual(
          Array(3).fill("done"),
        );
        for (const memory of prepared.memories) memory.check();
        await prepared.round();
      }));

    test.skipIf(subject.joint)(
      "a source whose target went on to a later round is told so, and meets it there",
      () =>
        within(async (prepared) => {
          const behind = post(prepared, 0, { round: 1 });
          await delay(saidMs);
          const target = post(prepared, 2, { round: 2 });
          expect(await behind).toEqual({ code: "TB_CANCELLED", rank: 2 });
          expect(
            await Promise.all([target, post(prepared, 0, { round: 2 }), post(prepared, 1, { round: 2 })]),
          ).toEqual(Array(3).fill("done"));
          for (const memory of prepared.memories) memory.check();
        }),
    );

    test("a round that failed is remembered by those who come to it later, and ends no other", () =>
      within(async (prepared) => {
        expect(await post(prepared, 0, { round: 2, ...cancelled })).toEqual({
          code: "TB_CANCELLED",
          rank: 0,
        });
        await delay(saidMs);
        const late = { code: "TB_CANCELLED", rank: 0 };
        expect(await Promise.all([post(prepared, 1, { round: 2 }), post(prepared, 2, { round: 2 })])).toEqual(
          [late, late],
        );
        expect(await Promise.all([0, 1, 2].map((rank) => post(prepared, rank, { round: 3 })))).toEqual(
          Array(3).fill("done"),
        );
        for (const memory of prepared.memories) memory.check();
      }));

    test.skipIf(subject.joint)(
      "the failure of the next round leaves the one before alone, also on a rank that has not begun it",
      () =>
        within(async (prepared) => {
          const target = post(prepared, 2, { round: 1 });
          expect(await post(prepared, 0, { round: 1 })).toBe("done");
          expect(await post(prepared, 0, { round: 2, ...cancelled })).toEqual({
            code: "TB_CANCELLED",
            rank: 0,
          });
          await delay(saidMs);
          expect(await Promise.all([target, post(prepared, 1, { round: 1 })])).toEqual(["done", "done"]);
          for (const memory of prepared.memories) memory.check();
          const failed = { code: "TB_CANCELLED", rank: 0 };
          expect(
            await Promise.all([post(prepared, 1, { round: 2 }), post(prepared, 2, { round: 2 })]),
          ).toEqual([failed, failed]);
        }),
    );

    // A joint round begins on all ranks or on none: no rank is ever done with one that another has not begun.
    test.runIf(subject.joint)("no rank is done with a round that another has not begun", () =>
      within(async (prepared) => {
        let ended = 0;
        const early = [2, 0].map((rank) => post(prepared, rank, { round: 1 }).finally(() => ended++));
        await delay(5 * saidMs);
        expect(ended).toBe(0);
        expect(await Promise.all([...early, post(prepared, 1, { round: 1 })])).toEqual(Array(3).fill("done"));
        for (const memory of prepared.memories) memory.check();
        const failed = { code: "TB_CANCELLED", rank: 0 };
        expect(await post(prepared, 0, { round: 2, ...cancelled })).toEqual(failed);
        await delay(saidMs);
        expect(await Promise.all([1, 2].map((rank) => post(prepared, rank, { round: 2 })))).toEqual([
          failed,
          failed,
        ]);
      }),
    );

    // Its target took no part in this round, so all know by their log that it failed: what ends it is a cancel.
    test.runIf(subject.joint)("a rank that is taken out of a round meets its target in a later one", () =>
      within(async (prepared) => {
        const abort = new AbortController();
        const behind = post(prepared, 0, { round: 1, signal: abort.signal });
        await delay(saidMs);
        const target = post(prepared, 2, { round: 2 });
        await delay(saidMs);
        abort.abort(new Error("not wanted"));
        expect(await behind).toMatchObject({ code: "TB_CANCELLED" });
        expect(
          await Promise.all([target, post(prepared, 0, { round: 2 }), post(prepared, 1, { round: 2 })]),
        ).toEqual(Array(3).fill("done"));
        for (const memory of prepared.memories) memory.check();
      }),
    );
  });
}
