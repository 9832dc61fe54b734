/** One item of a mover's work: read once, packed for each place that wants it, written there. */
import { TensorBusError } from "../errors.ts";
import { type DType, itemSize } from "../layout/index.ts";
import { contiguousStrides } from "../layout/strides.ts";
import { crc32c, describeElements, move } from "../memory/kernels.ts";
import { type Cut, countOf, cutRows } from "./cut.ts";
import { type OpenedFile, readAll } from "./opened-file.ts";
import type { StoredBox } from "./source.ts";
import type { Reader, Writer } from "./windows.ts";
import {
  bufferBytes,
  type Destination,
  elementsIn,
  isPermuting,
  type MovedTensor,
  turnedDimension,
} from "./work.ts";

/** What an item wrote: for each destination that it has a part in, in their order, the checksum of the packed part. */
export type ItemChecksums = readonly number[];

/** Buffers that are used again from item to item. */
export class Buffers {
  readonly #buffers = new Map<string, Buffer>();

  take(name: "slab" | "part" | "packed" | "stretch", bytes: number): Buffer {
    let buffer = this.#buffers.get(name);
    if (buffer === undefined || buffer.length < bytes) {
      buffer = Buffer.allocUnsafeSlow(bytes);
      this.#buffers.set(name, buffer);
    }
    return buffer.subarray(0, bytes);
  }
}

/** Reads an item and writes it to all of its places, block by block. */
export function scatterItem(
  tensor: MovedTensor,
  item: Cut,
  sources: Reader,
  targets: Writer,
  buffers: Buffers,
): ItemChecksums {
  const destinations = partsOf(tensor, item).map(({ destination }) => destination);
  const checksums = destinations.map(() => 0);
  for (const block of blocksOf(tensor, item)) {
    const slab = readSlab(tensor, block, sources, buffers);
    destinations.forEach((destination, index) => {
      const part = partOf(destination, block);
      if (part === undefined) return;
      const packed = packPart(tensor, block, part, slab, buffers);
      let done = 0;
      for (const run of fileRuns(part)) {
        targets.write(
          destination.file,
          packed.subarray(done, done + run.bytes),
          destination.position + run.at,
        );
        done += run.bytes;
      }
      checksums[index] = crc32c(packed, checksums[index]);
    });
  }
  return checksums;
}

/** What is read, packed, summed up and written while a processor's cache has it. */
const blockBytes = 2 ** 19;

/** The blocks of an item follow each other in each of its parts; one that is turned is packed as a whole. */
function blocksOf(tensor: MovedTensor, item: Cut): Iterable<Cut> {
  if (turnedDimension(tensor) !== undefined) return [item];
  return cutRows(item, elementsIn(blockBytes, tensor));
}

/** Says where the parts of an item lie in their files: their first runs, and whether that is all, in one piece. */
export function placesOf(
  tensor: MovedTensor,
  item: Cut,
): { readonly file: number; readonly at: number; readonly bytes: number; readonly isOne: boolean }[] {
  return partsOf(tensor, item).map((part) => {
    const { file, position } = part.destination;
    const [first, second] = fileRuns(part);
    return { file, at: position + first!.at, bytes: first!.bytes, isOne: second === undefined };
  });
}

/** Compares what lies in the files with the checksums of what was written there. `TB_VERIFY` names parameter and file. */
export function checkItem(
  tensor: MovedTensor,
  item: Cut,
  checksums: ItemChecksums,
  targets: readonly OpenedFile[],
  buffers: Buffers,
): number {
  let bytes = 0;
  partsOf(tensor, item).forEach((part, index) => {
    const { file, position } = part.destination;
    let crc = 0;
    for (const run of fileRuns(part)) {
      crc = sumStretch(targets[file]!, { at: position + run.at, bytes: run.bytes }, crc, buffers);
      bytes += run.bytes;
    }
    if (crc === checksums[index]) return;
    throw new TensorBusError(
      "TB_VERIFY",
      `${targets[file]!.path}: what was written of tensor ${tensor.name}, elements from [${item.offsets}] on, is not what was read`,
      { details: { file: targets[file]!.path, tensor: tensor.name, offsets: item.offsets } },
    );
  });
  return bytes;
}

