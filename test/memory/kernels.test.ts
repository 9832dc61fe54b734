import { describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import {
  accumulatorOf,
  crc32c,
  describeElements,
  finishReduce,
  HostMemory,
  move,
  reduce,
} from "../../src/memory/index.ts";

const code = (run: () => unknown): string => {
  try {
    run();
  } catch (error) {
    return error instanceof TensorBusError ? error.code : (error as Error).name;
  }
  return "no error";
};

describe("describeElements", () => {
  it("joins dimensions that follow each other without a gap", () => {
    expect([...describeElements("float32", [4, 3, 2], [6, 2, 1])]).toEqual([0n, 0n, 96n]);
    expect([...describeElements("float32", [4, 3], [10, 1], 5)]).toEqual([20n, 1n, 4n, 40n, 12n]);
    expect([...describeElements("int8", [2, 3, 4], [100, 8, 1])]).toEqual([0n, 2n, 2n, 100n, 3n, 8n, 4n]);
    expect([...describeElements("int16", [2, 3, 4], [24, 8, 2])]).toEqual([0n, 1n, 24n, 4n, 2n]);
    expect([...describeElements("bool", [], [], 7)]).toEqual([7n, 0n, 1n]);
    expect([...describeElements("bool", [1, 1], [99, 55])]).toEqual([0n, 0n, 1n]);
  });
});

describe("move", () => {
  it("transposes", () => {
    const rows = Int32Array.from({ length: 12 }, (_, index) => index);
    const columns = new Int32Array(12);
    move(
      { bytes: columns, dtype: "int32" },
      { bytes: rows, dtype: "int32", descriptor: describeElements("int32", [4, 3], [1, 4]) },
    );
    expect([...columns]).toEqual([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
  });

  it("casts between two strided tensors, and touches nothing between", () => {
    const from = Float32Array.from({ length: 20 }, (_, index) => index / 4);
    const to = new Uint16Array(30).fill(0xeeee);
    move(
      { bytes: to, dtype: "bfloat16", descriptor: describeElements("bfloat16", [3, 2], [10, 3], 1) },
      { bytes: from, dtype: "float32", descriptor: describeElements("float32", [3, 2], [5, 1]) },
    );
    const expected = new Uint16Array(30).fill(0xeeee);
    [0, 0.25, 1.25, 1.5, 2.5, 2.75].forEach((value, index) => {
      const bits = new Uint32Array(Float32Array.of(value).buffer)[0]! >>> 16;
      expected[1 + Math.floor(index / 2) * 10 + (index % 2) * 3] = bits;
    });
    expect([...to]).toEqual([...expected]);
  });

  it("works on memory, beyond 4 GiB too", async () => {
    await using memory = HostMemory.allocate(5n * 2n ** 30n);
    const offset = 4n * 2n ** 30n + 12n;
    move(
      { bytes: { memory, offset, bytes: 8n }, dtype: "float32" },
      { bytes: Float64Array.of(1.5, -2), dtype: "float64" },
    );
    expect([...memory.view(Float32Array, offset, 2)]).toEqual([1.5, -2]);
    expect(code(() => crc32c({ memory, offset: memory.bytes, bytes: 1n }))).toBe("RangeError");
    expect(code(() => crc32c({ memory, offset: -1n }))).toBe("RangeError");
  });

  it("refuses what leaves its bytes, differs in length, or is no descriptor", () => {
    const four = { bytes: new Float32Array(4), dtype: "float32" } as const;
    const with_ = (...words: bigint[]) => ({ ...four, descriptor: BigInt64Array.from(words) });
    expect(code(() => move(four, { bytes: new Float32Array(3), dtype: "float32" }))).toBe("TB_REGION");
    expect(code(() => move(with_(4n, 0n, 16n), four))).toBe("TB_REGION");
    expect(code(() => move(with_(0n, 0n, 15n), four))).toBe("TB_PLAN_FORMAT");
    expect(code(() => move(with_(0n, 1n, 16n), four))).toBe("TB_PLAN_FORMAT");
    expect(code(() => move(with_(0n, 0n, 16n, 0n), four))).toBe("TB_PLAN_FORMAT");
    expect(code(() => move({ ...four, dtype: "float31" as "float32" }, four))).toBe("TB_DTYPE");
  });

  it("moves nothing between two empty tensors", () => {
    move({ bytes: new Float32Array(0), dtype: "float32" }, { bytes: new Int8Array(0), dtype: "int8" });
  });
});

describe("reduce", () => {
  it("folds 16-bit floats in float32 and rounds once", () => {
    expect(accumulatorOf("bfloat16")).toBe("float32");
    expect(accumulatorOf("int16")).toBe("int16");
    const accumulator = new Float32Array(2);
    // 1 and 2^-8 in bfloat16, where 1 + 2^-8 is a tie: a sum of that type would stay at 1 for ever.
    const contributions = [
      Uint16Array.of(0x3f80, 0x3f80),
      Uint16Array.of(0x3b80, 0xc000),
      Uint16Array.of(0x3b80, 0),
    ];
    contributions.forEach((contribution, index) => {
      reduce(accumulator, contribution, { dtype: "bfloat16", op: "sum", first: index === 0 });
    });
    expect([...accumulator]).toEqual([1 + 2 ** -7, -1]);
    const out = new Uint16Array(2);
    finishReduce(out, accumulator, "bfloat16");
    expect([...out]).toEqual([0x3f81, 0xbf80]);
    finishReduce(out, accumulator, "bfloat16", 2n);
    expect([...out]).toEqual([0x3f01, 0xbf00]);
  });

  it("propagates NaN, wraps integers, and takes bool for or and and", () => {
    const floats = Float64Array.of(1, Number.NaN, 3);
    reduce(floats, Float64Array.of(Number.NaN, 2, 4), { dtype: "float64", op: "max", first: false });
    expect([...floats]).toEqual([Number.NaN, Number.NaN, 4]);
    const bytes = Int8Array.of(100, -128);
    reduce(bytes, Int8Array.of(100, -128), { dtype: "int8", op: "avg", first: false });
    expect([...bytes]).toEqual([-56, 0]);
    const flags = Uint8Array.of(0, 0, 1, 1);
    reduce(flags, Uint8Array.of(0, 1, 0, 1), { dtype: "bool", op: "product", first: false });
    expect([...flags]).toEqual([0, 0, 0, 1]);
  });

  it("refuses an accumulator that is too small, and avg of integers", () => {
    const options = { dtype: "float16", op: "sum", first: true } as const;
    expect(code(() => reduce(new Float32Array(3), new Uint16Array(4), options))).toBe("RangeError");
    expect(code(() => finishReduce(new Uint16Array(3), new Float32Array(4), "float16"))).toBe("RangeError");
    expect(code(() => finishReduce(new Int32Array(3), new Int32Array(3), "int32", 2n))).toBe("TB_PARTIAL_OP");
  });
});

describe("crc32c", () => {
  it("is Castagnoli's, and goes on from any place", () => {
    const bytes = Buffer.from("123456789");
    expect(crc32c(bytes)).toBe(0xe3069283);
    expect(crc32c(bytes.subarray(4), crc32c(bytes.subarray(0, 4)))).toBe(0xe3069283);
    expect(crc32c(new Uint8Array(0), 5)).toBe(5);
  });
});

describe("views that only a kernel reads", () => {
  it("are not freed under it, however hot the call", () => {
    const from = Buffer.alloc(2 ** 19, 7);
    const to = Buffer.alloc(128);
    let garbage: unknown[] = [];
    for (let call = 0; call < 30_000; call++) {
      const descriptor = describeElements("bfloat16", [4, 16], [2048, 1], (call % 4) * 16);
      move({ bytes: to, dtype: "bfloat16" }, { bytes: from, dtype: "bfloat16", descriptor });
      if (call % 8 === 0) garbage.push(new BigInt64Array(5).buffer);
      if (garbage.length > 1000) garbage = [];
    }
    expect(to.every((byte) => byte === 7)).toBe(true);
  });
});
