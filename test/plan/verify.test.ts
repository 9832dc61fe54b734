import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { DeviceMesh, Partial, Replicate, Shard } from "../../src/layout/index.ts";
import type { BucketRows } from "../../src/plan/input/rows.ts";
import type { Chunk, PlanInput } from "../../src/plan/input/types.ts";
import { listedRows } from "../../src/plan/verify/listed.ts";
import { Places } from "../../src/plan/verify/places.ts";
import { verifyChunks, verifyRanks, verifyRows } from "../../src/plan/verify/verify.ts";
import { Random } from "../kit/random.ts";
import { planInputs } from "./kit/arbitrary.ts";
import { mutations, type PlanLists } from "./kit/mutations.ts";
import { UnreadableShard } from "./kit/naive-holdings.ts";
import { type NaivePlan, naivePlan } from "./kit/naive-planner.ts";
import { simulate } from "./kit/simulator.ts";

function verifyWhole(input: PlanInput, { chunks, buckets }: PlanLists): void {
  verifyChunks(input, chunks, buckets);
}

/** The same lists as every rank sees them. */
function verifyEach(input: PlanInput, { chunks, buckets }: PlanLists): void {
  verifyRanks(input, (rank) => {
    const touches = (item: { readonly srcRank: number; readonly dstRank: number }): boolean =>
      item.srcRank === rank || item.dstRank === rank;
    return { chunks: chunks.filter(touches), buckets: buckets.filter(touches) };
  });
}

/** `undefined` if a strided shard has no one meaning. */
function planned(input: PlanInput, relay: boolean): NaivePlan | undefined {
  try {
    return naivePlan(input, { relay });
  } catch (error) {
    if (error instanceof UnreadableShard) return undefined;
    throw error;
  }
}

function complaint(
  input: PlanInput,
  lists: PlanLists,
  verify: typeof verifyWhole = verifyWhole,
): TensorBusError | undefined {
  try {
    verify(input, lists);
    return undefined;
  } catch (error) {
    if (error instanceof TensorBusError) return error;
    throw error;
  }
}

const readings = ["split", "order", undefined] as const;
const inputs = planInputs({ extent: 6, readings, bucketBytes: fc.constantFrom(undefined, 4096) });

describe("verifyChunks on plans of one chunk an element", () => {
  it("accepts what the simulator accepts", () => {
    let accepted = 0;
    const property = fc.property(inputs, fc.boolean(), fc.nat(), (input, relay, seed) => {
      const plan = planned(input, relay);
      if (plan === undefined) {
        expect(complaint(input, { chunks: [], buckets: [] })?.code).toBe("TB_STRIDED_SHARD");
        return;
      }
      accepted++;
      simulate(input, plan.chunks, plan.buckets, { tensors: plan.tensors });
      const random = new Random(seed);
      simulate(input, plan.chunks, plan.buckets, { tensors: plan.tensors, random });
      const shuffled = {
        chunks: random.shuffle(plan.chunks),
        buckets: random.shuffle(plan.buckets),
      };
      verifyWhole(input, shuffled);
      verifyEach(input, shuffled);
    });
    fc.assert(property, { seed: 1, numRuns: 600 });
    expect(accepted).toBeGreaterThan(250);
  });

  for (const [name, mutate] of Object.entries(mutations)) {
    it(`catches: ${name}`, () => {
      let caught = 0;
      const property = fc.property(inputs, fc.boolean(), fc.nat(), (input, relay, seed) => {
        const plan = planned(input, relay);
        const changed = plan && mutate(input, plan, new Random(seed));
        if (changed === undefined) return;
        caught++;
        expect(complaint(input, changed)?.code).toBe("TB_PLAN_INVALID");
        expect(complaint(input, changed, verifyEach)?.code).toBe("TB_PLAN_INVALID");
      });
      fc.assert(property, { seed: 2, numRuns: 60 });
      expect(caught).toBeGreaterThan(1);
    });
  }
});

const mesh = (ranks: readonly number[], shape = [ranks.length]) => new DeviceMesh(shape, { ranks });
const twoRanks: PlanInput = {
  pairs: {
    p: {
      source: { mesh: mesh([0, 1]), placements: [Shard(0)] },
      target: { mesh: mesh([2, 3]), placements: [Replicate()] },
    },
  },
  tensors: [{ name: "w", pair: "p", shape: [4, 3], dtype: "float32" }],
};

