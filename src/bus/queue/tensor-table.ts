/**
 * The tensors of a RegisterTensors command: columns instead of a map for each, so that 70,000 of them take a few
 * megabytes, and are packed and checked in milliseconds. Numbers are little-endian; shapes and strides of all tensors
 * stand one behind the other.
 */
import * as z from "zod";
import { TensorBusError } from "../../errors.ts";
import { type DType, dtypeNumber, dtypes, isDType, isPacked } from "../../layout/dtype.ts";

/** One local tensor of a client, as its agent needs to know it. */
export interface TensorRecord {
  /** Default: its index in the batch. */
  readonly name?: string;
  /** The pair that it travels through. */
  readonly pair: string;
  readonly dtype: DType;
  readonly shape: readonly bigint[];
  /** Elements from one index to the next, for each dimension. */
  readonly strides: readonly bigint[];
  /** Index of its memory in the command's regions. */
  readonly region: number;
  /** Bytes from the region's start to the element (0, …, 0). */
  readonly offset: bigint;
  /** Only if the local shapes leave it open. */
  readonly globalShape?: readonly bigint[];
  /** Index in the command's layouts; default: the layout of its pair. */
  readonly layout?: number;
}

const maxTensors = 1_000_000;
/** In the column of layouts: the layout of the tensor's pair. */
const pairLayout = 0xffff;
/** The most layouts that the tensors of one command can name. */
export const maxTableLayouts = pairLayout;
const maxDims = 64;

const bytes = z.instanceof(Uint8Array);
const text = z.string().min(1).max(4096);

export const tensorTableSchema = z.strictObject({
  count: z.int().min(1).max(maxTensors),
  pairs: z.array(text).min(1).max(65_536),
  /** Empty, or one for each tensor; the empty string stands for the index. */
  names: z.array(z.string().max(4096)).max(maxTensors),
  /** u16 each: index in pairs. */
  pair: bytes,
  /** Empty, or u16 each: index in the command's layouts, 0xffff for the layout of the tensor's pair. */
  layout: bytes,
  /** u8 each: number of the element type. */
  dtype: bytes,
  /** u8 each: number of dimensions. */
  dims: bytes,
  /** u32 each. */
  region: bytes,
  /** u64 each. */
  offset: bytes,
  /** i64 for each dimension of each tensor. */
  shape: bytes,
  strides: bytes,
  /** Global shapes of the tensors that have one: index, then decimal text of each size. */
  globalShapes: z.array(z.tuple([z.int().min(0), z.array(z.string().regex(/^\d{1,19}$/)).max(maxDims)])),
});
export type TensorTable = z.infer<typeof tensorTableSchema>;

function refuse(index: number, what: string, details: Record<string, unknown> = {}): TensorBusError {
  return new TensorBusError("TB_COMMAND", `tensor ${index}: ${what}`, {
    details: { tensor: index, ...details },
  });
}

/** Columns of records. `TB_COMMAND` for what no column can hold. */
export function encodeTensorTable(records: readonly TensorRecord[]): TensorTable {
  const count = records.length;
  if (count === 0) throw new TensorBusError("TB_COMMAND", "a batch needs at least one tensor");
  if (count > maxTensors)
    throw new TensorBusError("TB_COMMAND", `a batch has at most ${maxTensors} tensors, not ${count}`);
  const pairs = new Map<string, number>();
  const dimensions = records.reduce((sum, { shape }) => sum + shape.length, 0);
  const pair = Buffer.alloc(count * 2);
  const dtype = Buffer.alloc(count);
  const dims = Buffer.alloc(count);
  const region = Buffer.alloc(count * 4);
  const offset = Buffer.alloc(count * 8);
  const shape = Buffer.alloc(dimensions * 8);
  const strides = Buffer.alloc(dimensions * 8);
  const globalShapes: [number, string[]][] = [];
  let at = 0;
  records.forEach((record, i) => {
    if (record.shape.length > maxDims || record.shape.length !== record.strides.length) {
      throw refuse(i, "its shape and strides do not fit together", {
        shape: record.shape,
        strides: record.strides,
      });
    }
    let pairIndex = pairs.get(record.pair);
    if (pairIndex === undefined) {
      pairIndex = pairs.size;
      pairs.set(record.pair, pairIndex);
    }
    pair.writeUInt16LE(pairIndex, i * 2);
    dtype[i] = dtypeNumber(record.dtype);
    dims[i] = record.shape.length;
    region.writeUInt32LE(record.region, i * 4);
    offset.writeBigUInt64LE(record.offset, i * 8);
    for (let d = 0; d < record.shape.length; d++, at += 8) {
      shape.writeBigInt64LE(record.shape[d]!, at);
      strides.writeBigInt64LE(record.strides[d]!, at);
    }
    if (record.globalShape !== undefined) globalShapes.push([i, record.globalShape.map(String)]);
  });
  const placed = records.some(({ layout }) => layout !== undefined);
  const layout = Buffer.alloc(placed ? count * 2 : 0);
  if (placed) {
    records.forEach((record, i) => {
      layout.writeUInt16LE(record.layout ?? pairLayout, i * 2);
    });
  }
  const named = records.some(({ name }) => name !== undefined);
  const names = named ? records.map(({ name }) => name ?? "") : [];
  return {
    count,
    pairs: [...pairs.keys()],
    names,
    pair,
    layout,
    dtype,
    dims,
    region,
    offset,
    shape,
    strides,
    globalShapes,
  };
}

