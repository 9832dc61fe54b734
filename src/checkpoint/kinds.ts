/**
 * What is moved: tensors, each of a kind. Those of one kind have the same shape, lie in the same way in files of the same numbers,
 * and go to the same places, so that all but their positions is found out once: a model has a hundred thousand tensors and ten kinds.
 */
import { TensorBusError } from "../errors.ts";
import { type DType, unitOf } from "../layout/index.ts";
import type { Cut } from "./cut.ts";
import type { PlannedFile } from "./output.ts";
import type { SourceTensor, StoredBox } from "./source.ts";
import { type BoxPlace, eachBox, NumberedTensors, type TargetParameter } from "./target.ts";

/** Says where a box of a tensor goes: into a parameter of a file. */
export interface Destination extends BoxPlace {
  /** Index in the files that are written. */
  readonly file: number;
  /** The parameter's. */
  readonly shape: readonly number[];
  readonly dtype: DType;
}

export interface TensorKind {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly boxes: readonly Omit<StoredBox, "position">[];
  readonly destinations: readonly Destination[];
}

export interface MovedTensor {
  readonly name: string;
  readonly kind: TensorKind;
  /** The byte of the first element of each of its boxes. */
  readonly from: readonly number[];
  /** The byte of the first element of the parameter of each destination. */
  readonly to: readonly number[];
}

/** More kinds than this are made again when they are asked for: all of them would take much memory. */
const mostKinds = 2 ** 10;
/** Forms of destinations that are looked up; of more, equal ones are kept twice. */
const mostForms = 2 ** 16;

/**
 * The tensors of a source with the places of their boxes; those that nobody wants are left out. All that files want are there.
 * `TB_DTYPE` for a box that begins or ends inside of a byte.
 */
export function movedTensors(tensors: readonly SourceTensor[], files: readonly PlannedFile[]): MovedTensor[] {
  const places = new Places(tensors, files);
  const kinds = new Kinds(places);
  const moved: MovedTensor[] = [];
  tensors.forEach((tensor, number) => {
    if (places.begin(number) < places.end(number))
      moved.push(new PlacedTensor(tensor, number, places, kinds));
  });
  return moved;
}

class PlacedTensor implements MovedTensor {
  readonly #tensor: SourceTensor;
  readonly #number: number;
  readonly #places: Places;
  readonly #kinds: Kinds;
  readonly #kind: TensorKind | undefined;

  constructor(tensor: SourceTensor, number: number, places: Places, kinds: Kinds) {
    this.#tensor = tensor;
    this.#number = number;
    this.#places = places;
    this.#kinds = kinds;
    this.#kind = kinds.kept(tensor, number);
  }

  get name(): string {
    return this.#tensor.name;
  }

  get kind(): TensorKind {
    return this.#kind ?? this.#kinds.make(this.#tensor, this.#number);
  }

  get from(): readonly number[] {
    return this.#tensor.boxes.map(({ position }) => position);
  }

