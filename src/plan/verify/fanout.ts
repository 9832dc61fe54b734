import type { Chunk } from "../input/types.ts";
import type { BucketTable } from "./buckets.ts";
import type { ChunkBox, TensorView } from "./chunks.ts";
import type { BoxList, Writes } from "./writes.ts";

interface Read {
  readonly chunk: Pick<Chunk, "id" | "srcRank" | "dstRank">;
  readonly bucket: number;
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
}

/** Reads of `target`: each waits for every write of what it reads. */
export class Fanout {
  readonly #tensors: readonly TensorView[];
  readonly #table: BucketTable;
  readonly #writes: Writes;
  /** For each tensor, the reads of a rank. */
  readonly #reads = new Map<number, Map<number, Read[]>>();

  constructor(tensors: readonly TensorView[], table: BucketTable, writes: Writes) {
    this.#tensors = tensors;
    this.#table = table;
    this.#writes = writes;
  }

  read(chunk: Chunk, bucket: number, box: ChunkBox): void {
    const { id, srcRank, dstRank, tensor } = chunk;
    const ofTensor = this.#reads.get(tensor) ?? new Map<number, Read[]>();
    this.#reads.set(tensor, ofTensor);
    const reads = ofTensor.get(srcRank) ?? [];
    ofTensor.set(srcRank, reads);
    reads.push({ chunk: { id, srcRank, dstRank }, bucket, offsets: box.src, lengths: box.lengths });
  }

  /** After the writes were proved to tile every target, so that what a read covers was written. */
  finish(): void {
    for (const [tensor, ofTensor] of this.#reads) {
      for (const [rank, reads] of ofTensor) this.#checkReads(this.#tensors[tensor]!, rank, reads);
    }
  }

  #checkReads(view: TensorView, rank: number, reads: readonly Read[]): void {
    const boxes = this.#writes.of(view.index, rank)!;
    const index = new BoxIndex(boxes, view.target.ndim);
    for (const read of reads) {
      for (const box of index.touching(read.offsets, read.lengths)) {
        if (this.#table.waitsFor(read.bucket, boxes.bucket(box))) continue;
        throw view.broken(read.chunk, "a chunk does not wait for the write of the elements that it reads", {
          bucket: this.#table.buckets[read.bucket]!.id,
          write: this.#table.buckets[boxes.bucket(box)]!.id,
        });
      }
    }
  }
}

/** Finds the boxes that touch a box, by their offsets along the dimension that has most of them. */
class BoxIndex {
  readonly #boxes: BoxList;
  readonly #ndim: number;
  readonly #dim: number;
  /** Boxes by offset along `dim`. */
  readonly #order: number[];
  #longest = 0;

  constructor(boxes: BoxList, ndim: number) {
    this.#boxes = boxes;
    this.#ndim = ndim;
    this.#dim = this.#widestDim();
    this.#order = Array.from({ length: boxes.count }, (_, box) => box);
    if (ndim === 0) return;
    this.#order.sort((a, b) => boxes.offset(a, this.#dim) - boxes.offset(b, this.#dim));
    for (const box of this.#order) this.#longest = Math.max(this.#longest, boxes.length(box, this.#dim));
  }

  *touching(offsets: readonly number[], lengths: readonly number[]): IterableIterator<number> {
    if (this.#ndim === 0) {
      yield* this.#order;
      return;
    }
    const end = offsets[this.#dim]! + lengths[this.#dim]!;
    for (let at = this.#firstAfter(offsets[this.#dim]! - this.#longest); at < this.#order.length; at++) {
      const box = this.#order[at]!;
      if (this.#boxes.offset(box, this.#dim) >= end) return;
      if (this.#touches(box, offsets, lengths)) yield box;
    }
  }

  #touches(box: number, offsets: readonly number[], lengths: readonly number[]): boolean {
    return offsets.every((offset, dim) => {
      const from = this.#boxes.offset(box, dim);
      return from < offset + lengths[dim]! && offset < from + this.#boxes.length(box, dim);
    });
  }

  #firstAfter(offset: number): number {
    let low = 0;
    let high = this.#order.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#boxes.offset(this.#order[middle]!, this.#dim) > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #widestDim(): number {
    let widest = 0;
    let most = 0;
    for (let dim = 0; dim < this.#ndim; dim++) {
      const offsets = new Set<number>();
      for (let box = 0; box < this.#boxes.count; box++) offsets.add(this.#boxes.offset(box, dim));
      if (offsets.size > most) {
        most = offsets.size;
        widest = dim;
      }
    }
    return widest;
  }
}
