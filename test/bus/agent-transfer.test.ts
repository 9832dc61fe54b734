/** Whole rounds through agents that live in this process: layouts, directions, types, colocated sides. */
import { describe, expect, it } from "vitest";
import {
  AgentWorld,
  arrayOf,
  failureOf,
  fill,
  initPair,
  joinPair,
  type Side,
  tensor,
} from "./kit/agent-kit.ts";

const trainer: Side = { name: "trainer", ranks: [0, 1], placements: ["S(0)"] };
const inference: Side = { name: "inference", ranks: [2, 3], placements: ["S(1)"] };

describe("a batch", () => {
  it("moves a matrix from rows to columns, round after round, and back", async () => {
    await using world = await AgentWorld.start(4);
    const clients = await joinPair(world, [trainer, inference]);
    const rows = trainer.ranks.map(() => tensor([4, 6]));
    const columns = inference.ranks.map(() => tensor([8, 3]));
    const handlers = await Promise.all([
      ...rows.map((one, at) => clients[0][at]!.registerTensors("model", [[one, "weights"]])),
      ...columns.map((one, at) => clients[1][at]!.registerTensors("model", [[one, "weights"]])),
    ]);
    for (let round = 1; round <= 3; round++) {
      for (const [at, one] of rows.entries()) fill(one, (index) => round * 1000 + at * 24 + index);
      const ends = await Promise.all(
        handlers.map((handler, at) => handler.transfer(at < 2 ? "send" : "recv")),
      );
      const results = await Promise.all(ends.map((end) => end.wait()));
      expect(results.map((result) => result.round)).toEqual([round, round, round, round]);
      expect(results[0]!.bytesSent).toBe(96n);
      columns.forEach((one, at) => {
        const expected = Array.from(
          { length: 24 },
          (_, index) => round * 1000 + Math.floor(index / 3) * 6 + at * 3 + (index % 3),
        );
        expect([...arrayOf(one)]).toEqual(expected);
      });
    }
    for (const one of columns) fill(one, (index) => -index);
    for (const one of rows) fill(one, () => 0);
    const back = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "recv" : "send")));
    await Promise.all(back.map((end) => end.wait()));
    expect([...arrayOf(rows[0]!)].slice(0, 6)).toEqual([-0, -1, -2, -0, -1, -2]);
    for (const handler of handlers) await handler.close();
    await Promise.all(handlers.map((handler) => handler.close()));
    const gone = await failureOf(clients[0][0]!.transfer("model", "send", { blocking: true }));
    expect(gone).toMatchObject({ code: "TB_BATCH_UNKNOWN", details: { batch: "model", rank: 0 } });
  });

  it("has sides on the same ranks, one client each", async () => {
    await using world = await AgentWorld.start(2);
    const sides = [
      { name: "a", ranks: [0, 1], placements: ["S(0)"] },
      { name: "b", ranks: [0, 1], placements: ["R"] },
    ] as const satisfies [Side, Side];
    const clients = await joinPair(world, sides);
    const from = [0, 1].map((rank) => tensor([3], (index) => rank * 3 + index));
    const to = [0, 1].map(() => tensor([6]));
    const handlers = await Promise.all([
      ...from.map((one, at) => clients[0][at]!.registerTensors(7, [[one, "weights"]])),
      ...to.map((one, at) => clients[1][at]!.registerTensors(7, [[one, "weights"]])),
    ]);
    const ends = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "send" : "recv")));
    await Promise.all(ends.map((end) => end.wait()));
    for (const one of to) expect([...arrayOf(one)]).toEqual([0, 1, 2, 3, 4, 5]);
  });

  it("without layouts goes whole from rank i to rank i, several pairs and types at once", async () => {
    await using world = await AgentWorld.start(4);
    const plain = [
      { name: "trainer", ranks: [0, 1], placements: undefined },
      { name: "inference", ranks: [2, 3], placements: undefined },
    ] as const satisfies [Side, Side];
    const clients = await joinPair(world, plain, "whole");
    await initPair(clients, [trainer, inference], "cut");
    const sent = [0, 1].map(
      (at) => [tensor([2 + at], () => at + 1), tensor([1, 4], (index) => index + 0.25)] as const,
    );
    const got = [0, 1].map((at) => [tensor([2 + at]), tensor([2, 2], () => 0, "float64")] as const);
    const handlers = await Promise.all(
      [...sent, ...got].map(([whole, cut], at) =>
        clients[at < 2 ? 0 : 1][at % 2]!.registerTensors("both", [
          [whole, "whole"],
          [{ data: cut, name: "cut me" }, "cut"],
        ]),
      ),
    );
    const ends = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "send" : "recv")));
    await Promise.all(ends.map((end) => end.wait()));
    expect(got.map(([whole]) => [...arrayOf(whole)])).toEqual([
      [1, 1],
      [2, 2, 2],
    ]);
    expect([...arrayOf(got[1]![1])]).toEqual([2.25, 3.25, 2.25, 3.25]);
  });

  it("reduces a Partial source, and refuses the way back", async () => {
    await using world = await AgentWorld.start(3);
    const sides = [
      { name: "grads", ranks: [0, 1], placements: ["P(sum)"] },
      { name: "sum", ranks: [2], placements: ["R"] },
    ] as const satisfies [Side, Side];
    const clients = await joinPair(world, sides);
    const parts = [10, 32].map((value) => tensor([5], () => value));
    const sum = tensor([5]);
    const handlers = await Promise.all([
      ...parts.map((one, at) => clients[0][at]!.registerTensors("g", [[one, "weights"]])),
      clients[1][0]!.registerTensors("g", [[sum, "weights"]]),
    ]);
    const ends = await Promise.all(handlers.map((handler, at) => handler.transfer(at < 2 ? "send" : "recv")));
    await Promise.all(ends.map((end) => end.wait()));
    expect([...arrayOf(sum)]).toEqual([42, 42, 42, 42, 42]);
    expect(await failureOf(handlers[0]!.transfer("recv", { blocking: true }))).toMatchObject({
      code: "TB_PARTIAL_TARGET",
    });
  });

  it("tells the transfer signal once all sources have posted, until this rank has taken the round", async () => {
    await using world = await AgentWorld.start(4);
    const clients = await joinPair(world, [trainer, inference]);
    const handlers = await Promise.all([
      ...[0, 1].map((at) => clients[0][at]!.registerTensors("m", [[tensor([1, 2]), "weights"]])),
      ...[0, 1].map((at) => clients[1][at]!.registerTensors("m", [[tensor([2, 1]), "weights"]])),
    ]);
    const target = handlers[2]!;
    expect(await target.queryTransferSignal()).toBe(false);
    const first = await handlers[0]!.transfer("send");
    expect(await target.queryTransferSignal()).toBe(false);
    const second = await handlers[1]!.transfer("send");
    await expect.poll(() => target.queryTransferSignal()).toBe(true);
    const ends = await Promise.all(handlers.slice(2).map((handler) => handler.transfer("recv")));
    await Promise.all([first, second, ...ends].map((end) => end.wait()));
    expect(await target.queryTransferSignal()).toBe(false);
  });
});