  get to(): readonly number[] {
    const to: number[] = [];
    const end = this.#places.end(this.#number);
    for (let place = this.#places.begin(this.#number); place < end; place++)
      to.push(this.#places.position(place));
    return to;
  }
}

class Kinds {
  readonly #places: Places;
  readonly #known = new Map<string, TensorKind>();

  constructor(places: Places) {
    this.#places = places;
  }

  /** The kind of a tensor, one for all that are alike; `undefined` if there are too many, and it has to be made each time. */
  kept(tensor: SourceTensor, number: number): TensorKind | undefined {
    const text = this.#textOf(tensor, number);
    const known = this.#known.get(text);
    if (known !== undefined) return known;
    const kind = this.make(tensor, number);
    if (this.#known.size >= mostKinds) return undefined;
    this.#known.set(text, kind);
    return kind;
  }

  make({ name, shape, dtype, boxes }: SourceTensor, number: number): TensorKind {
    const destinations: Destination[] = [];
    const end = this.#places.end(number);
    for (let place = this.#places.begin(number); place < end; place++)
      destinations.push(this.#places.destination(place));
    const stored = boxes.map(({ file, start, length, strides }) => ({ file, start, length, strides }));
    const kind = { shape, dtype, boxes: stored, destinations };
    return unitOf(dtype).elements > 1 ? asBytes(name, kind) : kind;
  }

  #textOf({ shape, dtype, boxes }: SourceTensor, number: number): string {
    let text = `${dtype} ${shape.join()}`;
    for (const { file, start, length, strides } of boxes)
      text += `;${file}:${start.join()}:${length.join()}:${strides.join()}`;
    const end = this.#places.end(number);
    for (let place = this.#places.begin(number); place < end; place++)
      text += `>${this.#places.file(place)}:${this.#places.form(place)}`;
    return text;
  }
}

/** The parameter and the box of a destination, but for the file. */
type Form = Omit<Destination, "file">;

/** The places of the boxes of each tensor, as numbers side by side: there may be a million. */
class Places {
  /** By the tensor's number: where its part of what follows begins. */
  readonly #begins: Uint32Array;
  readonly #files: Uint32Array;
  readonly #positions: Float64Array;
  readonly #forms: Uint32Array;
  readonly #knownForms = new Forms();

  constructor(tensors: readonly SourceTensor[], files: readonly PlannedFile[]) {
    const numbered = new NumberedTensors(tensors);
    this.#begins = new Uint32Array(tensors.length + 1);
    for (const { parameters } of files) {
      for (const parameter of parameters)
        eachBox(parameter, (tensor) => this.#begins[numbered.numberOf(tensor)! + 1]!++);
    }
    for (let number = 0; number < tensors.length; number++)
      this.#begins[number + 1]! += this.#begins[number]!;
    const total = this.#begins[tensors.length]!;
    this.#files = new Uint32Array(total);
    this.#positions = new Float64Array(total);
    this.#forms = new Uint32Array(total);
    const ends = this.#begins.slice();
    files.forEach(({ parameters, positions }, file) => {
      parameters.forEach((parameter, index) => {
        eachBox(parameter, (tensor, place) => {
          const end = ends[numbered.numberOf(tensor)!]!++;
          this.#files[end] = file;
          this.#positions[end] = positions[index]!;
          this.#forms[end] = this.#knownForms.numberOf(parameter, place);
        });
      });
    });
  }

  begin(tensor: number): number {
    return this.#begins[tensor]!;
  }

  end(tensor: number): number {
    return this.#begins[tensor + 1]!;
  }

  file(place: number): number {
    return this.#files[place]!;
  }

  position(place: number): number {
    return this.#positions[place]!;
  }

  form(place: number): number {
    return this.#forms[place]!;
  }

  destination(place: number): Destination {
    return { file: this.#files[place]!, ...this.#knownForms.of(this.#forms[place]!) };
  }
}

/** Numbers for what is the same of many destinations. */
class Forms {
  readonly #forms: Form[] = [];
  readonly #byText = new Map<string, number>();
  /** For places that many parameters share. */
  readonly #byPlace = new Map<BoxPlace, number>();

  numberOf(parameter: TargetParameter, place: BoxPlace): number {
    if (parameter.places === undefined) return this.#numberOf(parameter, place);
    const { shape, dtype } = parameter;
    const last = this.#byPlace.get(place);
    const form = last === undefined ? undefined : this.#forms[last]!;
    if (form?.dtype === dtype && form.shape === shape) return last!;
    const number = this.#numberOf(parameter, place);
    this.#byPlace.set(place, number);
    return number;
  }

  #numberOf({ shape, dtype }: TargetParameter, { start, length, at, axes }: BoxPlace): number {
    const text = `${dtype}|${shape.join()}|${start.join()}|${length.join()}|${at.join()}|${axes.join()}`;
    const known = this.#byText.get(text);
    if (known !== undefined) return known;
    const number = this.#forms.push({ shape, dtype, start, length, at, axes }) - 1;
    if (number < mostForms) this.#byText.set(text, number);
    return number;
  }

  of(number: number): Form {
    return this.#forms[number]!;
  }
}

/** What of a tensor a thread has to know for an item of it. */
export function restrictTo({ name, kind, from, to }: MovedTensor, item: Cut): MovedTensor {
  if (item.lengths === kind.shape) return { name, kind, from, to };
  const meets = ({
    start,
    length,
  }: {
    readonly start: readonly number[];
    readonly length: readonly number[];
  }) =>
    start.every(
      (at, dim) => at < item.offsets[dim]! + item.lengths[dim]! && item.offsets[dim]! < at + length[dim]!,
    );
  const { shape, dtype, boxes, destinations } = kind;
  return {
    name,
    kind: { shape, dtype, boxes: boxes.filter(meets), destinations: destinations.filter(meets) },
    from: from.filter((_, box) => meets(boxes[box]!)),
    to: to.filter((_, destination) => meets(destinations[destination]!)),
  };
}

/**
 * Elements of fewer than 8 bits share bytes along the last dimension: such a tensor is moved as the bytes that it is. `TB_DTYPE`
 * for a box that begins or ends inside of one.
 */
function asBytes(name: string, { shape, dtype, boxes, destinations }: TensorKind): TensorKind {
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