const widths = { pair: 2, dtype: 1, dims: 1, region: 4, offset: 8 } as const;

function bufferOf(view: Uint8Array): Buffer {
  return Buffer.from(view.buffer, view.byteOffset, view.byteLength);
}

/**
 * The records of a table that came in a message with that many regions and layouts. `TB_COMMAND` for whatever does not fit.
 */
export function decodeTensorTable(table: TensorTable, regions: number, layouts = 0): TensorRecord[] {
  const { count, pairs, names } = table;
  for (const [name, width] of Object.entries(widths) as [keyof typeof widths, number][]) {
    if (table[name].length !== count * width) {
      throw new TensorBusError(
        "TB_COMMAND",
        `column ${name} has ${table[name].length} bytes for ${count} tensors`,
      );
    }
  }
  if (table.layout.length !== 0 && table.layout.length !== count * 2) {
    throw new TensorBusError(
      "TB_COMMAND",
      `column layout has ${table.layout.length} bytes for ${count} tensors`,
    );
  }
  const dimensions = table.dims.reduce((sum, dims) => sum + dims, 0);
  if (table.shape.length !== dimensions * 8 || table.strides.length !== dimensions * 8) {
    throw new TensorBusError(
      "TB_COMMAND",
      `the columns of shapes and strides do not fit ${dimensions} dimensions`,
    );
  }
  if (names.length !== 0 && names.length !== count) {
    throw new TensorBusError("TB_COMMAND", `the command has ${names.length} names for ${count} tensors`);
  }
  const globalShapes = new Map(table.globalShapes.map(([index, sizes]) => [index, sizes.map(BigInt)]));
  const [pair, region, offset] = [bufferOf(table.pair), bufferOf(table.region), bufferOf(table.offset)];
  const [shapes, strides] = [bufferOf(table.shape), bufferOf(table.strides)];
  const layoutOf = layoutReader(table.layout, layouts);
  let at = 0;
  return Array.from({ length: count }, (_, i) => {
    const dims = table.dims[i]!;
    const record = {
      pair: pairs[pair.readUInt16LE(i * 2)],
      dtype: dtypes[table.dtype[i]!],
      shape: readWords(shapes, at, dims),
      strides: readWords(strides, at, dims),
      region: region.readUInt32LE(i * 4),
      offset: offset.readBigUInt64LE(i * 8),
    };
    at += dims * 8;
    if (record.pair === undefined) throw refuse(i, "its pair is not in the command");
    if (!isDType(record.dtype)) throw refuse(i, "its element type is unknown", { dtype: table.dtype[i] });
    if (isPacked(record.dtype)) throw refuse(i, `elements of ${record.dtype} share bytes: register uint8`);
    if (record.region >= regions) throw refuse(i, `its region ${record.region} is not in the command`);
    if (record.shape.some((size) => size < 0n))
      throw refuse(i, "its shape has a negative size", { shape: record.shape });
    const { name, globalShape } = { name: names[i] || undefined, globalShape: globalShapes.get(i) };
    const layout = layoutOf(i);
    return {
      ...(record as TensorRecord),
      ...(name === undefined ? {} : { name }),
      ...(layout === undefined ? {} : { layout }),
      ...(globalShape === undefined ? {} : { globalShape }),
    };
  });
}

function layoutReader(column: Uint8Array, layouts: number): (tensor: number) => number | undefined {
  if (column.length === 0) return () => undefined;
  const words = bufferOf(column);
  return (tensor) => {
    const layout = words.readUInt16LE(tensor * 2);
    if (layout === pairLayout) return undefined;
    if (layout >= layouts) throw refuse(tensor, `its layout ${layout} is not in the command`);
    return layout;
  };
}

function readWords(from: Buffer, offset: number, count: number): bigint[] {
  const words = new Array<bigint>(count);
  for (let i = 0; i < count; i++) words[i] = from.readBigInt64LE(offset + i * 8);
  return words;
}
