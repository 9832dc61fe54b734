/** A result of an earlier reshard as a checkpoint again: its manifest and layout say what each file holds. */
import { join } from "node:path";
import { TensorBusError } from "../errors.ts";
import { type DType, itemSize } from "../layout/index.ts";
import { contiguousStrides } from "../layout/strides.ts";
import { openSafetensors, type SafetensorsCheckpoint } from "../model/safetensors.ts";
import { Heap } from "./heap.ts";
import { readLayout, readManifest } from "./result.ts";
import { type CheckpointSource, distinctBoxes, type SourceTensor, type StoredBox } from "./source.ts";
import { type BoxPlace, eachBox, SharedLists, type TargetParameter } from "./target.ts";

interface Found {
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

/** The tensors that the parameters of ranks are made of; one rank after the other is looked at. Errors as those of `resultSource`. */
export async function layoutSource(
  folder: string,
  ranks: AsyncIterable<RankParts> | Iterable<RankParts>,
): Promise<CheckpointSource> {
  const heap = new Heap();
  const files: string[] = [];
  const found = new Map<string, Found>();
  const strides = new BoxStrides();
  for await (const { paths, parameters } of ranks) {
    const opened: { readonly number: number; readonly entries: SafetensorsCheckpoint["tensors"] }[] = [];
    for (const path of paths) {
      await using checkpoint = await openSafetensors(path);
      opened.push({ number: files.length, entries: checkpoint.tensors });
      files.push(path);
    }
    for (const parameter of parameters) {
      const { name: key, shape, dtype } = parameter;
      if ((parameter.places ?? parameter.boxes).length === 0) continue;
      const { number, entries } =
        opened.length === 1 ? opened[0]! : (opened.findLast((part) => part.entries.has(key)) ?? opened[0]!);
      const entry = entries.get(key);
      if (entry === undefined || entry.dtype !== dtype || !isSame(entry.shape, shape)) {
        const is = entry === undefined ? "missing" : `${entry.dtype} of [${entry.shape}]`;
        throw new TensorBusError(
          "TB_SAFETENSORS",
          `${paths.join(", ")}: ${key} is ${is}, and the layout says ${dtype} of [${shape}]`,
          { details: { files: paths, tensor: key } },
        );
      }
      const whole = { file: number, position: entry.position, shape, dtype };
      eachBox(parameter, (tensor, place) => addBox(found, folder, whole, tensor, place, strides));
    }
    heap.tidy();
  }
  const tensors = [...found].map(
    ([name, { dtype, shape, boxes }]): SourceTensor => ({
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
  found: Map<string, Found>,
  folder: string,
  { file, position, shape, dtype }: ParameterPlace,
  tensor: string,
  place: BoxPlace,
  known: BoxStrides,
): void {
  const { start, length } = place;
  let whole = found.get(tensor);
  if (whole === undefined) {
    whole = { dtype, boxes: [], shape: start.map(() => 0) };
    found.set(tensor, whole);
  }
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
