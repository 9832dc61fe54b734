import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { planTransfer } from "../../src/plan/index.ts";
import type { PlanInput } from "../../src/plan/input/types.ts";
import { verifyChunks, verifyRanks } from "../../src/plan/verify/verify.ts";
import { Random } from "../kit/random.ts";
import { planInputs } from "./kit/arbitrary.ts";
import { checkAll, checkWaves } from "./kit/check-plan.ts";
import { mutations } from "./kit/mutations.ts";
import { runs } from "./kit/runs.ts";

/** How many plans had a pattern of each grouping. */
const groupings = new Map<string, number>();

describe("random plans against the naive planner and the simulator", () => {
  const cases = {
    "any reading, tiny shapes": {
      inputs: planInputs({ extent: 7, readings: ["split", "order", undefined] }),
      numRuns: runs(400),
    },
    "the split reading, uneven shapes": {
      inputs: planInputs({ extent: 12, readings: ["split"] }),
      numRuns: runs(400),
    },
    "one dimension, long enough to be cut": {
      inputs: planInputs({ extent: 2500, ndim: 1, bucketBytes: fc.constantFrom(4096, 4100, 6000) }),
      numRuns: runs(40),
    },
    "three dimensions": {
      inputs: planInputs({ extent: 5, ndim: 3, readings: ["split", "order"] }),
      numRuns: runs(200),
    },
  };
  for (const [name, { inputs, numRuns }] of Object.entries(cases)) {
    it(name, { timeout: 600_000 }, async () => {
      let planned = 0;
      const property = fc.asyncProperty(inputs, fc.nat(), async (input, seed) => {
        if (await checkAll(input, seed, groupings)) planned++;
      });
      await fc.assert(property, { seed: 3, numRuns });
      expect(planned).toBeGreaterThan(numRuns / 3);
    });
  }

  it("meet every way in which replicas share", () => {
    for (const groups of ["none", "all", "host"]) expect(groupings.get(groups), groups).toBeGreaterThan(40);
  });
});

/** Shapes of megabytes, which only the proof by intervals can follow. */
const largeInputs = planInputs({
  extent: 3000,
  ndim: 2,
  bucketBytes: fc.constantFrom(undefined, 1 << 16, 300_000),
});

describe("random plans of large tensors", () => {
  it("are proved, and their waves are few", async () => {
    const property = fc.asyncProperty(largeInputs, async (input) => {
      const plan = await planTransfer(input);
      const chunks = [...plan.chunks()];
      const buckets = [...plan.buckets()];
      verifyChunks(input, chunks, buckets);
      verifyRanks(input, (rank) => ({ chunks: plan.chunks({ rank }), buckets: plan.buckets({ rank }) }));
      checkWaves(buckets, input.peersInFlight ?? 4);
      expect(plan.digest).toBe((await planTransfer(structuredInput(input))).digest);
    });
    await fc.assert(property, { seed: 4, numRuns: runs(60) });
  });
});

/** The same input in other objects, its keys in another order. */
function structuredInput(input: PlanInput): PlanInput {
  const reversed = Object.fromEntries(Object.entries(input).reverse()) as unknown as PlanInput;
  return { ...reversed, tensors: input.tensors.map((tensor) => ({ ...tensor })) };
}

describe("the proof on mutated plans", () => {
  const inputs = planInputs({ extent: 9, readings: ["split"] });
  it("catches every mutation", async () => {
    const caught = new Map<string, number>();
    const names = Object.keys(mutations);
    const property = fc.asyncProperty(
      inputs,
      fc.constantFrom(...names),
      fc.nat(),
      async (input, name, seed) => {
        const plan = await planTransfer(input);
        const lists = { chunks: [...plan.chunks()], buckets: [...plan.buckets()] };
        const changed = mutations[name]!(input, lists, new Random(seed));
        if (changed === undefined) return;
        caught.set(name, (caught.get(name) ?? 0) + 1);
        expect(() => verifyChunks(input, changed.chunks, changed.buckets)).toThrow(
          expect.objectContaining({ code: "TB_PLAN_INVALID" }),
        );
      },
    );
    await fc.assert(property, { seed: 5, numRuns: runs(800) });
    expect(names.filter((name) => !caught.has(name))).toEqual([]);
  });
});
