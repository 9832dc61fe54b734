/** Global shapes from local ones: for any layout, what its holdings were made from. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type SideContext, solveSide } from "../../src/bus/batch/global-shape.ts";
import type { TensorTable } from "../../src/bus/batch/tensor-kinds.ts";
import { layoutMessage } from "../../src/bus/client/layout.ts";
import { DeviceMesh, holdingOf, type Layout, parsePlacement } from "../../src/layout/index.ts";

fc.configureGlobal({ seed: 20_261 });

function contextOf(layout: Layout | undefined, ranks: readonly number[]): SideContext {
  const message = layout && layoutMessage({ ...layout, deviceMesh: layout.mesh }, layout.mesh.ranks[0]!);
  return {
    side: "trainer",
    pairs: [{ pair: "weights", layout: message, whole: layout === undefined }],
    ranks,
    layouts: ranks.map(() => []),
    nameOf: String,
  };
}

function tableOf(...shapes: (readonly number[])[]): TensorTable {
  return {
    kinds: shapes.map((shape) => ({ pair: 0, dtype: "float32" as const, shape })),
    kindOf: Uint32Array.from(shapes.keys()),
  };
}

describe("the shape of a side's tensors", () => {
  it("is what any layout was applied to, uneven and empty shards among it", () => {
    const placements = fc.constantFrom("S(0)", "S(1)", "S(-1)", "R", "P(sum)");
    const cases = fc.tuple(
      fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 3 })),
      fc.tuple(placements, placements),
      fc.array(fc.tuple(fc.nat(9), fc.nat(9)), { minLength: 1, maxLength: 4 }),
    );
    fc.assert(
      fc.property(cases, ([meshShape, texts, shapes]) => {
        const mesh = new DeviceMesh(meshShape);
        const layout: Layout = { mesh, placements: texts.map(parsePlacement) };
        const ranks = [...mesh.ranks];
        const tables = ranks.map((rank) =>
          tableOf(...shapes.map((shape) => holdingOf(layout, shape, rank)!.localShape)),
        );
        const { tables: solved, tableOf: tableOfRank } = solveSide(tables, contextOf(layout, ranks));
        expect(solved).toHaveLength(1);
        expect(tableOfRank).toEqual(ranks.map(() => 0));
        const [table] = solved as [TensorTable];
        expect([...table.kindOf].map((kind) => table.kinds[kind]!.shape)).toEqual(shapes);
      }),
      { seed: 7, numRuns: 300 },
    );
  });

  it("of strided shards is found in either reading", () => {
    const mesh = new DeviceMesh([2, 2]);
    for (const stridedShard of ["split", "order"] as const) {
      const placements = [parsePlacement("SS(0,2)"), parsePlacement("S(0)")];
      const ranks = [...mesh.ranks];
      const tables = ranks.map((rank) =>
        tableOf(holdingOf({ mesh, placements, stridedShard }, [7], rank)!.localShape),
      );
      const { tables: solved } = solveSide(tables, contextOf({ mesh, placements }, ranks));
      expect(solved[0]!.kinds[0]!.shape).toEqual([7]);
    }
  });

  it("without a layout is each rank's own", () => {
    const { tables, tableOf: tableOfRank } = solveSide(
      [tableOf([2]), tableOf([3]), tableOf([2])],
      contextOf(undefined, [4, 5, 6]),
    );
    expect(tableOfRank).toEqual([0, 1, 0]);
    expect(tables.map(({ kinds }) => kinds[0]!.shape)).toEqual([[2], [3]]);
  });

  it("names the rank that does not fit, and both values", () => {
    const mesh = new DeviceMesh([3], { ranks: [7, 8, 9] });
    const layout: Layout = { mesh, placements: [parsePlacement("S(0)")] };
    const solve =
      (...shapes: number[][]) =>
      () =>
        solveSide(
          shapes.map((shape) => tableOf(shape)),
          contextOf(layout, [7, 8, 9]),
        );
    const details = { pair: "weights", side: "trainer", tensor: "0" };
    expect(solve([2, 4], [2, 4], [3, 4])).toThrow(
      expect.objectContaining({
        code: "TB_SHAPE",
        details: expect.objectContaining({ ...details, rank: 7, value: [2, 4], expected: [3, 4] }),
      }),
    );
    expect(solve([2, 4], [2, 5], [2, 4])).toThrow(
      expect.objectContaining({
        code: "TB_SHAPE",
        details: expect.objectContaining({ ...details, rank: 8 }),
      }),
    );
    const typed: TensorTable = { kinds: [{ pair: 0, dtype: "int8", shape: [2] }], kindOf: Uint32Array.of(0) };
    expect(() => solveSide([tableOf([2]), typed, tableOf([2])], contextOf(layout, [7, 8, 9]))).toThrow(
      expect.objectContaining({
        code: "TB_BATCH_MISMATCH",
        details: expect.objectContaining({ rank: 8, field: "dtype", value: "int8", expected: "float32" }),
      }),
    );
  });
});
