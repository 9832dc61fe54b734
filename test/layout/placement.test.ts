import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import {
  formatPlacement,
  Partial,
  type PartialOp,
  type Placement,
  parsePlacement,
  partialOps,
  Replicate,
  Shard,
  StridedShard,
} from "../../src/layout/index.ts";

fc.configureGlobal({ seed: 20_261 });

function codeOf(run: () => unknown): string | undefined {
  try {
    run();
    return undefined;
  } catch (error) {
    return error instanceof TensorBusError ? error.code : String(error);
  }
}

const placements: fc.Arbitrary<Placement> = fc.oneof(
  fc.integer().map((dim) => Shard(dim)),
  fc.tuple(fc.integer(), fc.array(fc.nat(), { minLength: 1 })).map(([dim, sizes]) => Shard(dim, { sizes })),
  fc.tuple(fc.integer(), fc.integer()).map(([dim, factor]) => StridedShard(dim, factor)),
  fc.constant(Replicate()),
  fc.constantFrom(...partialOps).map((op) => Partial(op)),
);

describe("placements as text", () => {
  it("come back from their short form", () => {
    fc.assert(
      fc.property(placements, (placement) => {
        expect(parsePlacement(formatPlacement(placement))).toEqual(placement);
      }),
      { seed: 1 },
    );
  });

  it("read PyTorch's own forms", () => {
    expect(parsePlacement("Shard(dim=0)")).toEqual(Shard(0));
    expect(parsePlacement("Shard(-1)")).toEqual(Shard(-1));
    expect(parsePlacement("_StridedShard(dim=1, sf=4)")).toEqual(StridedShard(1, 4));
    expect(parsePlacement(" SS( 0 , 2 ) ")).toEqual(StridedShard(0, 2));
    expect(parsePlacement("Replicate()")).toEqual(Replicate());
    expect(parsePlacement("Shard(dim=0; 3, 0, 2)")).toEqual(Shard(0, { sizes: [3, 0, 2] }));
    expect(parsePlacement("R")).toEqual(Replicate());
    expect(parsePlacement("Partial(sum)")).toEqual(Partial("sum"));
    expect(parsePlacement("P")).toEqual(Partial());
  });

  it("refuse what is none", () => {
    const wrong = [
      "",
      "S",
      "S()",
      "S(a)",
      "S(0;)",
      "S(0;1;2)",
      "S(0;-1)",
      "S(0;1.5)",
      "S(;1)",
      "SS(0,2;1)",
      "R(;1)",
      "P(sum;1)",
      "S(1.5)",
      "S(0,1)",
      "SS(0)",
      "SS(0,1,2)",
      "R(0)",
      "X(0)",
      "S(0) S(1)",
      "P(sum,2)",
    ];
    for (const text of wrong)
      expect([text, codeOf(() => parsePlacement(text))]).toEqual([text, "TB_PLACEMENT"]);
    expect(codeOf(() => parsePlacement("P(mean)"))).toBe("TB_PARTIAL_OP");
    expect(codeOf(() => parsePlacement("S(99999999999999999999)"))).toBe("TB_PLACEMENT");
  });
});

describe("placements as values", () => {
  it("are plain data", () => {
    expect(Shard(0)).toEqual({ kind: "shard", dim: 0 });
    expect(StridedShard(-1, 2)).toEqual({ kind: "stridedShard", dim: -1, splitFactor: 2 });
    expect(Partial()).toEqual({ kind: "partial", op: "sum" });
  });

  it("refuse what is no integer, and operators that are unknown", () => {
    expect(codeOf(() => Shard(0.5))).toBe("TB_PLACEMENT");
    expect(codeOf(() => StridedShard(0, Number.NaN))).toBe("TB_PLACEMENT");
    expect(codeOf(() => Partial("mean" as PartialOp))).toBe("TB_PARTIAL_OP");
  });
});
