import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { fromFloat32, toFloat32 } from "../../src/bus/tensor/float-bits.ts";
import { storageOf } from "../../src/bus/tensor/shared-arena.ts";
import { SharedTensor } from "../../src/bus/tensor/shared-tensor.ts";
import { dtypes, isPacked, itemSize } from "../../src/layout/index.ts";

function counted(shape: readonly number[]): SharedTensor<"float32"> {
  const tensor = SharedTensor.allocate(shape, "float32");
  return tensor.fromFloat32(Array.from({ length: tensor.size }, (_, i) => i));
}

describe("a shared tensor", () => {
  it("is a typed array of zeros in shared memory, for every element type", () => {
    for (const dtype of dtypes) {
      if (isPacked(dtype)) {
        expect(() => SharedTensor.allocate([3, 6], dtype)).toThrow(/say uint8/);
        continue;
      }
      const tensor = SharedTensor.allocate([3, 5], dtype);
      expect(tensor.data.length).toBe(15);
      expect(tensor.data.BYTES_PER_ELEMENT).toBe(itemSize(dtype));
      expect(Number(tensor.data.at(-1))).toBe(0);
      expect(tensor).toMatchObject({ shape: [3, 5], strides: [5, 1], size: 15, isContiguous: true, dtype });
      expect(storageOf(tensor.data.buffer)?.storage).toBe(tensor.storage);
      expect(tensor.data.byteOffset % 64).toBe(0);
    }
    expect(SharedTensor.allocate([], "float64").data.length).toBe(1);
    expect(SharedTensor.allocate([4, 0], "int8").data.length).toBe(0);
    expect(() => SharedTensor.allocate([2, -1], "int8")).toThrow(RangeError);
    expect(() => SharedTensor.allocate([2 ** 40, 2 ** 40], "int8")).toThrow(RangeError);
    expect(() => SharedTensor.allocate([2], "float4" as "int8")).toThrow(
      expect.objectContaining({ code: "TB_DTYPE" }),
    );
  });

  it("has views that share its elements", () => {
    const tensor = counted([3, 4]);
    const column = tensor.select(1, -1);
    expect(column).toMatchObject({ shape: [3], strides: [4], isContiguous: false });
    expect([...column.toFloat32()]).toEqual([3, 7, 11]);
    column.data[4] = 70;
    expect(tensor.data[7]).toBe(70);
    column.fromFloat32([1, 2, 3]);
    expect([...tensor.toFloat32()]).toEqual([0, 1, 2, 1, 4, 5, 6, 2, 8, 9, 10, 3]);
    expect([...tensor.transpose(0, 1).slice(0, 0, 2).toFloat32()]).toEqual([0, 4, 8, 1, 5, 9]);
    expect([...tensor.slice(1, 1, -1).toFloat32()]).toEqual([1, 2, 5, 6, 9, 10]);
    expect([...tensor.slice(1, 0, 4, 3).toFloat32()]).toEqual([0, 1, 4, 2, 8, 3]);
    expect([...tensor.view([2, -1]).select(0, 1).toFloat32()]).toEqual([6, 2, 8, 9, 10, 3]);
    expect(tensor.slice(0, 2, 1).shape).toEqual([0, 4]);
    expect(() => tensor.transpose(0, 1).view([12])).toThrow(RangeError);
    expect(() => tensor.view([5, -1])).toThrow(RangeError);
    expect(() => tensor.select(2, 0)).toThrow(RangeError);
    expect(() => tensor.select(0, 3)).toThrow(RangeError);
    expect(() => tensor.transpose(0, 2)).toThrow(RangeError);
    expect(() => tensor.permute(0, 0)).toThrow(RangeError);
    expect(() => tensor.slice(0, 0, 3, 0)).toThrow(RangeError);
    expect(() => tensor.fromFloat32([1])).toThrow(RangeError);
  });

  it("reads every chain of views as indexing does", () => {
    const view = fc.oneof(
      fc.tuple(
        fc.constant("slice"),
        fc.nat(3),
        fc.integer({ min: -4, max: 4 }),
        fc.integer({ min: 1, max: 3 }),
      ),
      fc.tuple(fc.constant("select"), fc.nat(3), fc.nat(3), fc.constant(0)),
      fc.tuple(fc.constant("transpose"), fc.nat(3), fc.nat(3), fc.constant(0)),
      fc.tuple(fc.constant("view"), fc.nat(3), fc.nat(3), fc.constant(0)),
    );
    const property = fc.property(
      fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 4 }),
      fc.array(view, { maxLength: 4 }),
      (shape, views) => {
        let tensor = counted(shape);
        // Beside it: the values of the view, nested as its shape.
        let values = nest([...tensor.data], shape);
        for (const [kind, a, b, step] of views) {
          const dims = tensor.shape.length;
          if (dims === 0) break;
          const dim = a % dims;
          if (kind === "slice") {
            tensor = tensor.slice(dim, b, undefined, step);
            values = atDim(values, dim, (list) => list.slice(b).filter((_, i) => i % step === 0));
          } else if (kind === "select" && tensor.shape[dim]! > 0) {
            const index = b % tensor.shape[dim]!;
            tensor = tensor.select(dim, index);
            values = atDim(values, dim, (list) => list[index]);
          } else if (kind === "transpose" && tensor.size > 0) {
            const order = tensor.shape.map((_, i) => i);
            const other = b % dims;
            const swapped = order.with(dim, other).with(other, dim);
            const flat = indices(swapped.map((i) => tensor.shape[i]!)).map((index) =>
              pick(
                values,
                order.map((i) => index[swapped.indexOf(i)]!),
              ),
            );
            tensor = tensor.transpose(dim, other);
            values = nest(flat, tensor.shape);
          } else if (kind === "view" && tensor.isContiguous) {
            const flat = [...tensor.toFloat32()];
            tensor = tensor.view([-1]);
            values = flat;
          }
        }
        expect([...tensor.toFloat32()]).toEqual([values].flat(8));
      },
    );
    fc.assert(property, { seed: 3, numRuns: 300 });
  });

  it("has no values of types that are only moved", () => {
    expect(() => toFloat32(new Uint8Array(4), "float8_e8m0fnu")).toThrow(
      expect.objectContaining({ code: "TB_DTYPE" }),
    );
    expect(() => fromFloat32([1], "uint16")).toThrow(/float32 cannot be cast to uint16/);
  });

  it("has bit patterns for floats that JavaScript has no array for", () => {
    const values = Float32Array.of(0, -1.5, 448, 3.14, 1e30, Number.NaN);
    const read = (dtype: (typeof dtypes)[number]) => [...toFloat32(fromFloat32(values, dtype), dtype)];
    expect([...fromFloat32([1, -2], "bfloat16")]).toEqual([0x3f80, 0xc000]);
    expect([...fromFloat32([1, -2], "float16")]).toEqual([0x3c00, 0xc000]);
    expect([...fromFloat32([1, -2], "float8_e4m3fn")]).toEqual([0x38, 0xc0]);
    expect([...fromFloat32([1, -2], "float8_e5m2")]).toEqual([0x3c, 0xc0]);
    expect(read("bfloat16").slice(0, 4)).toEqual([0, -1.5, 448, 3.140625]);
    expect(read("float16").slice(3)).toEqual([3.140625, Number.POSITIVE_INFINITY, Number.NaN]);
    expect(read("float8_e5m2").slice(0, 4)).toEqual([0, -1.5, 448, 3]);
    const tensor = SharedTensor.allocate([2, 3], "bfloat16").fromFloat32(values);
    expect(tensor.data[1]).toBe(0xbfc0);
    expect(() => toFloat32(new Uint8Array(3), "bfloat16")).toThrow(TypeError);
  });
});

