import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { itemSize } from "../../src/layout/index.ts";
import {
  type Arrival,
  type Box,
  DeviceMesh,
  type Part,
  Partial,
  type Place,
  type Plan,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
  TensorBusError,
} from "../../src/plan/index.ts";
import { planInputs } from "./kit/arbitrary.ts";
import { outerIds } from "./kit/naive-holdings.ts";
import { type NaiveTensor, naiveTensors } from "./kit/naive-planner.ts";

fc.configureGlobal({ seed: 20_261 });

/** The row-major ids of a box's elements in a tensor of this shape. */
function idsOf(box: Box, shape: readonly number[]): number[] {
  return outerIds(
    shape,
    box.map(([start, end]) => Array.from({ length: Number(end - start) }, (_, i) => Number(start) + i)),
  );
}

/** The global ids of what lies at a place, by the naive rules. */
function idsAt({ rank, buffer, box }: Place, { source, target }: NaiveTensor): number[] {
  const holding = (buffer === "target" ? target : source).byRank.get(rank)!;
  return idsOf(box, holding.localShape).map((local) => holding.ids[local]!);
}

/** Every part names the same elements in three ways, and each part's beginnings make it up. */
function checkPart(
  part: Part & { before?: readonly Arrival[] },
  shape: readonly number[],
  naive: NaiveTensor,
) {
  const ids = idsOf(part.global, shape);
  expect(idsAt(part.from, naive)).toEqual(ids);
  expect(idsAt(part.to, naive)).toEqual(ids);
  const { before = [] } = part;
  for (const one of before) checkPart(one, shape, naive);
  const brought = before.flatMap((one) => idsOf(one.global, shape));
  const contributors = naive.source.byRank.get(part.from.rank)?.group ?? [];
  const copies = part.from.buffer === "reduced" ? contributors.length : part.stage === 2 ? 1 : 0;
  expect(ascending(brought)).toEqual(ascending(Array(copies).fill(ids).flat()));
  if (part.from.buffer === "reduced") {
    expect(ascending([...new Set(before.map(({ from }) => from.rank))])).toEqual(ascending(contributors));
  }
}

function ascending(numbers: readonly number[]): number[] {
  return [...numbers].sort((a, b) => a - b);
}

function checkTensor(plan: Plan, tensor: number, naive: NaiveTensor): void {
  const { shape, dtype, targetDtype = dtype } = plan.input.tensors[tensor]!;
  const items = [itemSize(dtype), Math.min(itemSize(dtype), itemSize(targetDtype)), itemSize(targetDtype)];
  const chunks = [...plan.chunks()].filter((chunk) => chunk.tensor === tensor);
  for (const rank of new Set([...naive.source.byRank.keys(), ...naive.target.byRank.keys()])) {
    const explained = plan.explain(tensor, rank);
    const own = (side: "source" | "target") => naive[side].byRank.get(rank)?.ids ?? [];
    expect(explained.source === undefined).toBe(own("source").length === 0);
    expect(explained.target === undefined).toBe(own("target").length === 0);
    const arrived = explained.arrivals.flatMap((part) => idsOf(part.global, shape));
    expect(ascending(arrived)).toEqual(ascending(own("target")));
    for (const part of [...explained.arrivals, ...explained.departures]) {
      checkPart(part, shape, naive);
      const count = idsOf(part.global, shape).length;
      expect(part.bytes).toBe(BigInt(count * items[part.stage]!));
    }
    // Every chunk of the rank is in a part, once.
    const count = (parts: readonly Part[]) => parts.reduce((sum, part) => sum + part.chunks, 0);
    const of = (end: "srcRank" | "dstRank", least: number) =>
      chunks.filter((chunk) => chunk[end] === rank && chunk.stage >= least).length;
    expect(count(explained.departures)).toBe(of("srcRank", 0));
    expect(count(explained.arrivals)).toBe(of("dstRank", 1));
    for (const part of explained.departures) {
      for (const next of part.after) {
        expect(next.stage).toBe(part.stage + 1);
        expect(next.from.rank).toBe(part.to.rank);
        const ids = new Set(idsOf(part.global, shape));
        expect(idsOf(next.global, shape).every((id) => ids.has(id))).toBe(true);
      }
    }
  }
}

