import { afterEach, describe, expect, it, vi } from "vitest";
import { DeviceMesh, type Layout, Partial as PartialSum, Replicate } from "../../src/layout/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { BucketTable } from "../../src/plan/verify/buckets.ts";

afterEach(() => vi.restoreAllMocks());

/** Many small tensors that `n` ranks sum up and all of them get. */
async function looksOf(
  n: number,
  count: number,
): Promise<{ readonly looks: number; readonly chunks: number }> {
  const mesh = new DeviceMesh([n]);
  const source: Layout = { mesh, placements: [PartialSum("sum")] };
  const target: Layout = { mesh, placements: [Replicate()] };
  const tensors = Array.from({ length: count }, (_, index) => ({
    name: `w${index}`,
    pair: "p",
    shape: [8],
    dtype: "float32" as const,
  }));
  const plan = await planTransfer({ pairs: { p: { source, target } }, tensors });
  const looks = vi.spyOn(BucketTable.prototype, "waitsFor");
  plan.verify({ whole: true });
  return { looks: looks.mock.calls.length, chunks: Number(plan.chunkCount()) };
}

describe("the proof of a plan", () => {
  it("asks once what a bucket waits for, however many reads of reduced pieces are in it", async () => {
    const few = await looksOf(16, 64);
    const many = await looksOf(16, 1024);
    expect(many.chunks).toBe(few.chunks * 16);
    // Hardly more buckets, and many more reads in each.
    expect(few.looks).toBeGreaterThan(0);
    expect(many.looks).toBeLessThanOrEqual(few.looks * 2);
  });
});