describe("small tensors", () => {
  it("share mappings and descriptors, which grow with bytes", () => {
    const tensors = Array.from({ length: 70_000 }, () => SharedTensor.allocate([16, 8], "float32"));
    const storages = new Set(tensors.map(({ storage }) => storage));
    const bytes = 70_000 * 512;
    // Arenas double: a dozen of them hold more than that many bytes.
    expect(storages.size).toBeLessThan(8);
    const taken = [...storages].reduce((sum, { memory }) => sum + Number(memory.bytes), 0);
    expect(taken).toBeLessThan(3 * bytes);
    const places = new Set(
      tensors.map(({ data }) => `${storageOf(data.buffer)!.storage.identity().inode} ${data.byteOffset}`),
    );
    expect(places.size).toBe(70_000);
    const large = SharedTensor.allocate([2 ** 21], "float64");
    expect(large.storage.memory.bytes).toBe(2n ** 24n);
  });
});

type Nested = number | Nested[];

function nest(flat: number[], shape: readonly number[]): Nested {
  if (shape.length === 0) return flat[0]!;
  const [extent, ...rest] = shape as [number, ...number[]];
  const size = rest.reduce((product, each) => product * each, 1);
  return Array.from({ length: extent }, (_, i) => nest(flat.slice(i * size, (i + 1) * size), rest));
}

function atDim(values: Nested, dim: number, change: (list: Nested[]) => Nested | undefined): Nested {
  const list = values as Nested[];
  return dim === 0 ? change(list)! : list.map((each) => atDim(each, dim - 1, change));
}

function indices(shape: readonly number[]): number[][] {
  return shape.reduce<number[][]>(
    (all, extent) => all.flatMap((index) => Array.from({ length: extent }, (_, i) => [...index, i])),
    [[]],
  );
}

function pick(values: Nested, index: readonly number[]): number {
  return index.reduce<Nested>((at, i) => (at as Nested[])[i]!, values) as number;
}