describe("explain", () => {
  it("says of every element of every rank where it comes from, as the naive rules have it", async () => {
    const readings = ["split", "order"] as const;
    const inputs = planInputs({
      extent: 12,
      ndim: 2,
      partial: true,
      readings,
      bucketBytes: fc.constant(4096),
    });
    let explained = 0;
    await fc.assert(
      fc.asyncProperty(inputs, async (input) => {
        let plan: Plan;
        let naive: readonly NaiveTensor[];
        try {
          plan = await planTransfer(input);
          naive = naiveTensors(input);
        } catch (error) {
          if (error instanceof TensorBusError && error.code === "TB_STRIDED_SHARD") return;
          throw error;
        }
        for (const [tensor, sides] of naive.slice(0, 2).entries()) checkTensor(plan, tensor, sides);
        explained++;
      }),
      { numRuns: 60 },
    );
    expect(explained).toBeGreaterThan(10);
  });

  it("parts what travels in one chunk and is not one box of the tensor", async () => {
    // Both sides hold columns 0 and 2, or 1 and 3, side by side.
    const striped = (first: number) => ({
      mesh: new DeviceMesh([2], { ranks: [first, first + 1] }),
      placements: [StridedShard(1, 2)],
      stridedShard: "split" as const,
    });
    const input = {
      pairs: { p: { source: striped(0), target: striped(2) } },
      tensors: [{ name: "w", pair: "p", shape: [1, 4], dtype: "float32" as const }],
    };
    const plan = await planTransfer(input);
    expect([...plan.chunks({ rank: 3 })]).toHaveLength(1);
    const parts = plan.explain(0, 3).arrivals;
    expect(parts.map(({ global, to, bytes, chunks }) => [global[1], to.box[1], bytes, chunks])).toEqual([
      [[1n, 2n], [0n, 1n], 4n, 1],
      [[3n, 4n], [1n, 2n], 4n, 0],
    ]);
    checkTensor(plan, 0, naiveTensors(input)[0]!);
  });

  it("joins chunks that lie beside each other", async () => {
    const layout = (ranks: number[]) => ({ mesh: new DeviceMesh([2], { ranks }), placements: [Shard(0)] });
    const plan = await planTransfer({
      pairs: { p: { source: layout([0, 1]), target: layout([2, 3]) } },
      tensors: [{ name: "w", pair: "p", shape: [64, 64, 4], dtype: "float32" }],
      bucketBytes: 4096,
    });
    expect(plan.stats().chunks).toBe(16);
    expect(plan.explain(0, 3).arrivals).toMatchObject([
      {
        global: [
          [32n, 64n],
          [0n, 64n],
          [0n, 4n],
        ],
        from: { rank: 1, buffer: "source", shape: [32, 64, 4] },
        bytes: 32768n,
        chunks: 8,
        before: [],
      },
    ]);
  });

  it("follows contributions to the replicas that pass them on", async () => {
    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([2]), placements: [Partial("sum")] },
          target: { mesh: new DeviceMesh([2], { ranks: [2, 3] }), placements: [Replicate()] },
        },
      },
      tensors: [{ name: "w", pair: "p", shape: [64, 64], dtype: "float32", targetDtype: "bfloat16" }],
      bucketBytes: 4096,
      strategy: "striped",
    });
    const { arrivals, source } = plan.explain(0, 2);
    expect(source).toBeUndefined();
    const passedOn = arrivals.filter(({ stage }) => stage === 2);
    expect(passedOn.length).toBeGreaterThan(0);
    for (const part of passedOn) {
      expect(part.from).toMatchObject({ rank: 3, buffer: "target" });
      expect(part.before.every(({ from }) => from.buffer === "reduced")).toBe(true);
      expect(new Set(part.before.flatMap(({ before }) => before.map(({ from }) => from.rank)))).toEqual(
        new Set([0, 1]),
      );
    }
    const given = plan.explain(0, 0).departures.filter(({ stage }) => stage === 0);
    const reached = given.flatMap(({ after }) =>
      after.flatMap(({ to, after: next }) => [to.rank, ...next.map((last) => last.to.rank)]),
    );
    expect(new Set(reached)).toEqual(new Set([2, 3]));
  });

  it("takes a scalar", async () => {
    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([1]), placements: [Replicate()] },
          target: { mesh: new DeviceMesh([1], { ranks: [1] }), placements: [Replicate()] },
        },
      },
      tensors: [{ name: "step", pair: "p", shape: [], dtype: "int64" }],
    });
    expect(plan.explain(0, 1).arrivals).toMatchObject([
      { global: [], bytes: 8n, from: { rank: 0, box: [] } },
    ]);
  });

  it("refuses a tensor or a rank that is none", async () => {
    const side = { mesh: new DeviceMesh([1]), placements: [Shard(0)] };
    const plan = await planTransfer({
      pairs: { p: { source: side, target: side } },
      tensors: [{ name: "w", pair: "p", shape: [1], dtype: "int8" }],
    });
    expect(() => plan.explain(1, 0)).toThrow(TypeError);
    expect(() => plan.explain(0, -1)).toThrow(TypeError);
    expect(plan.explain(0, 9)).toMatchObject({ arrivals: [], departures: [] });
  });
});
