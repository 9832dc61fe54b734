import type { ChunkRow } from "../input/rows.ts";
import { type BucketTable, invalid } from "./buckets.ts";
import type { TensorView } from "./chunks.ts";
import { type Boxes, findUneven } from "./tiling.ts";

/** Boxes of one index space, flat numbers that name their chunks without holding them. */
export class BoxList implements Boxes {
  readonly #ndim: number;
  /** For each box: bucket number, index in the bucket, offsets, lengths. */
  readonly #numbers: number[] = [];

  constructor(ndim: number) {
    this.#ndim = ndim;
  }

  get count(): number {
    return this.#numbers.length / (2 + 2 * this.#ndim);
  }

  add(bucket: number, index: number, offsets: readonly number[], lengths: readonly number[]): void {
    this.#numbers.push(bucket, index);
    for (let dim = 0; dim < this.#ndim; dim++) this.#numbers.push(offsets[dim]!);
    for (let dim = 0; dim < this.#ndim; dim++) this.#numbers.push(lengths[dim]!);
  }

  bucket(box: number): number {
    return this.#numbers[box * (2 + 2 * this.#ndim)]!;
  }

  index(box: number): number {
    return this.#numbers[box * (2 + 2 * this.#ndim) + 1]!;
  }

  offset(box: number, dim: number): number {
    return this.#numbers[box * (2 + 2 * this.#ndim) + 2 + dim]!;
  }

  length(box: number, dim: number): number {
    return this.#numbers[box * (2 + 2 * this.#ndim) + 2 + this.#ndim + dim]!;
  }

  contains(box: number, at: readonly number[]): boolean {
    return at.every((place, dim) => {
      const offset = this.offset(box, dim);
      return offset <= place && place < offset + this.length(box, dim);
    });
  }
}

/** Ids of the chunks whose boxes hold a place. */
export function chunksAt(boxes: BoxList, at: readonly number[], table: BucketTable): string[] {
  const ids: string[] = [];
  for (let box = 0; box < boxes.count; box++) {
    if (boxes.contains(box, at)) ids.push(table.chunkId(boxes.bucket(box), boxes.index(box)));
  }
  return ids;
}

/** Every write of a target: each element of each target rank exactly once. */
export class Writes {
  readonly #tensors: readonly TensorView[];
  readonly #table: BucketTable;
  readonly #boxes: Map<number, BoxList>[] = [];

  constructor(tensors: readonly TensorView[], table: BucketTable) {
    this.#tensors = tensors;
    this.#table = table;
  }

  write(chunk: ChunkRow): void {
    let ofTensor = this.#boxes[chunk.tensor];
    if (ofTensor === undefined) {
      ofTensor = new Map();
      this.#boxes[chunk.tensor] = ofTensor;
    }
    let boxes = ofTensor.get(chunk.dstRank);
    if (boxes === undefined) {
      boxes = new BoxList(chunk.dstOffsets.length);
      ofTensor.set(chunk.dstRank, boxes);
    }
    boxes.add(chunk.bucket, chunk.index, chunk.dstOffsets, chunk.lengths);
  }

  /** The writes to a tensor on a rank. */
  of(tensor: number, rank: number): BoxList | undefined {
    return this.#boxes[tensor]?.get(rank);
  }

  /** Every rank of every target; or one rank, if only its writes are known. */
  finish(only?: number): void {
    for (const view of this.#tensors) {
      if (only === undefined) {
        for (const [rank, position] of view.target.members()) this.#checkRank(view, rank, position);
        continue;
      }
      const position = view.target.positionOf(only);
      if (position !== undefined) this.#checkRank(view, only, position);
    }
  }

  #checkRank(view: TensorView, rank: number, position: number): void {
    const boxes = this.of(view.index, rank) ?? new BoxList(view.target.ndim);
    const uneven = findUneven(view.target.localShape(position), boxes);
    if (uneven === undefined) return;
    const chunks = chunksAt(boxes, uneven.at, this.#table);
    throw invalid(
      uneven.count === 0
        ? `an element of ${view.name} is not written on rank ${rank}`
        : `an element of ${view.name} is written ${uneven.count} times on rank ${rank}`,
      { tensor: view.index, name: view.name, rank, element: uneven.at, chunk: chunks[0], chunks },
    );
  }
}