/** The checksum of bytes of a file, read through a block's buffer; it continues from `crc`. */
export function sumStretch(file: OpenedFile, { at, bytes }: ByteRun, crc: number, buffers: Buffers): number {
  let sum = crc;
  for (let done = 0; done < bytes; done += blockBytes) {
    const found = buffers.take("packed", Math.min(blockBytes, bytes - done));
    readAll(file, found, at + done);
    sum = crc32c(found, sum);
  }
  return sum;
}

/** The part of an item that goes to one destination: a box in the tensor, and where it lies in the parameter. */
interface Part {
  readonly destination: Destination;
  /** In the tensor. */
  readonly start: readonly number[];
  readonly length: readonly number[];
  /** In the parameter, by its axes. */
  readonly at: readonly number[];
  readonly size: readonly number[];
}

function partsOf({ destinations }: MovedTensor, item: Cut): Part[] {
  return destinations.flatMap((destination) => partOf(destination, item) ?? []);
}

/** The part of an item, or of a block of one, that goes to a destination; `undefined` if nothing does. */
function partOf(destination: Destination, { offsets, lengths }: Cut): Part | undefined {
  const { axes, start: from, length: of, at: places } = destination;
  const start = from.map((at, dim) => Math.max(at, offsets[dim]!));
  const length = start.map((at, dim) => Math.min(from[dim]! + of[dim]!, offsets[dim]! + lengths[dim]!) - at);
  if (length.some((extent) => extent <= 0)) return undefined;
  const at = places.map((place, axis) =>
    axes[axis]! < 0 ? place : place + start[axes[axis]!]! - from[axes[axis]!]!,
  );
  const size = places.map((_, axis) => (axes[axis]! < 0 ? 1 : length[axes[axis]!]!));
  return { destination, start, length, at, size };
}

/** All elements of an item, packed, in the type of the source. */
function readSlab(tensor: MovedTensor, { offsets, lengths }: Cut, files: Reader, buffers: Buffers): Buffer {
  const item = itemSize(tensor.dtype);
  const slab = buffers.take("slab", countOf(lengths) * item);
  const strides = contiguousStrides(lengths);
  let missing = slab.length;
  for (const box of tensor.boxes) {
    const start = box.start.map((at, dim) => Math.max(at, offsets[dim]!));
    const length = start.map(
      (at, dim) => Math.min(box.start[dim]! + box.length[dim]!, offsets[dim]! + lengths[dim]!) - at,
    );
    if (length.some((extent) => extent <= 0)) continue;
    const bytes = countOf(length) * item;
    const isWhole = bytes === slab.length;
    const part = isWhole ? slab : buffers.take("part", bytes);
    readBox(files, box, start, length, tensor.dtype, part, buffers);
    missing -= bytes;
    if (isWhole) continue;
    const offset = start.reduce((sum, at, dim) => sum + (at - offsets[dim]!) * strides[dim]!, 0);
    const descriptor = describeElements(tensor.dtype, length, strides, offset);
    move({ bytes: slab, dtype: tensor.dtype, descriptor }, { bytes: part, dtype: tensor.dtype });
  }
  if (missing > 0) {
    throw new TensorBusError(
      "TB_TENSOR_MISSING",
      `tensor ${tensor.name}: no file holds all of the elements from [${offsets}] on, [${lengths}] of them`,
      { details: { tensor: tensor.name, offsets, lengths } },
    );
  }
  return slab;
}

/** The most bytes between that are read along with a box whose elements do not lie side by side. */
const mostGap = 4;

