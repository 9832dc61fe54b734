/** Cuts of tensors: every element once, and none larger than the buffers that memory is promised by. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Cut, countOf, cutRows, cutTiles } from "../../src/checkpoint/cut.ts";
import type { TensorKind } from "../../src/checkpoint/kinds.ts";
import { bufferBytes, cutWork, itemSizeOf, turnedDimension } from "../../src/checkpoint/work.ts";
import { type DType, itemSize } from "../../src/layout/index.ts";
import { contiguousStrides } from "../../src/layout/strides.ts";

const shapes = fc.array(fc.integer({ min: 0, max: 7 }), { minLength: 1, maxLength: 4 });

/** How often each element is in a cut, row-major. */
function counts(shape: readonly number[], cuts: readonly Cut[]): number[] {
  const found = new Array<number>(countOf(shape)).fill(0);
  const strides = contiguousStrides(shape);
  for (const { offsets, lengths } of cuts) {
    for (let element = 0; element < countOf(lengths); element++) {
      let rest = element;
      let at = 0;
      for (let dim = shape.length - 1; dim >= 0; dim--) {
        at += (offsets[dim]! + (rest % lengths[dim]!)) * strides[dim]!;
        rest = Math.floor(rest / lengths[dim]!);
      }
      found[at]!++;
    }
  }
  return found;
}

describe("cuts", () => {
  it("hold every element once, and no more than there is room for", () => {
    fc.assert(
      fc.property(shapes, fc.integer({ min: 1, max: 60 }), fc.nat(3), (shape, most, inner) => {
        const whole = { offsets: shape.map(() => 0), lengths: shape };
        for (const cuts of [
          [...cutRows(whole, most)],
          [...cutTiles(shape, Math.min(inner, shape.length - 1), most)],
        ]) {
          expect(counts(shape, cuts).every((count) => count === 1)).toBe(true);
          expect(cuts.every(({ lengths }) => countOf(lengths) <= most)).toBe(true);
        }
      }),
      { seed: 7, numRuns: 300 },
    );
  });

  it("by rows follow each other", () => {
    fc.assert(
      fc.property(shapes, fc.integer({ min: 1, max: 60 }), (shape, most) => {
        const strides = contiguousStrides(shape);
        let next = 0;
        for (const { offsets, lengths } of cutRows({ offsets: shape.map(() => 0), lengths: shape }, most)) {
          expect(offsets.reduce((sum, at, dim) => sum + at * strides[dim]!, 0)).toBe(next);
          next += countOf(lengths);
        }
        expect(next).toBe(countOf(shape));
      }),
      { seed: 8, numRuns: 300 },
    );
  });
});

describe("the work of a large tensor", () => {
  const kindOf = (
    shape: readonly number[],
    dtype: DType,
    to: DType,
    axes: readonly number[],
  ): TensorKind => ({
    shape,
    dtype,
    boxes: [{ file: 0, start: shape.map(() => 0), length: shape, strides: contiguousStrides(shape) }],
    destinations: [
      {
        file: 0,
        shape: axes.map((axis) => shape[axis]!),
        dtype: to,
        start: shape.map(() => 0),
        length: shape,
        at: axes.map(() => 0),
        axes,
      },
    ],
  });

  it.each([
    ["turned", [28_672, 8_192], "bfloat16", "bfloat16", [1, 0]],
    ["turned and cast to eight times its size", [4_096, 8_192], "float8_e4m3fn", "float64", [1, 0]],
    ["of experts that are turned", [16, 7_168, 2_048], "bfloat16", "bfloat16", [0, 2, 1]],
    ["of one row", [1, 2 ** 28], "float32", "float32", [0, 1]],
  ] as const)("%s fits into buffers", (_, shape, dtype, to, axes) => {
    const moved = kindOf(shape, dtype, to, axes);
    const items = cutWork([{ name: "w", kind: moved, from: [0], to: [0] }]);
    const most = turnedDimension(moved) === undefined ? 2 * bufferBytes : bufferBytes;
    for (const item of items)
      expect(
        (itemSizeOf(item, moved) / itemSize(dtype)) * Math.max(itemSize(dtype), itemSize(to)),
      ).toBeLessThanOrEqual(most);
    expect(items.reduce((sum, item) => sum + itemSizeOf(item, moved), 0)).toBe(
      countOf(shape) * itemSize(dtype),
    );
    // What is turned is read and written in runs of a kibibyte and more.
    const inner = turnedDimension(moved);
    if (inner !== undefined) {
      for (const dim of [inner, shape.length - 1])
        expect(items[0]!.lengths[dim]! * itemSize(dtype)).toBeGreaterThanOrEqual(Math.min(512, shape[dim]!));
    }
  });
});
