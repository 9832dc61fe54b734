import { describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { DeviceMesh, type DeviceMeshOptions, maxRanks } from "../../src/layout/index.ts";

function refusal(shape: readonly number[], options?: DeviceMeshOptions): TensorBusError | undefined {
  try {
    new DeviceMesh(shape, options);
    return undefined;
  } catch (error) {
    if (error instanceof TensorBusError) return error;
    throw error;
  }
}

describe("DeviceMesh", () => {
  it("numbers its ranks from 0 unless told", () => {
    const mesh = new DeviceMesh([2, 3]);
    expect([...mesh.ranks]).toEqual([0, 1, 2, 3, 4, 5]);
    expect([mesh.ndim, mesh.size, mesh.dimNames]).toEqual([2, 6, undefined]);
  });

  it("keeps ranks in any order, and names", () => {
    const mesh = new DeviceMesh([2, 2], { ranks: [7, 0, 3, 5], dimNames: ["dp", "tp"] });
    expect([...mesh.ranks]).toEqual([7, 0, 3, 5]);
    expect(mesh.dimNames).toEqual(["dp", "tp"]);
  });

  it("does not follow later changes of what it was made from", () => {
    const shape = [2];
    const ranks = [4, 5];
    const mesh = new DeviceMesh(shape, { ranks });
    shape[0] = 9;
    ranks[0] = 9;
    expect(mesh.shape).toEqual([2]);
    expect([...mesh.ranks]).toEqual([4, 5]);
    expect(Object.isFrozen(mesh.shape)).toBe(true);
  });

  it("goes up to 2^20 ranks and 8 dimensions", () => {
    expect(new DeviceMesh([1024, 1024]).size).toBe(maxRanks);
    expect(new DeviceMesh([2, 1, 1, 1, 1, 1, 1, 2]).ndim).toBe(8);
    expect(refusal([1024, 1025])?.code).toBe("TB_MESH");
    expect(refusal([2 ** 40, 2 ** 40])?.code).toBe("TB_MESH");
    expect(refusal([1, 1, 1, 1, 1, 1, 1, 1, 1])?.code).toBe("TB_MESH");
  });

  it("refuses malformed sizes and ranks, and says which", () => {
    for (const shape of [[], [0], [-1], [1.5], [Number.NaN]]) expect(refusal(shape)?.code).toBe("TB_MESH");
    expect(refusal([2], { ranks: [0] })?.code).toBe("TB_MESH");
    expect(refusal([2], { ranks: [3, 3] })?.details).toEqual({ rank: 3 });
    expect(refusal([2], { ranks: [0, -1] })?.details).toEqual({ rank: -1 });
    expect(refusal([2], { ranks: [0, maxRanks] })?.details).toEqual({ rank: maxRanks });
    expect(refusal([2], { ranks: [0, 0.5] })?.code).toBe("TB_MESH");
    expect(refusal([2], { dimNames: ["a", "b"] })?.code).toBe("TB_MESH");
  });
});
