/**
 * The work of a mover, cut into items: boxes of tensors, each small enough for a buffer. Whatever an item covers is read once,
 * from the files that hold it, and written to every file that wants it. Items are slabs of a tensor's outermost dimension,
 * which lie in one piece both in a row-sharded and in a column-sharded file; of a tensor that is turned they are tiles.
 */
import { TensorBusError } from "../errors.ts";
import { type DType, itemSize, unitOf } from "../layout/index.ts";
import { type Cut, countOf, cutRows, cutTiles } from "./cut.ts";
import type { SourceTensor, StoredBox } from "./source.ts";

/** Says where a box of a tensor goes: into a parameter of a file. */
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

export interface WorkItem extends Cut {
  /** Index in the moved tensors. */
  readonly tensor: number;
}

/** Bytes of an item: enough for reads and writes to be long, few enough for threads to end together. */
const itemBytes = 8 * 2 ** 20;
/**
 * Bytes of a buffer, however large the tensors: an item that is turned on its way is read into one and packed in another. The
 * larger they are, the longer are the runs that are read and written.
 */
export const bufferBytes = 8 * 2 ** 20;

/** In the order of the source's files, so that they are read in sequence. */
export function cutWork(tensors: readonly MovedTensor[]): WorkItem[] {
  const order = [...tensors.keys()].sort((a, b) => {
    const [one, other] = [tensors[a]!.boxes[0], tensors[b]!.boxes[0]];
    return (one?.file ?? 0) - (other?.file ?? 0) || (one?.position ?? 0) - (other?.position ?? 0);
  });
  return order.flatMap((tensor) => [...cutTensor(tensors[tensor]!)].map((cut) => ({ tensor, ...cut })));
}

export function itemSizeOf({ lengths }: WorkItem, { dtype }: MovedTensor): number {
  return countOf(lengths) * itemSize(dtype);
}

function cutTensor({ name, shape, dtype, boxes, destinations }: MovedTensor): Generator<Cut> {
  const tensor = { name, shape, dtype, boxes, destinations };
  const inner = turnedDimension(tensor);
  if (inner !== undefined) return cutTiles(shape, inner, elementsIn(bufferBytes, tensor));
  return cutRows({ offsets: shape.map(() => 0), lengths: shape }, elementsIn(itemBytes, tensor));
}

/** As many elements as fit there in the widest of the types that a tensor has on its way. */
export function elementsIn(bytes: number, { dtype, destinations }: MovedTensor): number {
  const widest = destinations.reduce((most, place) => Math.max(most, itemSize(place.dtype)), itemSize(dtype));
  return Math.max(1, Math.floor(bytes / widest));
}

/** The dimension other than the last whose elements lie side by side in a file of either end; `undefined` if there is none. */
export function turnedDimension({ shape, boxes, destinations }: MovedTensor): number | undefined {
  for (const { axes } of destinations) if (isPermuting(axes)) return axes.findLast((axis) => axis >= 0);
  for (const { length, strides } of boxes) {
    const dim = strides.findIndex((stride, at) => stride === 1 && length[at]! > 1);
    if (dim >= 0 && dim < shape.length - 1 && length.some((extent, at) => at > dim && extent > 1)) return dim;
  }
  return undefined;
}

export function isPermuting(axes: readonly number[]): boolean {
  const used = axes.filter((axis) => axis >= 0);
  return used.some((axis, index) => index > 0 && axis < used[index - 1]!);
}

/** What of a tensor a thread has to know for an item of it. */
export function restrictTo(tensor: MovedTensor, item: Cut): MovedTensor {
  const meets = (start: readonly number[], length: readonly number[]) =>
    start.every(
      (at, dim) => at < item.offsets[dim]! + item.lengths[dim]! && item.offsets[dim]! < at + length[dim]!,
    );
  const { name, shape, dtype } = tensor;
  const boxes = tensor.boxes.filter(({ start, length }) => meets(start, length));
  const destinations = tensor.destinations.filter(({ start, length }) => meets(start, length));
  return { name, shape, dtype, boxes, destinations };
}

/** Says where the boxes of tensors go, by their names. */
export interface Destinations {
  has(tensor: string): boolean;
  /** Made when they are asked for: all of them would take much memory. */
  of(tensor: string): readonly Destination[];
}

class PlacedTensor implements MovedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly boxes: readonly StoredBox[];
  readonly #destinations: Destinations;

  constructor({ name, shape, dtype, boxes }: SourceTensor, destinations: Destinations) {
    this.name = name;
    this.shape = shape;
    this.dtype = dtype;
    this.boxes = boxes;
    this.#destinations = destinations;
  }

  get destinations(): readonly Destination[] {
    return this.#destinations.of(this.name);
  }
}

/** What a source and the places of its tensors' boxes come to; tensors that nobody wants are left out. */
export function movedTensors(tensors: readonly SourceTensor[], destinations: Destinations): MovedTensor[] {
  return tensors.flatMap((tensor) => {
    if (!destinations.has(tensor.name)) return [];
    return unitOf(tensor.dtype).elements > 1
      ? [asBytes({ ...tensor, destinations: destinations.of(tensor.name) })]
      : [new PlacedTensor(tensor, destinations)];
  });
}

/**
 * Elements of fewer than 8 bits share bytes along the last dimension: such a tensor is moved as the bytes that it is. `TB_DTYPE`
 * for a box that begins or ends inside of one.
 */
function asBytes(moved: MovedTensor): MovedTensor {
  const { name, shape, dtype, boxes, destinations } = moved;
  const unit = unitOf(dtype);
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
