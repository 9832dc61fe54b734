import { describe, expect, it } from "vitest";
import type { TensorBusError } from "../../src/errors.ts";
import {
  arithmeticTypes,
  type DType,
  dtypeNumber,
  dtypes,
  isDType,
  isOpaque,
  isPacked,
  itemSize,
  movedAs,
  partialOps,
  unitOf,
} from "../../src/layout/index.ts";

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
      ["uint16", 12, 2],
      ["uint32", 13, 4],
      ["uint64", 14, 8],
      ["complex64", 15, 8],
      ["float8_e8m0fnu", 16, 1],
      ["float8_e4m3fnuz", 17, 1],
      ["float8_e5m2fnuz", 18, 1],
      ["float4_e2m1fn", 19, 0.5],
      ["float6_e2m3fn", 20, 0.75],
      ["float6_e3m2fn", 21, 0.75],
    ]);
    expect(partialOps).toEqual(["sum", "avg", "product", "max", "min"]);
  });

  it("are moved as a type of as many bytes where they are only moved", () => {
    for (const dtype of dtypes) {
      const carrier = movedAs(dtype);
      expect(arithmeticTypes).toContain(carrier);
      expect(carrier === dtype).toBe(!isOpaque(dtype));
      const unit = unitOf(dtype);
      expect(unit.bytes).toBe(unit.elements * itemSize(dtype));
      expect(unit.bytes % itemSize(carrier)).toBe(0);
      expect(isPacked(dtype)).toBe(unit.elements > 1);
    }
  });

  it("are known by name only", () => {
    expect(isDType("bfloat16")).toBe(true);
    for (const name of ["torch.float32", "float", "", 1, undefined, "toString"])
      expect(isDType(name)).toBe(false);
  });

  it("refuse unknown names with TB_DTYPE", () => {
    expect.assertions(2);
    try {
      itemSize("complex128" as DType);
    } catch (error) {
      expect((error as TensorBusError).code).toBe("TB_DTYPE");
      expect((error as TensorBusError).details).toEqual({ dtype: "complex128", known: dtypes });
    }
  });
});
