import { describe, expect, it } from "vitest";
import { holdingOf } from "../../src/layout/index.ts";
import {
  DeviceMesh,
  Plan,
  type PlanInput,
  planTransfer,
  Replicate,
  Shard,
  type TensorBusError,
} from "../../src/plan/index.ts";
import { verifyChunks, verifyRanks } from "../../src/plan/verify/verify.ts";
import { checkAll, checkMoves } from "./kit/check-plan.ts";
import { MisfitSizes, naiveSide, UnreadableShard } from "./kit/naive-holdings.ts";
import { sizedInput } from "./kit/sized.ts";

function experts(sizes: readonly number[], extent = 10): PlanInput {
  const source = { mesh: new DeviceMesh([4]), placements: [Shard(0, { sizes })] };
  const target = { mesh: new DeviceMesh([2], { ranks: [4, 5] }), placements: [Shard(0)] };
  return {
    pairs: { p: { source, target } },
    tensors: [{ name: "w", pair: "p", shape: [extent, 2], dtype: "bfloat16" }],
  };
}

async function failure(input: PlanInput): Promise<TensorBusError> {
  return planTransfer(input).then(
    () => Promise.reject(new Error("was planned")),
    (error: TensorBusError) => error,
  );
}

describe("shards cut by size", () => {
  it("hand out as many indices as each size says", async () => {
    const plan = await planTransfer(experts([3, 0, 5, 2]));
    const sends = [...plan.chunks()].map(
      ({ srcRank, dstRank, srcOffsets, dstOffsets, lengths }) =>
        `${srcRank}>${dstRank} ${srcOffsets[0]}+${lengths[0]} at ${dstOffsets[0]}`,
    );
    expect(sends.toSorted()).toEqual(["0>4 0+3 at 0", "2>4 0+2 at 3", "2>5 2+3 at 0", "3>5 0+2 at 3"]);
    plan.verify({ whole: true });
  });

  it("agree with the naive planner in thousands of nested cases, or are refused by both", {
    timeout: 300_000,
  }, async () => {
    let planned = 0;
    for (let seed = 0; seed < 2500; seed++) {
      const input = sizedInput(seed, 6);
      const isPlanned = seed % 10 === 0 ? await checkAll(input, seed) : await checkMoves(input);
      if (isPlanned) planned++;
    }
    expect(planned).toBeGreaterThan(1250);
    expect(planned).toBeLessThan(2450);
  });

  it("have the holdings of the naive planner on every rank", () => {
    let compared = 0;
    for (let seed = 0; seed < 400; seed++) {
      const { pairs, tensors } = sizedInput(seed);
      for (const [layout, side] of [
        [pairs["p"]!.source, tensors[0]!.source],
        [pairs["p"]!.target, tensors[0]!.target],
      ] as const) {
        const { shape } = tensors[0]!;
        let naive: ReturnType<typeof naiveSide> | undefined;
        try {
          naive = naiveSide(layout, side, shape);
        } catch (error) {
          if (!(error instanceof MisfitSizes || error instanceof UnreadableShard)) throw error;
        }
        for (const rank of layout.mesh.ranks) {
          const find = () => holdingOf(layout, shape, rank, side)?.localShape;
          if (naive !== undefined) expect(find()).toEqual(naive.byRank.get(rank)?.localShape);
          compared++;
        }
      }
    }
    expect(compared).toBeGreaterThan(1000);
  });

  it("of large tensors are proved by code of its own, rank by rank too", async () => {
    let proved = 0;
    for (let seed = 0; seed < 60; seed++) {
      const input = sizedInput(seed, 2000);
      const plan = await planTransfer(input).catch(() => undefined);
      if (plan === undefined || plan.chunkCount() > 20_000n) continue;
      verifyChunks(input, plan.chunks(), plan.buckets());
      verifyRanks(input, (rank) => ({ chunks: plan.chunks({ rank }), buckets: plan.buckets({ rank }) }));
      proved++;
    }
    expect(proved).toBeGreaterThan(25);
  });

  it("are not proved for a source that is cut otherwise", async () => {
    const plan = await planTransfer(experts([3, 0, 5, 2]));
    expect(() => verifyChunks(experts([3, 1, 4, 2]), plan.chunks(), plan.buckets())).toThrow(
      expect.objectContaining({ code: "TB_PLAN_INVALID" }),
    );
  });

  it("may have more coordinates than sizes of their sum need", async () => {
    const plan = await planTransfer(experts([0, 0, 10, 0]));
    expect(plan.stats().ranks.map(({ sent }) => sent)).toEqual([0n, 0n, 40n, 0n, 0n, 0n]);
  });
});