describe("verifyRows, which has no ids to go by", () => {
  function complaintOf(
    change: (buckets: BucketRows) => { [Key in keyof BucketRows]?: BucketRows[Key] },
  ): string {
    const { chunks, buckets } = naivePlan({ ...twoRanks, bucketBytes: 32 });
    const rows = listedRows(chunks, buckets);
    const changed = { ...rows, buckets: { ...rows.buckets, ...change(rows.buckets) } };
    try {
      verifyRows(twoRanks, changed);
    } catch (error) {
      if (error instanceof TensorBusError && error.code === "TB_PLAN_INVALID") return error.message;
      throw error;
    }
    return "nothing";
  }

  it("refuses two buckets of one number, one that is not there, and a wait that leads nowhere", () => {
    expect(complaintOf(() => ({}))).toBe("nothing");
    expect(complaintOf(({ sequence }) => ({ sequence: sequence.map(() => 0) }))).toMatch(/listed twice/);
    expect(complaintOf(({ sequence }) => ({ sequence: sequence.map((at) => at + 1) }))).toMatch(
      /bucket of a channel is missing/,
    );
    const waitFirst = ({ count }: BucketRows) => new Uint32Array(count + 1).fill(1, 1);
    expect(
      complaintOf((rows) => ({ waitFirst: waitFirst(rows), waits: Uint32Array.of(rows.count) })),
    ).toMatch(/waits for one that is not listed/);
    expect(complaintOf(({ stage }) => ({ stage: stage.map(() => 3) }))).toMatch(/the unknown stage 3/);
    expect(complaintOf(({ count }) => ({ count: count - 1 }))).toMatch(/not listed/);
  });

  it("numbers keys as they come, however large and many", () => {
    const places = new Places(0);
    const random = new Random(3);
    const known = new Map<number, number>();
    for (let turn = 0; turn < 5000; turn++) {
      const key = random.below(40) * 2 ** 40 + random.below(40) * 2 ** 20 + random.below(3);
      if (!known.has(key)) known.set(key, known.size);
      expect(places.placeOf(key)).toBe(known.get(key));
    }
    expect(places.count).toBe(known.size);
    expect(places.placeOf(Number.MAX_SAFE_INTEGER)).toBe(known.size);
  });
});

