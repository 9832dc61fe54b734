import { describe, expect, test } from "vitest";
import {
  endOf,
  overlaps,
  overlapsItself,
  type StridedBytes,
  stridedOfDescriptor,
  stridedOfTensor,
} from "../../src/exec/strided.ts";
import { Random } from "../kit/random.ts";

/** The bytes of every element, one list an element. */
function elements(
  start: number,
  shape: readonly number[],
  strides: readonly number[],
  item: number,
): number[][] {
  let places = [start];
  shape.forEach((count, dim) => {
    places = places.flatMap((at) =>
      Array.from({ length: count }, (_, step) => at + step * strides[dim]! * item),
    );
  });
  return places.map((at) => Array.from({ length: item }, (_, byte) => at + byte));
}

interface RandomView {
  readonly view: StridedBytes;
  readonly elements: readonly (readonly number[])[];
}

function randomView(random: Random): RandomView {
  const item = random.pick([1, 2, 4]);
  const shape = Array.from({ length: random.integer(0, 3) }, () => random.integer(1, 5));
  const strides = shape.map(() => random.integer(random.chance(10) ? 0 : 1, 12));
  const start = random.integer(0, 60);
  return {
    view: stridedOfTensor(BigInt(start), shape, item, strides)!,
    elements: elements(start, shape, strides, item),
  };
}

describe("strided bytes", () => {
  test("agree with the bytes of every element, for random views", () => {
    const random = new Random(1);
    const seen = { disjoint: 0, overlapping: 0, selfish: 0 };
    for (let round = 0; round < 4000; round++) {
      const [a, b] = [randomView(random), randomView(random)];
      const ofA = new Set(a.elements.flat());
      const shared = b.elements.flat().some((byte) => ofA.has(byte));
      const self = ofA.size < a.elements.flat().length;
      expect(endOf(a.view)).toBe(Math.max(...ofA) + 1);
      expect(overlaps(a.view, b.view)).toBe(shared);
      expect(overlaps(b.view, a.view)).toBe(shared);
      expect(overlapsItself(a.view)).toBe(self);
      seen[shared ? "overlapping" : "disjoint"] += 1;
      if (self) seen.selfish += 1;
    }
    expect(Math.min(seen.disjoint, seen.overlapping, seen.selfish)).toBeGreaterThan(200);
  });

  test("of an empty tensor are none", () => {
    expect(stridedOfTensor(0n, [3, 0, 2], 4)).toBeUndefined();
  });

  test("of a descriptor are those of the tensor it describes", () => {
    const words = BigInt64Array.of(8n, 2n, 5n, 96n, 3n, 16n, 8n);
    expect(stridedOfDescriptor(words, 1000n)).toEqual(stridedOfTensor(1008n, [5, 3, 2], 4, [24, 4, 1]));
  });

  test("that interleave over millions of elements are told apart without visiting them", () => {
    const matrix = (column: number) => stridedOfTensor(BigInt(column * 4), [1 << 22, 3], 4, [1 << 10, 1])!;
    expect(overlaps(matrix(0), matrix(3))).toBe(false);
    expect(overlaps(matrix(0), matrix(2))).toBe(true);
  });
});
