import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type Bucket,
  type Chunk,
  DeviceMesh,
  Plan,
  planToJSON,
  planTransfer,
  Replicate,
  Shard,
  toJSON,
} from "../../src/plan/index.ts";
import { planInputs } from "./kit/arbitrary.ts";

fc.configureGlobal({ seed: 20_261 });

const touches = (rank: number) => (one: Chunk | Bucket) => one.srcRank === rank || one.dstRank === rank;
const sum = (chunks: readonly Chunk[]) => chunks.reduce((total, { bytes }) => total + bytes, 0n);

describe("lists of a plan", () => {
  it("of a rank are the world's, and the statistics their sums", async () => {
    await fc.assert(
      fc.asyncProperty(planInputs({ extent: 9, partial: true }), async (input) => {
        const plan = await planTransfer(input);
        const chunks = [...plan.chunks()];
        const buckets = [...plan.buckets()];
        const stats = plan.stats();
        expect(Plan.load(plan.bytes).digest).toBe(plan.digest);
        expect([stats.chunks, stats.buckets]).toEqual([chunks.length, buckets.length]);
        const counted = stats.patterns.reduce((all, one) => all + one.chunks * BigInt(one.tensors), 0n);
        expect(counted).toBe(BigInt(chunks.length));
        expect(stats.waves).toBe(new Set(buckets.map(({ wave }) => wave)).size);
        for (const kind of ["copy", "send", "reduce"] as const) {
          expect(stats.bytes[kind]).toBe(sum(chunks.filter((chunk) => chunk.kind === kind)));
        }
        for (const { rank, sent, received, copied, reduced, stagingBytes, chunks: count } of stats.ranks) {
          const own = chunks.filter(touches(rank));
          expect(toJSON([...plan.chunks({ rank })])).toEqual(toJSON(own));
          expect(toJSON([...plan.buckets({ rank })])).toEqual(toJSON(buckets.filter(touches(rank))));
          expect(count).toBe(own.length);
          expect(sent).toBe(sum(own.filter(({ srcRank, dstRank }) => srcRank === rank && dstRank !== rank)));
          expect(received).toBe(
            sum(own.filter(({ srcRank, dstRank }) => srcRank !== rank && dstRank === rank)),
          );
          expect(copied).toBe(sum(own.filter(({ kind }) => kind === "copy")));
          expect(reduced).toBe(sum(own.filter(({ kind, dstRank }) => kind === "reduce" && dstRank === rank)));
          expect(stagingBytes).toBe(plan.program(rank).stagingBytes);
        }
        JSON.stringify(planToJSON(plan));
      }),
      { seed: 4711, numRuns: 150 },
    );
  });

  it("come by (stage, wave, source, destination, sequence, index)", async () => {
    await fc.assert(
      fc.asyncProperty(planInputs({ extent: 9, partial: true }), async (input) => {
        const plan = await planTransfer(input);
        const keys = [...plan.chunks()].map((chunk) => [
          chunk.stage,
          chunk.wave,
          ...chunk.id.split(":").slice(1).map(Number),
        ]);
        for (let at = 1; at < keys.length; at++) {
          const differing = keys[at]!.findIndex((value, index) => value !== keys[at - 1]![index]);
          expect(keys[at]![differing]!).toBeGreaterThan(keys[at - 1]![differing]!);
        }
      }),
      { seed: 12, numRuns: 100 },
    );
  });

  it("of more than maxChunks are TB_PLAN_TOO_LARGE with the count, for the world and for a rank", async () => {
    const mesh = new DeviceMesh([8]);
    const plan = await planTransfer({
      pairs: { p: { source: { mesh, placements: [Shard(0)] }, target: { mesh, placements: [Shard(1)] } } },
      tensors: [{ name: "w", pair: "p", shape: [8, 8], dtype: "int8" }],
      maxChunks: 14,
    });
    expect(() => plan.chunks().next()).toThrowError(
      expect.objectContaining({ code: "TB_PLAN_TOO_LARGE", details: { chunks: 64n, maxChunks: 14 } }),
    );
    expect(() => plan.buckets({ rank: 1 }).next()).toThrowError(
      expect.objectContaining({ code: "TB_PLAN_TOO_LARGE", details: { chunks: 15n, maxChunks: 14 } }),
    );
    expect(plan.program(1).chunkCount).toBe(15);
    expect(plan.stats().chunks).toBe(64);
  });

  it("are empty for a rank outside, and its program is", async () => {
    const mesh = new DeviceMesh([2]);
    const layout = { mesh, placements: [Replicate()] };
    const plan = await planTransfer({
      pairs: { p: { source: layout, target: layout } },
      tensors: [{ name: "w", pair: "p", shape: [3], dtype: "int8" }],
    });
    expect([...plan.chunks({ rank: 77 }), ...plan.buckets({ rank: 77 })]).toEqual([]);
    const program = plan.program(77);
    expect([program.rank, program.bucketCount, program.buffers.length]).toEqual([77, 0, 0]);
    expect(() => plan.program(-1)).toThrow(TypeError);
    expect(() => plan.chunks({ rank: 0.5 }).next()).toThrow(TypeError);
  });

  it("of no tensors are empty", async () => {
    const plan = await planTransfer({ pairs: {}, tensors: [] });
    expect([...plan.chunks(), ...plan.buckets()]).toEqual([]);
    expect(plan.stats()).toMatchObject({ chunks: 0, ranks: [], imbalance: 1, busiest: undefined });
    plan.verify();
  });

  it("hold offsets beyond 32 bits", async () => {
    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([2]), placements: [Shard(0)] },
          target: { mesh: new DeviceMesh([1], { ranks: [2] }), placements: [Shard(1)] },
        },
      },
      tensors: [{ name: "w", pair: "p", shape: [2 ** 35, 3], dtype: "int8" }],
      bucketBytes: 2 ** 30,
    });
    plan.verify();
    const last = [...plan.chunks()].findLast(({ srcRank }) => srcRank === 1)!;
    expect(last.dstOffsets[0]! + last.lengths[0]!).toBe(2n ** 35n);
    expect(plan.program(2).buffers[0]!.span).toBe(3n * 2n ** 35n);
  });

  it("of a world of 2^20 ranks are to be had", async () => {
    const ranks = 2 ** 20;
    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([ranks]), placements: [Shard(0)] },
          target: { mesh: new DeviceMesh([2], { ranks: [7, ranks - 1] }), placements: [Shard(0)] },
        },
      },
      tensors: [{ name: "w", pair: "p", shape: [ranks * 3], dtype: "float32" }],
    });
    expect(toJSON([...plan.chunks({ rank: 12345 })])).toEqual([
      expect.objectContaining({ srcRank: 12345, dstRank: 7, dstOffsets: ["37035"], lengths: ["3"] }),
    ]);
  });
});
