import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { TensorBusError } from "../../src/errors.ts";
import {
  DeviceMesh,
  type DType,
  itemSize,
  type Layout,
  Partial,
  type Placement,
  Replicate,
  Shard,
  StridedShard,
} from "../../src/layout/index.ts";
import { type Plan, planTransfer } from "../../src/plan/index.ts";
import type { Chunk, PlanInput, TensorInput } from "../../src/plan/input/types.ts";
import { verifyChunks } from "../../src/plan/verify/verify.ts";
import { planInputs } from "./kit/arbitrary.ts";
import { dtensorCases, goldenLayout } from "./kit/golden.ts";

const KiB = 1024;

function layout(shape: readonly number[], placements: readonly Placement[], first = 0): Layout {
  const size = shape.reduce((a, b) => a * b, 1);
  return {
    mesh: new DeviceMesh(shape, { ranks: Array.from({ length: size }, (_, i) => first + i) }),
    placements,
  };
}

function inputOf(
  source: Layout,
  target: Layout,
  tensors: readonly Omit<TensorInput, "name" | "pair">[],
  more: Omit<PlanInput, "pairs" | "tensors"> = {},
): PlanInput {
  return {
    pairs: { p: { source, target } },
    tensors: tensors.map((tensor, at) => ({ name: `t${at}`, pair: "p", ...tensor })),
    strategy: "direct",
    ...more,
  };
}

async function chunksOf(input: PlanInput): Promise<Chunk[]> {
  const plan = await planTransfer(input);
  const chunks = [...plan.chunks()];
  verifyChunks(input, chunks, plan.buckets());
  return chunks;
}

/** Near-equal parts, larger first. */
function parts(length: number, count: number): number[] {
  return Array.from({ length: count }, (_, at) => Math.floor(length / count) + (at < length % count ? 1 : 0));
}

interface Slab {
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
}

/** The fewest near-equal slabs along the outermost dimension longer than 1, again and again, until all fit. */
function cut({ offsets, lengths }: Slab, size: number, most: number): Slab[] {
  if (lengths.reduce((a, b) => a * b, size) <= most) return [{ offsets, lengths }];
  const dim = lengths.findIndex((length) => length > 1);
  const row = lengths.reduce((a, b, at) => (at === dim ? a : a * b), size);
  const count = row > most ? lengths[dim]! : Math.ceil(lengths[dim]! / Math.floor(most / row));
  let offset = offsets[dim]!;
  return parts(lengths[dim]!, count).flatMap((length) => {
    const slab = { offsets: offsets.with(dim, offset), lengths: lengths.with(dim, length) };
    offset += length;
    return cut(slab, size, most);
  });
}

describe("cuts", () => {
  it("are the fewest near-equal slabs that fit, along the outermost dimension, recursively", async () => {
    const dtypes: readonly DType[] = ["float64", "float32", "bfloat16", "int8"];
    const shapes = fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 9000 })), {
      minLength: 0,
      maxLength: 4,
    });
    const property = fc.asyncProperty(
      shapes.filter((shape) => shape.reduce((a, b) => a * b, 1) < 2e6),
      fc.constantFrom(...dtypes),
      fc.constantFrom(4 * KiB, 4 * KiB + 1, 10_000, 64 * KiB),
      async (shape, dtype, bucketBytes) => {
        const one = layout([1], [Replicate()], 0);
        const other = layout([1], [Replicate()], 1);
        const chunks = await chunksOf(inputOf(one, other, [{ shape, dtype }], { bucketBytes }));
        const found = chunks.map(({ srcOffsets, lengths }) => ({
          offsets: srcOffsets.map(Number),
          lengths: lengths.map(Number),
        }));
        expect(found).toEqual(
          cut({ offsets: shape.map(() => 0), lengths: shape }, itemSize(dtype), bucketBytes),
        );
      },
    );
    await fc.assert(property, { seed: 8, numRuns: 150 });
  });

  it("let every rank that could send a large box send a part of at least 256 KiB", async () => {
    const source = layout([4], [Replicate()], 0);
    const target = layout([1], [Replicate()], 9);
    const rows = async (count: number): Promise<number[][]> => {
      const chunks = await chunksOf(inputOf(source, target, [{ shape: [count, 256], dtype: "float32" }]));
      return chunks
        .map(({ srcRank, lengths }) => [srcRank, Number(lengths[0])])
        .sort((a, b) => a[0]! - b[0]!);
    };
    expect((await rows(4096)).map(([, length]) => length)).toEqual([1024, 1024, 1024, 1024]);
    expect(new Set((await rows(4096)).map(([rank]) => rank)).size).toBe(4);
    expect(await rows(511)).toHaveLength(1);
    expect(await rows(512)).toHaveLength(2);
    expect(await rows(1023)).toHaveLength(3);
  });
});

