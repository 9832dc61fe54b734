/** A result of an earlier reshard as a checkpoint again: its manifest and layout say what each file holds. */
import { basename, join } from "node:path";
import { TensorBusError } from "../errors.ts";
import { type DType, itemSize } from "../layout/index.ts";
import { contiguousStrides } from "../layout/strides.ts";
import { readFileHeader } from "../model/safetensors.ts";
import type { SafetensorsEntry } from "../model/safetensors-header.ts";
import { Heap } from "./heap.ts";
import { readLayout, readManifest } from "./result.ts";
import { type CheckpointSource, distinctBoxes, type SourceTensor, type StoredBox } from "./source.ts";
import { type BoxPlace, eachBox, NumberedTensors, SharedLists, type TargetParameter } from "./target.ts";

interface Found {
  readonly name: string;
  readonly number: number;
  readonly dtype: DType;
  /** As they come: replicas bring the same more than once. */
  readonly boxes: StoredBox[];
  /** One past the largest index of each dimension. */
  readonly shape: number[];
}

/**
 * Errors: `TB_FILE` if manifest or layout are missing or damaged; `TB_SAFETENSORS` if a file does not hold what they say;
 * `TB_UNSUPPORTED` for parts of one tensor that overlap without being the same.
 */
export async function resultSource(folder: string): Promise<CheckpointSource> {
  const manifest = await readManifest(folder);
  return layoutSource(folder, partsOf(folder, readLayout(folder, manifest)));
}

async function* partsOf(folder: string, layout: ReturnType<typeof readLayout>): AsyncGenerator<RankParts> {
  for await (const { name, parameters } of layout) yield { paths: [join(folder, name)], parameters };
}

/** What a rank holds, in one file or in parts of one. */
export interface RankParts {
  readonly paths: readonly string[];
  readonly parameters: readonly TargetParameter[];
}

/**
 * Files of ranks have the same tensors, and mostly the same shapes: one that stands under the name of another would be taken for it.
 * Ours say how they are called.
 */
function refuseOtherFile(path: string, { "tensorbus.file": own }: Readonly<Record<string, string>>): void {
  if (own === undefined || own === basename(path)) return;
  throw new TensorBusError(
    "TB_SAFETENSORS",
    `${path}: it says that it is ${own}: put back the file that was written under this name`,
    { details: { file: path, value: own } },
  );
}

/** The tensors that the parameters of ranks are made of; one rank after the other is looked at. Errors as those of `resultSource`. */
export async function layoutSource(
  folder: string,
  ranks: AsyncIterable<RankParts> | Iterable<RankParts>,
): Promise<CheckpointSource> {
  const heap = new Heap();
  const files: string[] = [];
  const found = new FoundTensors();
  const strides = new BoxStrides();
  for await (const { paths, parameters } of ranks) {
    const opened: { readonly number: number; readonly entries: NumberedTensors<SafetensorsEntry> }[] = [];
    for (const path of paths) {
      const { entries, metadata } = await readFileHeader(path);
      refuseOtherFile(path, metadata);
      opened.push({ number: files.length, entries: new NumberedTensors(entries) });
      files.push(path);
    }
    for (const parameter of parameters) {
      const { name: key, shape, dtype } = parameter;
      if ((parameter.places ?? parameter.boxes).length === 0) continue;
      const { number, entries } =
        opened.length === 1
          ? opened[0]!
          : (opened.findLast((part) => part.entries.of(key) !== undefined) ?? opened[0]!);
      const entry = entries.of(key);
      if (entry === undefined || entry.dtype !== dtype || !isSame(entry.shape, shape)) {
        const is = entry === undefined ? "missing" : `${entry.dtype} of [${entry.shape}]`;
        throw new TensorBusError(
          "TB_SAFETENSORS",
          `${paths.join(", ")}: ${key} is ${is}, but the layout says ${dtype} of [${shape}]`,
          { details: { files: paths, tensor: key } },
        );
      }
      const whole = { file: number, position: entry.position, shape, dtype };
      eachBox(parameter, (tensor, place) => addBox(found, folder, whole, tensor, place, strides));
    }
    heap.tidy();
  }
  const tensors = found.all.map(
    ({ name, dtype, shape, boxes }): SourceTensor => ({
      name,
      shape,
      dtype,
      boxes: distinctBoxes(boxes, (one, other) => {
        const { start, length } = one;
        return new TensorBusError("TB_UNSUPPORTED", `${folder}: two parts of tensor ${name} overlap`, {
          details: {
            tensor: name,
            folder,
            start,
            length,
            other: { start: other.start, length: other.length },
          },
        });
      }),
    }),
  );
  return { path: folder, files, tensors, metadata: {}, unlisted: 0 };
}

