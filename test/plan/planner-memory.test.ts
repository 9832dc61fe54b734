import { describe, expect, it } from "vitest";
import { DeviceMesh, Partial, type Plan, planTransfer, Replicate, Shard } from "../../src/plan/index.ts";
import { idleBytes } from "../../src/plan/planner/wasm.ts";
import { Random } from "../kit/random.ts";

const input = (size: number) => ({
  pairs: {
    p: {
      source: { mesh: new DeviceMesh([2, 4]), placements: [Partial("sum"), Shard(0)] },
      target: { mesh: new DeviceMesh([4], { ranks: [6, 7, 8, 9] }), placements: [Shard(1)] },
    },
  },
  tensors: [{ name: "w", pair: "p", shape: [size, 64], dtype: "float32" as const }],
  bucketBytes: 4096,
});

function use(plan: Plan): void {
  for (const chunk of plan.chunks()) expect(chunk.bytes).toBeGreaterThan(0n);
  for (const bucket of plan.buckets({ rank: 7 })) expect(bucket.wave).toBeGreaterThanOrEqual(0);
  plan.stats();
  plan.program(6);
}

describe("memory of the planner", () => {
  it("does not grow over a thousand plans", async () => {
    for (let count = 0; count < 50; count++) use(await planTransfer(input(64)));
    const before = idleBytes();
    for (let count = 0; count < 1000; count++) use(await planTransfer(input(64)));
    expect(idleBytes()).toBe(before);
  });

  it("comes back from iterators that were left, and from calls that failed", async () => {
    const plan = await planTransfer(input(4096));
    const take = () => {
      for (const chunk of plan.chunks()) {
        expect(chunk.stage).toBe(0);
        break;
      }
    };
    take();
    const before = idleBytes();
    for (let count = 0; count < 100; count++) take();
    expect(idleBytes()).toBe(before);
    for (let count = 0; count < 10; count++) {
      expect(() => plan.program(0, { strides: { 0: { source: [2 ** 52, 2 ** 52] } } })).toThrow();
    }
    expect(idleBytes()).toBeLessThanOrEqual(before);
  });

  it("keeps the plans that were asked about last, and answers alike whether it does or not", async () => {
    const plans = await Promise.all([64, 96, 128, 160, 192, 224].map((size) => planTransfer(input(size))));
    const answer = (plan: Plan) =>
      JSON.stringify([
        [...plan.chunks({ rank: 7 })].map(({ id }) => id),
        [...plan.buckets()].map(({ id }) => id),
        [...plan.program(6).bytes],
        String(plan.chunkCount()),
      ]);
    const first = plans.map(answer);
    const random = new Random(5);
    for (let count = 0; count < 60; count++) {
      const index = random.below(plans.length);
      expect(answer(plans[index]!)).toBe(first[index]);
    }
  });

  it("is not shared by iterators that run at the same time", async () => {
    const plan = await planTransfer(input(64));
    const other = await planTransfer(input(96));
    const alone = [...plan.chunks()].map(({ id }) => id);
    const together: string[] = [];
    const third = other.buckets();
    for (const chunk of plan.chunks()) {
      together.push(chunk.id);
      third.next();
      if (together.length % 50 === 0) other.program(6);
    }
    expect(together).toEqual(alone);
  });

  it("is let go where it was large", async () => {
    const layout = { mesh: new DeviceMesh([512]), placements: [Shard(0)] };
    const plan = await planTransfer({
      pairs: { p: { source: layout, target: { mesh: new DeviceMesh([512]), placements: [Replicate()] } } },
      tensors: Array.from({ length: 4 }, (_, index) => ({
        name: `${index}`,
        pair: "p",
        shape: [512],
        dtype: "int8" as const,
      })),
    });
    let count = 0;
    for (const _ of plan.chunks()) count++;
    expect(count).toBe(4 * 512 * 512);
    expect(idleBytes()).toBeLessThanOrEqual(64 * 2 ** 20);
  });
});
