import { describe, expect, test } from "vitest";
import { type BatchView, findAlias } from "../../src/exec/aliases.ts";
import { type StridedBytes, stridedOfTensor } from "../../src/exec/strided.ts";
import { Random } from "../kit/random.ts";

function view(
  kind: "source" | "target",
  bytes: StridedBytes,
  writes: readonly StridedBytes[] = [bytes],
): BatchView {
  return { tensor: 0, kind, bytes, writes: () => writes };
}

const run = (start: number, bytes: number) => stridedOfTensor(BigInt(start), [bytes], 1)!;

describe("aliases", () => {
  test("sources may overlap each other, and neighbours touch", () => {
    expect(findAlias([view("source", run(0, 100)), view("source", run(50, 100))])).toBeUndefined();
    expect(findAlias([view("source", run(0, 100)), view("target", run(100, 10))])).toBeUndefined();
  });

  test.each([
    ["a source", "source"],
    ["another target", "target"],
  ] as const)("a target that overlaps %s is found", (_, kind) => {
    const target = view("target", run(10, 10));
    const other = view(kind, run(19, 5));
    const alias = findAlias([other, target]);
    expect(new Set([alias?.target, alias?.other])).toEqual(new Set([target, other]));
  });

  test("a target that overlaps itself is found", () => {
    const broadcast = view("target", stridedOfTensor(0n, [4, 4], 4, [0, 1])!);
    expect(findAlias([broadcast])).toEqual({ target: broadcast, other: broadcast });
  });

  test("overlapping bytes on which nothing is written are allowed, the written ones are not", () => {
    const source = view("source", run(0, 100));
    expect(findAlias([source, view("target", run(0, 100), [])])).toBeUndefined();
    expect(findAlias([source, view("target", run(0, 200), [run(100, 100)])])).toBeUndefined();
    const target = view("target", run(0, 200), [run(99, 101)]);
    expect(findAlias([source, target])).toEqual({ target, other: source });
  });

  test("are found exactly where a naive search finds them", () => {
    const random = new Random(7);
    let found = 0;
    for (let round = 0; round < 600; round++) {
      const views = Array.from({ length: random.integer(2, 8) }, () => {
        const shape = [random.integer(1, 4), random.integer(1, 3)];
        const bytes = stridedOfTensor(BigInt(random.integer(0, 250)), shape, 2, [
          random.pick([6, 8, 16]),
          1,
        ])!;
        return view(random.chance(50) ? "target" : "source", bytes);
      });
      const naive = views.some((a) =>
        views.some((b) => a !== b && a.kind === "target" && sharesByte(a.bytes, b.bytes)),
      );
      expect(findAlias(views) !== undefined).toBe(naive);
      if (naive) found += 1;
    }
    expect(found).toBeGreaterThan(100);
    expect(found).toBeLessThan(500);
  });

  test("70,000 tensors that interleave in one matrix, with sources around, take no quadratic time", () => {
    const columns = 35_000;
    const column = (index: number) => stridedOfTensor(BigInt(index * 8), [64, 2], 4, [columns * 2, 1])!;
    const contiguous = (index: number) => run(2 ** 30 + index * 100, 100);
    const views = Array.from({ length: columns }, (_, index) => [
      view("target", column(index)),
      view("source", contiguous(index)),
    ]).flat();
    expect(findAlias(views)).toBeUndefined();
    const wide = view("target", stridedOfTensor(8n * 17_000n, [64, 3], 4, [columns * 2, 1])!);
    expect(findAlias([...views, wide])).toBeDefined();
  });
});

function sharesByte(a: StridedBytes, b: StridedBytes): boolean {
  const ofA = new Set(bytesOf(a));
  return bytesOf(b).some((byte) => ofA.has(byte));
}

function bytesOf({ start, loops, run: length }: StridedBytes): number[] {
  const places = loops.reduce(
    (all, { count, stride }) =>
      all.flatMap((at) => Array.from({ length: count }, (_, step) => at + step * stride)),
    [start],
  );
  return places.flatMap((at) => Array.from({ length }, (_, byte) => at + byte));
}