/** Bytes that each source rank sends to others. */
function egress(chunks: readonly Chunk[], ranks: readonly number[], stages: readonly number[]): number[] {
  const sent = new Map(ranks.map((rank) => [rank, 0]));
  for (const { srcRank, dstRank, stage, bytes } of chunks) {
    if (srcRank !== dstRank && stages.includes(stage)) sent.set(srcRank, sent.get(srcRank)! + Number(bytes));
  }
  return [...sent.values()];
}

function imbalance(loads: readonly number[]): number {
  return Math.max(...loads) / (loads.reduce((a, b) => a + b, 0) / loads.length);
}

describe("routes", () => {
  const bench = dtensorCases.filter((golden) => golden.kind === "pair" && /-bench\d/.test(golden.id));

  it("spread the bench pairs over their senders, 100 tensors to 1.05 of the mean", async () => {
    expect(bench.length).toBe(24);
    for (const golden of bench) {
      if (golden.kind !== "pair") continue;
      const source = goldenLayout(golden.source, "split");
      const target = goldenLayout(golden.target, "split");
      const tensors = Array.from({ length: 100 }, () => ({ shape: [512, 512], dtype: "bfloat16" }) as const);
      const chunks = await chunksOf(inputOf(source, target, tensors));
      const stages = chunks.some(({ stage }) => stage === 0) ? [0] : [1];
      for (const stage of stages) {
        expect(imbalance(egress(chunks, golden.source.ranks, [stage])), golden.id).toBeLessThanOrEqual(1.05);
      }
    }
  });

  it("rotate the owners of a Partial source", async () => {
    const source = layout([2, 4], [Partial("sum"), Shard(0)]);
    const target = layout([4], [Shard(1)], 8);
    const tensors = Array.from({ length: 100 }, () => ({ shape: [64, 64], dtype: "float32" }) as const);
    const chunks = await chunksOf(inputOf(source, target, tensors));
    const owned = new Map<number, number>();
    for (const { kind, dstRank, bytes } of chunks) {
      if (kind === "reduce") owned.set(dstRank, (owned.get(dstRank) ?? 0) + Number(bytes));
    }
    expect(owned.size).toBe(8);
    expect(imbalance([...owned.values()])).toBeLessThanOrEqual(1.05);
  });

  it("stay on a host where a source stands on it", async () => {
    const source = layout([4], [Replicate()]);
    const target = layout([4], [Replicate()], 4);
    const tensors = Array.from({ length: 10 }, () => ({ shape: [1 << 20], dtype: "float32" }) as const);
    const hosts = [0, 1, 2, 3, 3, 2, 2, 7];
    const topology = { hosts, hostMBps: 1000, networkMBps: 10, latencyUs: 1 };
    const chunks = await chunksOf(inputOf(source, target, tensors, { topology }));
    for (const { srcRank, dstRank } of chunks) {
      if (dstRank < 7) expect(hosts[srcRank]).toBe(hosts[dstRank]);
    }
    expect(new Set(chunks.filter(({ dstRank }) => dstRank === 7).map(({ srcRank }) => srcRank)).size).toBe(4);
  });
});

/** The count of chunks in the refusal to list them all. */
function refusedCount(plan: Plan): unknown {
  try {
    for (const _ of plan.chunks()) break;
    return undefined;
  } catch (error) {
    expect(error).toMatchObject({ code: "TB_PLAN_TOO_LARGE" });
    return (error as TensorBusError).details["chunks"];
  }
}

