/** One item of a mover's work: read once, packed for each place that wants it, written there. */
import { TensorBusError } from "../errors.ts";
import { type DType, itemSize } from "../layout/index.ts";
import { contiguousStrides } from "../layout/strides.ts";
import { crc32c, describeElements, move } from "../memory/kernels.ts";
import { type Cut, countOf, cutRows } from "./cut.ts";
import type { Destination, MovedTensor, TensorKind } from "./kinds.ts";
import { type OpenedFile, readAll } from "./opened-file.ts";
import type { Reader, Writer } from "./windows.ts";
import { elementsIn, isPermuting, turnedDimension } from "./work.ts";

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
  const { kind, to } = tensor;
  const sums = new Array<number>(kind.destinations.length).fill(noChecksum);
  const whole = wholeStep(kind, item);
  for (const step of whole === undefined ? stepsOf(kind, item) : [whole]) {
    const slab = readSlab(tensor, step, sources, buffers);
    for (const { number, file, source, runs } of step.parts) {
      const packed = packPart(kind, number, source, slab, buffers);
      let done = 0;
      for (const { at, bytes } of runs) {
        const run = bytes === packed.length ? packed : packed.subarray(done, done + bytes);
        targets.write(file, run, to[number]! + at);
        done += bytes;
      }
      sums[number] = crc32c(packed, Math.max(0, sums[number]!));
    }
  }
  return sums.filter((sum) => sum !== noChecksum);
}

/** Stands for a destination that an item has no part in. */
const noChecksum = -1;

/** Says of each part of an item, in their order, where it lies in its file: its first run, and whether that is all, in one piece. */
export function eachPlace(
  { kind, to }: MovedTensor,
  item: Cut,
  visit: (part: number, file: number, at: number, bytes: number, isOne: boolean) => void,
): void {
  const parts = wholeStep(kind, item)?.parts ?? partsOf(kind, item).map((part) => partStep(kind, item, part));
  parts.forEach(({ number, file, runs }, index) => {
    const [first, second] = runs;
    visit(index, file, to[number]! + first!.at, first!.bytes, second === undefined);
  });
}

