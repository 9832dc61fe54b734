import { describe, expect, it } from "vitest";
import type { TensorBusError } from "../../src/errors.ts";
import { type DType, dtypeNumber, dtypes, isDType, itemSize, partialOps } from "../../src/layout/index.ts";

describe("element types", () => {
  // Saved plans, programs and C hold these numbers: a change here is a change of their formats.
  it("have the numbers and sizes that formats rely on", () => {
    const table = dtypes.map((dtype) => [dtype, dtypeNumber(dtype), itemSize(dtype)]);
    expect(table).toEqual([
      ["float64", 0, 8],
      ["float32", 1, 4],
      ["float16", 2, 2],
      ["bfloat16", 3, 2],
      ["float8_e4m3fn", 4, 1],
      ["float8_e5m2", 5, 1],
      ["int64", 6, 8],
      ["int32", 7, 4],
      ["int16", 8, 2],
      ["int8", 9, 1],
      ["uint8", 10, 1],
      ["bool", 11, 1],
    ]);
    expect(partialOps).toEqual(["sum", "avg", "product", "max", "min"]);
  });

  it("are known by name only", () => {
    expect(isDType("bfloat16")).toBe(true);
    for (const name of ["torch.float32", "float", "", 1, undefined, "toString"])
      expect(isDType(name)).toBe(false);
  });

  it("refuse unknown names with TB_DTYPE", () => {
    expect.assertions(2);
    try {
      itemSize("complex64" as DType);
    } catch (error) {
      expect((error as TensorBusError).code).toBe("TB_DTYPE");
      expect((error as TensorBusError).details).toEqual({ dtype: "complex64", known: dtypes });
    }
  });
});