describe("sizes that do not fit", () => {
  it("name their sum and what they cut", async () => {
    const error = await failure(experts([3, 3, 2, 3]));
    expect(error.code).toBe("TB_PLACEMENT");
    expect(error.message).toMatch(/tensor "w", source: .*S\(0;3,3,2,3\).*add up to 11.*has 10/);
    expect(error.details).toMatchObject({ tensor: "w", side: "source", meshDim: 0, sum: 11, extent: 10 });
  });

  it("are those of a dimension of a single coordinate too", async () => {
    const source = { mesh: new DeviceMesh([1]), placements: [Shard(0, { sizes: [9] })] };
    const target = { mesh: new DeviceMesh([1], { ranks: [1] }), placements: [Replicate()] };
    const tensors = [{ name: "w", pair: "p", shape: [10], dtype: "int8" as const }];
    expect((await failure({ pairs: { p: { source, target } }, tensors })).details).toMatchObject({
      sum: 9,
      extent: 10,
    });
  });

  it("name what an outer shard has left of the dimension", async () => {
    const mesh = new DeviceMesh([2, 2]);
    const source = { mesh, placements: [Shard(0), Shard(0, { sizes: [3, 2] })] };
    const target = { mesh, placements: [Replicate(), Replicate()] };
    const tensors = [{ name: "w", pair: "p", shape: [9], dtype: "int8" as const }];
    const error = await failure({ pairs: { p: { source, target } }, tensors });
    expect(error.details).toMatchObject({ meshDim: 1, sum: 5, extent: 4 });
  });

  it.each([
    [[3, 3, 4], /3 sizes for the 4 coordinates/],
    [[3, -1, 4, 4], /at least 0, not -1/],
    [[3, 1.5, 4, 1.5], /at least 0, not 1.5/],
    [[2 ** 53 - 1, 2 ** 53 - 1, 0, 0], /more than 2\^53/],
    [[], /a list/],
  ])("%j", async (sizes, message) => {
    const input = experts([1, 2, 3, 4]);
    const placements = [{ kind: "shard", dim: 0, sizes } as const];
    const source = { mesh: new DeviceMesh([4]), placements };
    const error = await failure({ ...input, pairs: { p: { ...input.pairs["p"]!, source } } });
    expect([error.code, error.message]).toEqual(["TB_PLACEMENT", expect.stringMatching(message)]);
  });
});

describe("a selection by size", () => {
  const select = (index: number, sizes: readonly number[], of = 10): PlanInput => {
    const input = experts([3, 3, 2, 2]);
    return {
      ...input,
      tensors: [{ ...input.tensors[0]!, source: { select: { dim: 0, index, of, sizes } } }],
    };
  };

  it.each([
    [0, 0],
    [2, 0],
    [3, 1],
    [5, 1],
    [6, 3],
    [9, 3],
  ])("finds thing %i at coordinate %i", async (index, rank) => {
    const plan = await planTransfer(select(index, [3, 3, 0, 4]));
    expect(new Set([...plan.chunks()].map(({ srcRank }) => srcRank))).toEqual(new Set([rank]));
    plan.verify({ whole: true });
  });

  it("is refused if its sizes are not all things", async () => {
    const error = await failure(select(0, [3, 3, 0, 3]));
    expect(error.code).toBe("TB_PLACEMENT");
    expect(error.details).toMatchObject({ sum: 9, of: 10 });
  });

  it("cuts nothing, so that the same placement takes a whole thing of any extent", async () => {
    const base = select(4, [3, 3, 2, 2]);
    const both = [{ ...base.tensors[0]!, shape: [7, 2] }, experts([3, 3, 2, 2]).tensors[0]!];
    const plan = await planTransfer({ ...base, tensors: both });
    plan.verify({ whole: true });
    expect(
      [...plan.chunks()].filter(({ tensor }) => tensor === 0).every(({ srcRank }) => srcRank === 1),
    ).toBe(true);
  });
});

describe("saved plans with sizes", () => {
  it("are read as they were written, with sizes of shards and selections", async () => {
    for (let seed = 0; seed < 100; seed++) {
      const plan = await planTransfer(sizedInput(seed, 6)).catch(() => undefined);
      if (plan === undefined) continue;
      const loaded = Plan.load(plan.bytes);
      expect(loaded.digest).toBe(plan.digest);
      expect([...loaded.chunks()]).toEqual([...plan.chunks()]);
    }
  });

  it("differ by their sizes, also where those are what a plain shard makes", async () => {
    const digests = await Promise.all(
      [experts([3, 3, 3, 1]), experts([3, 3, 2, 2])].map(async (input) => (await planTransfer(input)).digest),
    );
    const plain = experts([1, 1, 1, 1]);
    const source = { mesh: new DeviceMesh([4]), placements: [Shard(0)] };
    digests.push((await planTransfer({ ...plain, pairs: { p: { ...plain.pairs["p"]!, source } } })).digest);
    expect(new Set(digests).size).toBe(3);
  });
});