/** Compares what lies in the files with the checksums of what was written there. `TB_VERIFY` names parameter and file. */
export function checkItem(
  { name, kind, to }: MovedTensor,
  item: Cut,
  checksums: ItemChecksums,
  targets: readonly OpenedFile[],
  buffers: Buffers,
): number {
  let bytes = 0;
  partsOf(kind, item).forEach((part, index) => {
    const { number, destination } = part;
    const target = targets[destination.file]!;
    let crc = 0;
    for (const run of fileRuns(part)) {
      crc = sumStretch(target, { at: to[number]! + run.at, bytes: run.bytes }, crc, buffers);
      bytes += run.bytes;
    }
    if (crc === checksums[index]) return;
    throw new TensorBusError(
      "TB_VERIFY",
      `${target.path}: what was written of tensor ${name}, elements from [${item.offsets}] on, is not what was read`,
      { details: { file: target.path, tensor: name, offsets: item.offsets } },
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

/** What is read, packed, summed up and written while a processor's cache has it. */
const blockBytes = 2 ** 19;

/** What is done with a block of an item, whatever tensor of the kind it is of. */
interface Step {
  readonly block: Cut;
  /** The block's, as it is read. */
  readonly bytes: number;
  readonly strides: readonly number[];
  readonly reads: readonly ReadStep[];
  /** True if the boxes do not hold all of it. */
  readonly isPartial: boolean;
  readonly parts: readonly PartStep[];
}

interface ReadStep {
  /** The box's, in those of the kind. */
  readonly number: number;
  readonly part: Cut;
  /** True if it is the whole block, which lies in the box as it does in memory. */
  readonly isBlock: boolean;
}

interface PartStep {
  /** The destination's, in those of the kind. */
  readonly number: number;
  readonly file: number;
  /** Its place in the block: in one piece as its file holds it, or by a descriptor, to be packed. */
  readonly source: ByteRun | { readonly count: number; readonly descriptor: BigInt64Array };
  /** From the first element of the destination's parameter. */
  readonly runs: Iterable<ByteRun>;
}

/** The steps of kinds whose tensors are one block, and in one item: there are many of those. */
const wholeSteps = new WeakMap<TensorKind, Step>();

function wholeStep(kind: TensorKind, item: Cut): Step | undefined {
  if (item.lengths !== kind.shape) return undefined;
  const known = wholeSteps.get(kind);
  if (known !== undefined) return known;
  const [step, ...others] = stepsOf(kind, item);
  if (step === undefined || others.length > 0) return undefined;
  wholeSteps.set(kind, step);
  return step;
}

/** The blocks of an item follow each other in each of its parts; one that is turned is packed as a whole. */
function* stepsOf(kind: TensorKind, item: Cut): Generator<Step> {
  const isTurned = turnedDimension(kind) !== undefined;
  for (const block of isTurned ? [item] : cutRows(item, elementsIn(blockBytes, kind))) {
    const bytes = countOf(block.lengths) * itemSize(kind.dtype);
    const strides = contiguousStrides(block.lengths);
    const reads = readsOf(kind, block, strides);
    const found = reads.reduce((sum, { part }) => sum + countOf(part.lengths), 0);
    const parts = partsOf(kind, block).map((part) => partStep(kind, block, part));
    yield { block, bytes, strides, reads, isPartial: found < countOf(block.lengths), parts };
  }
}

function readsOf({ boxes }: TensorKind, { offsets, lengths }: Cut, inBlock: readonly number[]): ReadStep[] {
  return boxes.flatMap(({ start, length, strides }, number) => {
    const first = start.map((at, dim) => Math.max(at, offsets[dim]!));
    const size = first.map(
      (at, dim) => Math.min(start[dim]! + length[dim]!, offsets[dim]! + lengths[dim]!) - at,
    );
    if (size.some((extent) => extent <= 0)) return [];
    const isBlock = countOf(size) === countOf(lengths) && isPacked(size, strides) && isPacked(size, inBlock);
    return [{ number, part: { offsets: first, lengths: size }, isBlock }];
  });
}

function partStep({ dtype }: TensorKind, { offsets, lengths }: Cut, part: Part): PartStep {
  const { number, destination, start, length, size } = part;
  const { file, axes } = destination;
  const count = countOf(size);
  const strides = contiguousStrides(lengths);
  const offset = distance(start, offsets, strides);
  const runs = fileRuns(part);
  if (destination.dtype === dtype && !isPermuting(axes) && isPacked(length, strides)) {
    const source = { at: offset * itemSize(dtype), bytes: count * itemSize(dtype) };
    return { number, file, source, runs };
  }
  const order = axes.filter((axis) => axis >= 0);
  const descriptor = describeElements(
    dtype,
    order.map((axis) => length[axis]!),
    order.map((axis) => strides[axis]!),
    offset,
  );
  return { number, file, source: { count, descriptor }, runs };
}

/** The part of an item, or of a block of one, that goes to one destination: a box in the tensor, and where it lies in the parameter. */
interface Part {
  readonly number: number;
  readonly destination: Destination;
  /** In the tensor. */
  readonly start: readonly number[];
  readonly length: readonly number[];
  /** In the parameter, by its axes. */
  readonly at: readonly number[];
  readonly size: readonly number[];
}

/** Nothing for a destination that an item has no part in. */
function partsOf({ destinations }: TensorKind, { offsets, lengths }: Cut): Part[] {
  return destinations.flatMap((destination, number) => {
    const { axes, start: from, length: of, at: places } = destination;
    const start = from.map((at, dim) => Math.max(at, offsets[dim]!));
    const length = start.map(
      (at, dim) => Math.min(from[dim]! + of[dim]!, offsets[dim]! + lengths[dim]!) - at,
    );
    if (length.some((extent) => extent <= 0)) return [];
    const at = places.map((place, axis) =>
      axes[axis]! < 0 ? place : place + start[axes[axis]!]! - from[axes[axis]!]!,
    );
    const size = places.map((_, axis) => (axes[axis]! < 0 ? 1 : length[axes[axis]!]!));
    return [{ number, destination, start, length, at, size }];
  });
}

/** All elements of a block, packed, in the type of the source. */
function readSlab(tensor: MovedTensor, step: Step, files: Reader, buffers: Buffers): Buffer {
  const { kind, from } = tensor;
  const { block, strides } = step;
  const bytes = buffers.take("slab", step.bytes);
  const slab: Slab = { bytes, dtype: kind.dtype, offsets: block.offsets, strides };
  for (const { number, part, isBlock } of step.reads) {
    const box = kind.boxes[number]!;
    const position = from[number]! + distance(part.offsets, box.start, box.strides) * itemSize(kind.dtype);
    if (isBlock) files.read(box.file, bytes, position);
    else readBox(files, box, position, part, slab, buffers);
  }
  if (!step.isPartial) return bytes;
  const { offsets, lengths } = block;
  throw new TensorBusError(
    "TB_TENSOR_MISSING",
    `tensor ${tensor.name}: no file holds all of the elements from [${offsets}] on, [${lengths}] of them`,
    { details: { tensor: tensor.name, offsets, lengths } },
  );
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
 * Reads what lies in a part of a tensor, all of it in one stored box, from a position of its file on, into its place in a slab.
 * `isApart` is true for parts that lie far from each other.
 */
function readBox(
  files: Reader,
  box: TensorKind["boxes"][number],
  position: number,
  part: Cut,
  slab: Slab,
  buffers: Buffers,
  isApart = false,
): void {
  const item = itemSize(slab.dtype);
  const { file, strides } = box;
  const { offsets, lengths } = part;
  const count = countOf(lengths);
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
    const first = position + row * strides[outer]! * item;
    readBox(files, box, first, some, slab, buffers, isApart || !isFull);
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
  { dtype, destinations }: TensorKind,
  number: number,
  source: PartStep["source"],
  slab: Buffer,
  buffers: Buffers,
): Buffer {
  if ("at" in source) return slab.subarray(source.at, source.at + source.bytes);
  const into = destinations[number]!.dtype;
  const packed = buffers.take("packed", source.count * itemSize(into));
  move({ bytes: packed, dtype: into }, { bytes: slab, dtype, descriptor: source.descriptor });
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

/** The runs of bytes of a part from the first byte of its parameter on, ascending; as few as there can be. */
function fileRuns({ destination, at, size }: Part): Iterable<ByteRun> {
  const { shape, dtype } = destination;
  const strides = contiguousStrides(shape);
  const item = itemSize(dtype);
  let inner = shape.length;
  let elements = 1;
  while (inner > 0) {
    inner--;
    elements *= size[inner]!;
    if (size[inner] !== shape[inner]) break;
  }
  const first = distance(
    at,
    shape.map(() => 0),
    strides,
  );
  const bytes = elements * item;
  if (elements === countOf(size)) return [{ at: first * item, bytes }];
  return { [Symbol.iterator]: () => runsOf(size.slice(0, inner), strides, first, item, bytes) };
}

/** A run for each index of the outer dimensions of a box. */
function* runsOf(
  outer: readonly number[],
  strides: readonly number[],
  begin: number,
  item: number,
  bytes: number,
): Generator<ByteRun> {
  let first = begin;
  const index = outer.map(() => 0);
  for (;;) {
    yield { at: first * item, bytes };
    let dim = outer.length - 1;
    for (; dim >= 0; dim--) {
      first += strides[dim]!;
      if (++index[dim]! < outer[dim]!) break;
      first -= outer[dim]! * strides[dim]!;
      index[dim] = 0;
    }
    if (dim < 0) return;
  }
}
