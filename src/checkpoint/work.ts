/**
 * The work of a mover, cut into items: boxes of tensors, each small enough for a buffer. Whatever an item covers is read once,
 * from the files that hold it, and written to every file that wants it. Items are slabs of a tensor's outermost dimension:
 * they lie in one piece both in a row-sharded and in a column-sharded file.
 */
import { TensorBusError } from "../errors.ts";
import { type DType, itemSize, unitOf } from "../layout/index.ts";
import type { SourceTensor, StoredBox } from "./source.ts";

/** Where a box of a tensor goes: into a parameter of a file. */
export interface Destination {
  /** Index in the files that are written. */
  readonly file: number;
  /** The byte of the parameter's first element there. */
  readonly position: number;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly start: readonly number[];
  readonly length: readonly number[];
  readonly at: readonly number[];
  readonly axes: readonly number[];
}

export interface MovedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly boxes: readonly StoredBox[];
  readonly destinations: readonly Destination[];
}

export interface WorkItem {
  /** Index in the moved tensors. */
  readonly tensor: number;
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
}

/** Bytes of an item, unless one row is larger; those that permute are cut less, so that what is written stays in one piece. */
const itemBytes = 8 * 2 ** 20;
const permutedBytes = 64 * 2 ** 20;

/** In the order of the source's files, so that they are read in sequence. */
export function cutWork(tensors: readonly MovedTensor[]): WorkItem[] {
  const order = [...tensors.keys()].sort((a, b) => {
    const [one, other] = [tensors[a]!.boxes[0], tensors[b]!.boxes[0]];
    return (one?.file ?? 0) - (other?.file ?? 0) || (one?.position ?? 0) - (other?.position ?? 0);
  });
  return order.flatMap((tensor) => {
    const moved = tensors[tensor]!;
    if (moved.destinations.length === 0) return [];
    return [...slabsOf(moved)].map((slab) => ({ tensor, ...slab }));
  });
}

export function itemSizeOf({ lengths }: WorkItem, { dtype }: MovedTensor): number {
  return lengths.reduce((product, extent) => product * extent, itemSize(dtype));
}

function* slabsOf({ shape, dtype, destinations }: MovedTensor): Generator<Omit<WorkItem, "tensor">> {
  if (shape.includes(0)) return;
  const most = destinations.some(({ axes }) => isPermuting(axes)) ? permutedBytes : itemBytes;
  const offsets = shape.map(() => 0);
  yield* cut(shape, dtype, most, 0, offsets, [...shape]);
}

/** Cuts dimension `dim` and, where one row of it is still too large, those behind it. */
function* cut(
  shape: readonly number[],
  dtype: DType,
  most: number,
  dim: number,
  offsets: readonly number[],
  lengths: readonly number[],
): Generator<Omit<WorkItem, "tensor">> {
  const bytes = lengths.reduce((product, extent) => product * extent, itemSize(dtype));
  if (bytes <= most || dim === shape.length) {
    yield { offsets, lengths };
    return;
  }
  const extent = shape[dim]!;
  const rowBytes = bytes / extent;
  const rows = Math.max(1, Math.floor(most / rowBytes));
  for (let at = 0; at < extent; at += rows) {
    const length = Math.min(rows, extent - at);
    const [start, size] = [offsets.with(dim, at), lengths.with(dim, length)];
    if (rowBytes > most && length === 1) yield* cut(shape, dtype, most, dim + 1, start, size);
    else yield { offsets: start, lengths: size };
  }
}

export function isPermuting(axes: readonly number[]): boolean {
  const used = axes.filter((axis) => axis >= 0);
  return used.some((axis, index) => index > 0 && axis < used[index - 1]!);
}

/** What a source and the places of its tensors' boxes come to; tensors that nobody wants are left out. */
export function movedTensors(
  tensors: readonly SourceTensor[],
  destinationsOf: ReadonlyMap<string, readonly Destination[]>,
): MovedTensor[] {
  return tensors.flatMap((tensor) => {
    const destinations = destinationsOf.get(tensor.name);
    return destinations === undefined ? [] : [asBytes({ ...tensor, destinations })];
  });
}

/**
 * Elements of fewer than 8 bits share bytes along the last dimension: such a tensor is moved as the bytes that it is. `TB_DTYPE`
 * for a box that begins or ends inside of one.
 */
function asBytes(moved: MovedTensor): MovedTensor {
  const { name, shape, dtype, boxes, destinations } = moved;
  const unit = unitOf(dtype);
  if (unit.elements === 1) return moved;
  const last = shape.length - 1;
  const scaled = (values: readonly number[], axis: number, what: string): number[] => {
    const bytes = (values[axis]! / unit.elements) * unit.bytes;
    if (Number.isInteger(values[axis]! / unit.elements)) return values.with(axis, bytes);
    throw new TensorBusError(
      "TB_DTYPE",
      `tensor ${name}: ${what} [${values}] begins or ends inside of a byte of ${dtype} (${unit.elements} elements in ${unit.bytes} bytes)`,
      { details: { tensor: name, dtype, [what]: values } },
    );
  };
  return {
    name,
    dtype: "uint8",
    shape: scaled(shape, last, "shape"),
    boxes: boxes.map((box) => ({
      ...box,
      start: scaled(box.start, last, "start"),
      length: scaled(box.length, last, "length"),
      strides: box.strides.map((stride, dim) =>
        dim === last ? stride : (stride / unit.elements) * unit.bytes,
      ),
    })),
    destinations: destinations.map((place) => {
      const axis = place.axes.indexOf(last);
      if (axis !== place.axes.length - 1) {
        throw new TensorBusError("TB_DTYPE", `tensor ${name}: rows of ${dtype} cannot be transposed`, {
          details: { tensor: name, dtype },
        });
      }
      return {
        ...place,
        dtype: "uint8",
        shape: scaled(place.shape, axis, "shape"),
        start: scaled(place.start, last, "start"),
        length: scaled(place.length, last, "length"),
        at: scaled(place.at, axis, "at"),
      };
    }),
  };
}