interface ParameterPlace {
  readonly file: number;
  readonly position: number;
  readonly shape: readonly number[];
  readonly dtype: DType;
}

/** Adds a box of a parameter to its tensor. */
function addBox(
  found: FoundTensors,
  folder: string,
  { file, position, shape, dtype }: ParameterPlace,
  tensor: string,
  place: BoxPlace,
  known: BoxStrides,
): void {
  const { start, length } = place;
  const whole = found.of(tensor, dtype, start.length);
  if (whole.dtype !== dtype) {
    throw new TensorBusError(
      "TB_UNSUPPORTED",
      `${folder}: parts of tensor ${tensor} are ${whole.dtype} and ${dtype}`,
      {
        details: { tensor, folder },
      },
    );
  }
  if (whole.shape.length !== start.length) {
    throw new TensorBusError(
      "TB_SAFETENSORS",
      `${folder}: parts of tensor ${tensor} have ${whole.shape.length} and ${start.length} dimensions`,
      { details: { tensor, folder } },
    );
  }
  for (let dim = 0; dim < start.length; dim++)
    whole.shape[dim] = Math.max(whole.shape[dim]!, start[dim]! + length[dim]!);
  const { first, strides } = known.of(shape, place);
  whole.boxes.push({ file, position: position + first * itemSize(dtype), start, length, strides });
}

/** Tensors as they are found. Ranks mostly name them in the same order, and then nothing is searched. */
class FoundTensors {
  readonly all: Found[] = [];
  readonly #byName = new Map<string, Found>();
  #next = 0;

  of(name: string, dtype: DType, dimensions: number): Found {
    const expected = this.all[this.#next];
    if (expected?.name === name) {
      this.#next++;
      return expected;
    }
    const known = this.#byName.get(name);
    if (known !== undefined) {
      this.#next = known.number + 1;
      return known;
    }
    const shape = new Array<number>(dimensions).fill(0);
    const found = { name, number: this.all.length, dtype, boxes: [], shape };
    this.all.push(found);
    this.#byName.set(name, found);
    this.#next = this.all.length;
    return found;
  }
}

/** How a box lies in its parameter: found out once for those that share place and shape. */
class BoxStrides {
  readonly #lists = new SharedLists();
  readonly #known = new WeakMap<BoxPlace, InParameter>();

  of(shape: readonly number[], place: BoxPlace): InParameter {
    const known = this.#known.get(place);
    if (known?.shape === shape) return known;
    const { start, at, axes } = place;
    const steps = contiguousStrides(shape);
    const strides = this.#lists.share(start.map((_, dim) => steps[axes.indexOf(dim)] ?? 0));
    const first = at.reduce((sum, index, axis) => sum + index * steps[axis]!, 0);
    const found = { shape, first, strides };
    this.#known.set(place, found);
    return found;
  }
}

interface InParameter {
  /** The parameter's. */
  readonly shape: readonly number[];
  /** The element that the box begins with. */
  readonly first: number;
  readonly strides: readonly number[];
}

function isSame(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((entry, index) => entry === other[index]);
}