describe("what a complaint says", () => {
  it("names tensor, rank, element and chunk of a doubled write", () => {
    const { chunks, buckets } = naivePlan(twoRanks);
    const chunk = chunks[5]!;
    const doubled = {
      ...chunk,
      id: `${chunk.bucket}:${chunks.filter((c) => c.bucket === chunk.bucket).length}`,
    };
    const grown = buckets.map((b) =>
      b.id === chunk.bucket ? { ...b, bytes: b.bytes - (b.bytes % 16n) + 20n } : b,
    );
    const error = complaint(twoRanks, { chunks: [...chunks, doubled], buckets: grown });
    expect(error?.code).toBe("TB_PLAN_INVALID");
    expect(error?.details).toMatchObject({
      tensor: 0,
      name: "w",
      rank: chunk.dstRank,
      element: chunk.dstOffsets.map(Number),
      chunks: [chunk.id, doubled.id],
    });
  });

  it("names the element that nobody writes", () => {
    const { chunks, buckets } = naivePlan(twoRanks);
    const gone = chunks.findIndex((chunk) => chunk.dstRank === 3 && chunk.dstOffsets.join() === "2,1");
    const last = chunks.findLastIndex((chunk) => chunk.bucket === chunks[gone]!.bucket);
    // The last chunk of the bucket moves into the gap, so that the bucket itself is whole.
    const moved = { ...chunks[last]!, id: chunks[gone]!.id };
    const kept = chunks.map((chunk, at) => (at === gone ? moved : chunk)).filter((_, at) => at !== last);
    const shrunk = buckets.map((b) => (b.id === moved.bucket ? { ...b, bytes: b.bytes - 16n } : b));
    const error = complaint(twoRanks, { chunks: kept, buckets: shrunk });
    expect(error?.message).toMatch(/not written/);
    expect(error?.details).toMatchObject({ tensor: 0, name: "w", rank: 3, element: [2, 1] });
  });

  it("refuses more channels of a wave at a receiver than peersInFlight", () => {
    const { chunks, buckets } = naivePlan(twoRanks);
    const oneWave = {
      chunks: chunks.map((chunk) => ({ ...chunk, wave: 0 })),
      buckets: buckets.map((bucket) => ({ ...bucket, wave: 0 })),
    };
    expect(complaint(twoRanks, oneWave)).toBeUndefined();
    expect(complaint({ ...twoRanks, peersInFlight: 1 }, oneWave)?.message).toMatch(/channels in a wave/);
  });

  it("refuses buckets beyond bucketBytes", () => {
    const { chunks, buckets } = naivePlan(twoRanks);
    expect(complaint({ ...twoRanks, bucketBytes: 64 }, { chunks, buckets })?.message).toMatch(/bucketBytes/);
  });

  it("refuses an element that is reduced at two owners", () => {
    const input: PlanInput = {
      ...twoRanks,
      pairs: { p: { ...twoRanks.pairs["p"]!, source: { mesh: mesh([0, 1]), placements: [Partial("sum")] } } },
      tensors: [{ name: "w", pair: "p", shape: [], dtype: "float32" }],
    };
    const whole = { tensor: 0, srcOffsets: [], dstOffsets: [], lengths: [], bytes: 4n } as const;
    const chunks: PlanLists["chunks"][number][] = [];
    const buckets: PlanLists["buckets"][number][] = [];
    for (const owner of [0, 1]) {
      const folds = [0, 1].map((member) => `0:${member}:${owner}:0`);
      for (const [srcRank, id] of folds.entries()) {
        const ends = { stage: 0, wave: 0, srcRank, dstRank: owner } as const;
        buckets.push({ ...ends, id, bytes: 4n, waitsFor: [] });
        chunks.push({
          ...whole,
          ...ends,
          id: `${id}:0`,
          bucket: id,
          kind: "reduce",
          from: "source",
          to: "reduced",
        });
      }
      const ends = { stage: 1, wave: 1, srcRank: owner, dstRank: owner + 2 } as const;
      const id = `1:${owner}:${owner + 2}:0`;
      buckets.push({ ...ends, id, bytes: 4n, waitsFor: folds });
      chunks.push({
        ...whole,
        ...ends,
        id: `${id}:0`,
        bucket: id,
        kind: "send",
        from: "reduced",
        to: "target",
      });
    }
    simulate(input, chunks, buckets);
    expect(complaint(input, { chunks, buckets })?.message).toMatch(/reduced 2 times/);
    expect(complaint(input, { chunks, buckets }, verifyEach)?.message).toMatch(
      /2 elements of w are reduced, not 1/,
    );
  });

  it("refuses two ends of a channel that list it differently", () => {
    const { chunks, buckets } = naivePlan(twoRanks);
    const views = (change: (chunk: Chunk) => Chunk) => () =>
      verifyRanks(twoRanks, (rank) => ({
        chunks: chunks
          .filter((c) => c.srcRank === rank || c.dstRank === rank)
          .map((c) => (rank < 2 ? change(c) : c)),
        buckets: buckets.filter((b) => b.srcRank === rank || b.dstRank === rank),
      }));
    expect(views((chunk) => chunk)).not.toThrow();
    // Right by itself in either view: other elements of the same count.
    const swap = (chunk: Chunk, [a, b]: readonly string[]): Chunk => {
      const other = chunk.id === a ? b : chunk.id === b ? a : undefined;
      const { srcOffsets, dstOffsets } = chunks.find(({ id }) => id === other) ?? chunk;
      return { ...chunk, srcOffsets, dstOffsets };
    };
    const [first] = buckets;
    expect(views((chunk) => swap(chunk, [`${first!.id}:0`, `${first!.id}:1`]))).toThrow(
      /two ends of a channel/,
    );
  });

  it("refuses an unknown pair, and a Partial target", () => {
    const lost = { ...twoRanks, tensors: [{ ...twoRanks.tensors[0]!, pair: "toString" }] };
    expect(complaint(lost, { chunks: [], buckets: [] })?.code).toBe("TB_PLAN_INPUT");
    const layout = { mesh: mesh([0, 1]), placements: [Partial("sum")] };
    const partial = { ...twoRanks, pairs: { p: { source: layout, target: layout } } };
    expect(complaint(partial, { chunks: [], buckets: [] })?.code).toBe("TB_PARTIAL_TARGET");
  });
});
