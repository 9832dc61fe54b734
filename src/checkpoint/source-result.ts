/** A result of an earlier reshard as a checkpoint again: its manifest and layout say what each file holds. */
import { join } from "node:path";
import { TensorBusError } from "../errors.ts";
import { type DType, itemSize } from "../layout/index.ts";
import { contiguousStrides } from "../layout/strides.ts";
import { openSafetensors, type SafetensorsCheckpoint } from "../model/safetensors.ts";
import { Heap } from "./heap.ts";
import { readLayout, readManifest } from "./result.ts";
import { type CheckpointSource, distinctBoxes, type SourceTensor, type StoredBox } from "./source.ts";
import { SharedLists, type TargetBox, type TargetParameter } from "./target.ts";

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
  const lists = new SharedLists();
  for await (const { paths, parameters } of ranks) {
    const opened: { readonly number: number; readonly entries: SafetensorsCheckpoint["tensors"] }[] = [];
    for (const path of paths) {
      await using checkpoint = await openSafetensors(path);
      opened.push({ number: files.length, entries: checkpoint.tensors });
      files.push(path);
    }
    for (const { name: key, shape, dtype, boxes } of parameters) {
      if (boxes.length === 0) continue;
      const { number, entries } = opened.findLast((part) => part.entries.has(key)) ?? opened[0]!;
      const entry = entries.get(key);
      if (entry === undefined || entry.dtype !== dtype || String(entry.shape) !== String(shape)) {
        const is = entry === undefined ? "missing" : `${entry.dtype} of [${entry.shape}]`;
        throw new TensorBusError(
          "TB_SAFETENSORS",
          `${paths.join(", ")}: ${key} is ${is}, and the layout says ${dtype} of [${shape}]`,
          { details: { files: paths, tensor: key } },
        );
      }
      const place = { file: number, position: entry.position, shape, dtype };
      for (const box of boxes) addBox(found, folder, place, box, lists);
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
  { tensor, start, length, at, axes }: TargetBox,
  lists: SharedLists,
): void {
  const known = found.get(tensor) ?? { dtype, boxes: [], shape: start.map(() => 0) };
  found.set(tensor, known);
  if (known.dtype !== dtype) {
    throw new TensorBusError(
      "TB_UNSUPPORTED",
      `${folder}: parts of tensor ${tensor} are ${known.dtype} and ${dtype}`,
      {
        details: { tensor, folder },
      },
    );
  }
  if (known.shape.length !== start.length) {
    throw new TensorBusError(
      "TB_SAFETENSORS",
      `${folder}: parts of tensor ${tensor} have ${known.shape.length} and ${start.length} dimensions`,
      { details: { tensor, folder } },
    );
  }
  start.forEach((first, dim) => {
    known.shape[dim] = Math.max(known.shape[dim]!, first + length[dim]!);
  });
  const steps = contiguousStrides(shape);
  const strides = lists.share(start.map((_, dim) => steps[axes.indexOf(dim)] ?? 0));
  const first = at.reduce((sum, index, axis) => sum + index * steps[axis]!, 0);
  known.boxes.push({ file, position: position + first * itemSize(dtype), start, length, strides });
}