describe("sizes at their limits", () => {
  it("counts the chunks that it does not list", async () => {
    const inputs = planInputs({ extent: 12, readings: ["split"], bucketBytes: fc.constant(4096) });
    const property = fc.asyncProperty(inputs, async (input) => {
      const plan = await planTransfer(input);
      const count = [...plan.chunks()].length;
      if (count < 2) return;
      expect(refusedCount(await planTransfer({ ...input, maxChunks: count - 1 }))).toBe(BigInt(count));
      expect(refusedCount(await planTransfer({ ...input, maxChunks: count }))).toBeUndefined();
    });
    await fc.assert(property, { seed: 12, numRuns: 300 });
  });

  it("plans 8 tensor dimensions over 8 mesh dimensions", async () => {
    const source = layout(
      [2, 2, 2, 2, 1, 1, 2, 1],
      [0, 1, 2, 3, 4, 5, 6, 7].map((dim) => Shard(dim)),
    );
    const target = layout(
      [2, 1, 2, 1, 2, 1, 2, 1],
      [7, 6, 5, 4, 3, 2, 1, 0].map((dim) => Shard(dim)),
      16,
    );
    const chunks = await chunksOf(
      inputOf(source, target, [{ shape: [3, 2, 3, 2, 2, 3, 2, 2], dtype: "int16" }]),
    );
    expect(chunks.length).toBeGreaterThan(32);
  });

  it("counts against maxChunks what is a rank's own, not what its buckets wait for", async () => {
    const source = layout([16, 2], [Shard(0), Partial("sum")]);
    const target = layout([24], [Shard(1)], 40);
    const tensors = [{ shape: [64, 96], dtype: "float32" }] as const;
    const whole = await planTransfer(inputOf(source, target, tensors));
    const plan = await planTransfer(inputOf(source, target, tensors, { maxChunks: 50 }));
    for (const rank of [0, 31, 40, 63]) {
      expect([...plan.chunks({ rank })]).toEqual([...whole.chunks({ rank })]);
      expect([...plan.buckets({ rank })]).toEqual([...whole.buckets({ rank })]);
    }
    const less = await planTransfer(inputOf(source, target, tensors, { maxChunks: 15 }));
    for (const list of [less.chunks({ rank: 40 }), less.buckets({ rank: 40 })])
      expect(() => [...list]).toThrow(expect.objectContaining({ code: "TB_PLAN_TOO_LARGE" }));
  });

  it("refuses at once to sum up or list what would take hours, with the count", async () => {
    const input = inputOf(layout([3], [Shard(0)]), layout([2], [Shard(0)], 3), [
      { shape: [2 ** 53 - 1, 100], dtype: "float32" },
    ]);
    const plan = await planTransfer(input);
    const chunks = refusedCount(plan);
    expect(chunks).toBeGreaterThan(2n ** 38n);
    expect(() => plan.stats()).toThrow(
      expect.objectContaining({ code: "TB_PLAN_TOO_LARGE", details: { chunks } }),
    );
  });

  it("refuses at once what has more boxes than could be walked, for the channels as well", async () => {
    const comb = [2048, 2048, 2048, 2048, 64].map((factor, dim) => StridedShard(dim, factor));
    const source: Layout = { ...layout([2, 2, 2, 2, 2], comb), stridedShard: "split" };
    const target = layout([4096], [Replicate()], 32);
    const input = inputOf(source, target, [{ shape: [8192, 8192, 8192, 8192, 256], dtype: "int8" }]);
    const plan = await planTransfer(input);
    const tooLarge = expect.objectContaining({ code: "TB_PLAN_TOO_LARGE" });
    for (const ask of [() => plan.stats(), () => plan.channels(), () => plan.program(0), () => plan.verify()])
      expect(ask).toThrow(tooLarge);
    expect(() => [...plan.chunks({ rank: 32 })]).toThrow(tooLarge);
  });

  it("proves what it does not list at once", async () => {
    const source = layout([16, 2], [Shard(0), Partial("sum")]);
    const target = layout([24], [Shard(1)], 40);
    const input = inputOf(source, target, [{ shape: [64, 96], dtype: "float32" }], { maxChunks: 200 });
    const plan = await planTransfer(input);
    expect(refusedCount(plan)).toBe(16n * 24n * 3n);
    plan.verify();
  });

  it("lists the chunks of one rank among 2^20", async () => {
    const source = layout([1024, 1024], [Shard(0), Shard(0)]);
    const target = layout([1], [Replicate()], 5);
    const plan = await planTransfer(inputOf(source, target, [{ shape: [2 ** 21 + 3], dtype: "float32" }]));
    expect([...plan.chunks({ rank: 5 })].length).toBeGreaterThan(2 ** 19);
    expect([...plan.chunks({ rank: 2 ** 20 - 1 })]).toEqual([]);
  });

  it("counts beyond 2^53 elements exactly", async () => {
    const shape = [2 ** 31, 2 ** 28 - 1];
    const source = layout([4], [Shard(0)]);
    const target = layout([3], [Shard(1)], 4);
    const input = inputOf(source, target, [{ shape, dtype: "int8" }], { bucketBytes: 2 ** 30 });
    const plan = await planTransfer({ ...input, maxChunks: 4 });
    // Each of 4 x 3 boxes has rows of (2^28 - 1) / 3 bytes, 12 to a bucket.
    const each = BigInt(Math.ceil(2 ** 29 / 12));
    expect(refusedCount(plan)).toBe(4n * 3n * each);
  });
});
