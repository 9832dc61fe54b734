/** One item of a mover's work: read once, packed for each place that wants it, written there. */
import { TensorBusError } from "../errors.ts";
import { type DType, itemSize } from "../layout/index.ts";
import { contiguousStrides } from "../layout/strides.ts";
import { crc32c, describeElements, move } from "../memory/kernels.ts";
import { type Cut, countOf, cutRows } from "./cut.ts";
import { type OpenedFile, readAll } from "./opened-file.ts";
import type { StoredBox } from "./source.ts";
import type { Reader, Writer } from "./windows.ts";
import { type Destination, elementsIn, isPermuting, type MovedTensor, turnedDimension } from "./work.ts";

/** What an item wrote: for each destination that it has a part in, in their order, the checksum of the packed part. */
export type ItemChecksums = readonly number[];

/** Buffers that are used again from item to item. */
export class Buffers {
  readonly #buffers = new Map<string, Buffer>();

  take(name: "slab" | "packed" | "stretch", bytes: number): Buffer {
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
  const slab: Slab = {
    bytes: buffers.take("slab", countOf(lengths) * item),
    dtype: tensor.dtype,
    offsets,
    strides: contiguousStrides(lengths),
  };
  let missing = slab.bytes.length;
  for (const box of tensor.boxes) {
    const start = box.start.map((at, dim) => Math.max(at, offsets[dim]!));
    const length = start.map(
      (at, dim) => Math.min(box.start[dim]! + box.length[dim]!, offsets[dim]! + lengths[dim]!) - at,
    );
    if (length.some((extent) => extent <= 0)) continue;
    readBox(files, box, { offsets: start, lengths: length }, slab, buffers);
    missing -= countOf(length) * item;
  }
  if (missing > 0) {
    throw new TensorBusError(
      "TB_TENSOR_MISSING",
      `tensor ${tensor.name}: no file holds all of the elements from [${offsets}] on, [${lengths}] of them`,
      { details: { tensor: tensor.name, offsets, lengths } },
    );
  }
  return slab.bytes;
}

/** What of a tensor is in memory: the elements from `offsets` on, by its dimensions. */
interface Slab {
  readonly bytes: Buffer;
  readonly dtype: DType;
  readonly offsets: readonly number[];
  readonly strides: readonly number[];
}

/** The most bytes between that are read along with a box whose elements do not lie side by side. */
const mostGap = 4;
/** What is read to be put in order is read in so many bytes: a processor's cache has them then. */
const stretchBytes = 2 ** 19;

/**
 * Reads what lies in a part of a tensor, all of it in one stored box, into its place in a slab. `isApart` is true for parts that
 * lie far from each other.
 */
function readBox(
  files: Reader,
  box: StoredBox,
  part: Cut,
  slab: Slab,
  buffers: Buffers,
  isApart = false,
): void {
  const item = itemSize(slab.dtype);
  const { file, strides } = box;
  const { offsets, lengths } = part;
  const count = countOf(lengths);
  const position = box.position + distance(offsets, box.start, strides) * item;
  const at = distance(offsets, slab.offsets, slab.strides);
  const read = (into: Buffer) =>
    isApart ? files.readApart(file, into, position) : files.read(file, into, position);
  if (isPacked(lengths, strides) && isPacked(lengths, slab.strides)) {
    read(slab.bytes.subarray(at * item, (at + count) * item));
    return;
  }
  const span = spanOf(lengths, strides);
  const isFull = span <= mostGap * count;
  if (isFull && span * item <= stretchBytes) {
    const stretch = buffers.take("stretch", span * item);
    read(stretch);
    const { bytes, dtype } = slab;
    move(
      { bytes, dtype, descriptor: describeElements(dtype, lengths, slab.strides, at) },
      { bytes: stretch, dtype, descriptor: describeElements(dtype, lengths, strides) },
    );
    return;
  }
  // Some rows, or one, of the dimension whose rows lie farthest apart.
  const outer = strides.reduce(
    (most, stride, dim) => (lengths[dim]! > 1 && (most < 0 || stride > strides[most]!) ? dim : most),
    -1,
  );
  const room = stretchBytes / item - spanOf(lengths.with(outer, 1), strides);
  const rows = isFull ? Math.max(1, Math.floor(room / strides[outer]!) + 1) : 1;
  for (let row = 0; row < lengths[outer]!; row += rows) {
    const some = {
      offsets: offsets.with(outer, offsets[outer]! + row),
      lengths: lengths.with(outer, Math.min(rows, lengths[outer]! - row)),
    };
    readBox(files, box, some, slab, buffers, isApart || !isFull);
  }
}

/** Elements from one place to another. */
function distance(to: readonly number[], from: readonly number[], strides: readonly number[]): number {
  return to.reduce((sum, index, dim) => sum + (index - from[dim]!) * strides[dim]!, 0);
}

/** Elements from the first of a box to behind its last. */
function spanOf(lengths: readonly number[], strides: readonly number[]): number {
  return lengths.reduce((sum, extent, dim) => sum + (extent - 1) * strides[dim]!, 1);
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
  const offset = distance(start, offsets, strides);
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