/** A box of a stored box, packed. */
function readBox(
  files: Reader,
  box: StoredBox,
  start: readonly number[],
  length: readonly number[],
  dtype: DType,
  into: Buffer,
  buffers: Buffers,
  isApart = false,
): void {
  const item = itemSize(dtype);
  const { file, position, start: from, strides } = box;
  const first = start.reduce((sum, index, dim) => sum + (index - from[dim]!) * strides[dim]!, 0);
  const span = length.reduce((sum, extent, dim) => sum + (extent - 1) * strides[dim]!, 1);
  const packed = contiguousStrides(length);
  if (isPacked(length, strides)) {
    if (isApart) files.readApart(file, into, position + first * item);
    else files.read(file, into, position + first * item);
  } else if (span * item <= Math.min(mostGap * into.length, bufferBytes)) {
    const stretch = buffers.take("stretch", span * item);
    files.read(file, stretch, position + first * item);
    move(
      { bytes: into, dtype },
      { bytes: stretch, dtype, descriptor: describeElements(dtype, length, strides) },
    );
  } else {
    // Row by row of the dimension whose rows lie farthest apart.
    const outer = strides.reduce(
      (most, stride, dim) => (length[dim]! > 1 && (most < 0 || stride > strides[most]!) ? dim : most),
      -1,
    );
    const rows = length.with(outer, 1);
    const row = Buffer.allocUnsafe(into.length / length[outer]!);
    for (let index = 0; index < length[outer]!; index++) {
      readBox(files, box, start.with(outer, start[outer]! + index), rows, dtype, row, buffers, true);
      const descriptor = describeElements(dtype, rows, packed, index * packed[outer]!);
      move({ bytes: into, dtype, descriptor }, { bytes: row, dtype });
    }
  }
}

/** A part as its file holds it: its axes in the parameter's order, in the parameter's type. */
function packPart(
  { dtype }: MovedTensor,
  { offsets, lengths }: Cut,
  { destination, start, length, size }: Part,
  slab: Buffer,
  buffers: Buffers,
): Buffer {
  const { axes } = destination;
  const count = countOf(size);
  const strides = contiguousStrides(lengths);
  const offset = start.reduce((sum, at, dim) => sum + (at - offsets[dim]!) * strides[dim]!, 0);
  if (destination.dtype === dtype && !isPermuting(axes) && isPacked(length, strides)) {
    return slab.subarray(offset * itemSize(dtype), (offset + count) * itemSize(dtype));
  }
  const packed = buffers.take("packed", count * itemSize(destination.dtype));
  const order = axes.filter((axis) => axis >= 0);
  const descriptor = describeElements(
    dtype,
    order.map((axis) => length[axis]!),
    order.map((axis) => strides[axis]!),
    offset,
  );
  move({ bytes: packed, dtype: destination.dtype }, { bytes: slab, dtype, descriptor });
  return packed;
}

/** True if the elements of a box follow each other without a gap. */
function isPacked(length: readonly number[], strides: readonly number[]): boolean {
  let run = 1;
  for (let dim = length.length - 1; dim >= 0; dim--) {
    if (length[dim]! > 1 && strides[dim] !== run) return false;
    run *= length[dim]!;
  }
  return true;
}

interface ByteRun {
  readonly at: number;
  readonly bytes: number;
}

function fileRuns({ destination, at, size }: Part): Iterable<ByteRun> {
  return runsOf(destination.shape, at, size, itemSize(destination.dtype));
}

/** The runs of bytes of a box of a row-major tensor, ascending; as few as there can be. */
function* runsOf(
  shape: readonly number[],
  at: readonly number[],
  length: readonly number[],
  item: number,
): Generator<ByteRun> {
  const strides = contiguousStrides(shape);
  let inner = shape.length;
  let elements = 1;
  while (inner > 0) {
    inner--;
    elements *= length[inner]!;
    if (length[inner] !== shape[inner]) break;
  }
  let first = at.reduce((sum, index, dim) => sum + index * strides[dim]!, 0);
  const index = new Array<number>(inner).fill(0);
  for (;;) {
    yield { at: first * item, bytes: elements * item };
    let dim = inner - 1;
    for (; dim >= 0; dim--) {
      first += strides[dim]!;
      if (++index[dim]! < length[dim]!) break;
      first -= length[dim]! * strides[dim]!;
      index[dim] = 0;
    }
    if (dim < 0) return;
  }
}
