import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { DeviceMesh, type Plan, planTransfer, Replicate, Shard } from "../../src/plan/index.ts";
import { decide } from "../../src/plan/input/decisions.ts";
import { normalize } from "../../src/plan/input/normalize.ts";
import type { ChunkRow } from "../../src/plan/input/rows.ts";
import type { Chunk, PlanInput } from "../../src/plan/input/types.ts";
import { makeImage } from "../../src/plan/planner/image.ts";
import type { Subject } from "../../src/plan/planner/question.ts";
import { withTensorRows } from "../../src/plan/planner/rows.ts";
import { representatives, verifyTensors } from "../../src/plan/prove.ts";
import { verifyChunks } from "../../src/plan/verify/verify.ts";
import { planInputs } from "./kit/arbitrary.ts";

function subjectOf(input: PlanInput): Subject {
  const normal = normalize(input);
  return { input: normal, image: makeImage(normal, decide(normal)), table: undefined };
}

/** A chunk less what other tensors of its channel change: the bucket and the place in it. */
function placeOf({ id, bucket, ...place }: Chunk): string {
  return JSON.stringify(Object.entries(place).sort(), (_, value: unknown) =>
    typeof value === "bigint" ? Number(value) : value,
  );
}

function rowPlaceOf({ bucket, index, ...place }: ChunkRow): string {
  return JSON.stringify(Object.entries(place).sort());
}

describe("the proof tensor by tensor", () => {
  it("is of the chunks of the plan, all of them, and holds where that by chunk holds", async () => {
    let tensors = 0;
    const inputs = planInputs({ extent: 9, readings: ["split"] });
    const property = fc.asyncProperty(inputs, async (input) => {
      const plan = await planTransfer(input);
      const chunks = [...plan.chunks()];
      verifyChunks(input, chunks, plan.buckets());
      const subject = subjectOf(input);
      verifyTensors(subject, plan.input, input.tensors.keys());
      const alone: string[] = [];
      for (const tensor of input.tensors.keys())
        withTensorRows(subject, tensor, (rows) => rows.eachChunk((row) => void alone.push(rowPlaceOf(row))));
      expect(alone.sort()).toEqual(chunks.map(placeOf).sort());
      tensors += input.tensors.length;
    });
    await fc.assert(property, { seed: 9, numRuns: 400 });
    expect(tensors).toBeGreaterThan(800);
  });

  it("takes the first of every pattern, and others up to a number of chunks", async () => {
    const plan = await many(40);
    const { patterns } = plan.stats();
    const { input } = subjectOf(plan.input);
    const chosen = (most: number) => representatives(input, patterns, most);
    expect(chosen(0)).toEqual([0, 1]);
    expect(chosen(2 * (512 + 64))).toEqual([0, 1, 78, 79]);
    expect(chosen(2 ** 30).toSorted((a, b) => a - b)).toEqual([...input.tensorKinds.keys()]);
  });

  it("proves a plan of millions of chunks in seconds", async () => {
    const plan = await many(4000);
    expect(plan.stats().chunks).toBeGreaterThan(2 ** 20);
    plan.verify();
  });
});

/** Tensors of two patterns in turns: 512 chunks each of the one, 64 of the other. */
async function many(pairs: number): Promise<Plan> {
  const mesh = (first: number, ...shape: number[]) =>
    new DeviceMesh(shape, {
      ranks: Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, index) => first + index),
    });
  return planTransfer({
    pairs: {
      p: {
        source: { mesh: mesh(0, 64), placements: [Shard(0)] },
        target: { mesh: mesh(64, 8), placements: [Replicate()] },
      },
    },
    tensors: Array.from({ length: pairs * 2 }, (_, index) => ({
      name: `t${index}`,
      pair: "p",
      shape: index % 2 === 0 ? [64, 3] : [8],
      dtype: "int8",
    })),
  });
}
