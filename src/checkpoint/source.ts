/** A checkpoint as files that hold boxes of its tensors: what a mover reads, whatever wrote the files. */
import { type BigIntStats, statSync } from "node:fs";
import type { DType } from "../layout/index.ts";
import { contiguousStrides } from "../layout/strides.ts";
import { fileError } from "../model/files.ts";
import { openSafetensors } from "../model/safetensors.ts";
import { SharedLists } from "./target.ts";

/** A box of a tensor that lies in a file. */
export interface StoredBox {
  /** Index in the files of the source. */
  readonly file: number;
  /** The byte of its first element there. */
  readonly position: number;
  readonly start: readonly number[];
  readonly length: readonly number[];
  /** Elements of the file from one index to the next, for each dimension of the tensor. */
  readonly strides: readonly number[];
}

export interface SourceTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  /** They cover the tensor, each element once. */
  readonly boxes: readonly StoredBox[];
}

export interface CheckpointSource {
  /** What it is called in messages. */
  readonly path: string;
  readonly files: readonly string[];
  readonly tensors: readonly SourceTensor[];
  readonly metadata: Readonly<Record<string, string>>;
  /** Tensors in its files that its index leaves out. */
  readonly unlisted: number;
}

/** A file as it was when the source was read: if any of it changes, the source is another one. */
export interface FileSignature {
  readonly path: string;
  readonly bytes: number;
  /** Nanoseconds, as text. */
  readonly changed: string;
}

/** One safetensors file, an index with its files, or a folder with either. Errors are those of `openSafetensors`. */
export async function safetensorsSource(path: string): Promise<CheckpointSource> {
  await using checkpoint = await openSafetensors(path);
  const files = checkpoint.files;
  const numbers = new Map(files.map((file, number) => [file, number]));
  const lists = new SharedLists();
  const tensors: SourceTensor[] = [];
  for (const { name, shape: given, dtype, file, position } of checkpoint.tensors.values()) {
    const shape = lists.share(given);
    const start = lists.share(shape.map(() => 0));
    const strides = lists.share(contiguousStrides(shape));
    const box = { file: numbers.get(file)!, position, start, length: shape, strides };
    tensors.push({ name, shape, dtype, boxes: [box] });
  }
  const { metadata, unlisted } = checkpoint;
  return { path, files, tensors, metadata, unlisted };
}

export function signaturesOf(files: readonly string[]): FileSignature[] {
  return files.map((path) => {
    let stats: BigIntStats;
    try {
      stats = statSync(path, { bigint: true });
    } catch (error) {
      throw fileError(error, "read", path);
    }
    return { path, bytes: Number(stats.size), changed: String(stats.mtimeNs) };
  });
}

/**
 * Each box once, ascending. Two that overlap without being the same are the error that is made of them: a sweep along the dimension
 * that is cut most, so that thousands of parts are not compared with each other.
 */
export function distinctBoxes(
  boxes: readonly StoredBox[],
  overlapError: (one: StoredBox, other: StoredBox) => Error,
): StoredBox[] {
  const [first] = boxes;
  if (first === undefined || boxes.length === 1) return [...boxes];
  // Mostly the parts of ranks, one behind the other.
  if (first.start.some((_, dim) => follow(boxes, dim))) return [...boxes];
  const cuts = first.start.map((_, dim) => new Set(boxes.map(({ start }) => start[dim])).size);
  const dim = cuts.indexOf(Math.max(...cuts));
  const ascending = [...boxes].sort((a, b) => a.start[dim]! - b.start[dim]! || compare(a, b));
  const distinct: StoredBox[] = [];
  let open: StoredBox[] = [];
  for (const box of ascending) {
    const last = distinct.at(-1);
    if (last !== undefined && compare(last, box) === 0) continue;
    open = open.filter((before) => before.start[dim]! + before.length[dim]! > box.start[dim]!);
    const other = open.find((before) => overlaps(before, box));
    if (other !== undefined) throw overlapError(box, other);
    open.push(box);
    distinct.push(box);
  }
  return distinct;
}

/** True if each of the boxes begins, in that dimension, no earlier than the one before it ends, and after that one begins. */
function follow(boxes: readonly StoredBox[], dim: number): boolean {
  for (let index = 1; index < boxes.length; index++) {
    const before = boxes[index - 1]!;
    const begin = before.start[dim]!;
    if (boxes[index]!.start[dim]! < begin + Math.max(1, before.length[dim]!)) return false;
  }
  return true;
}

function compare(one: StoredBox, other: StoredBox): number {
  for (const [dim, at] of one.start.entries()) {
    const difference = at - other.start[dim]! || one.length[dim]! - other.length[dim]!;
    if (difference !== 0) return difference;
  }
  return 0;
}

function overlaps(one: StoredBox, other: StoredBox): boolean {
  return one.start.every(
    (at, dim) => at < other.start[dim]! + other.length[dim]! && other.start[dim]! < at + one.length[dim]!,
  );
}
