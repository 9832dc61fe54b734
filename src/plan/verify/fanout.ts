import type { ChunkRow } from "../input/rows.ts";
import type { BucketTable } from "./buckets.ts";
import type { TensorView } from "./chunks.ts";
import { BoxList, type Writes } from "./writes.ts";

/** Reads of `target`: each waits for every write of what it reads. */
export class Fanout {
  readonly #tensors: readonly TensorView[];
  readonly #table: BucketTable;
  readonly #writes: Writes;
  /** For each tensor, the reads of a rank. */
  readonly #reads = new Map<number, Map<number, BoxList>>();

  constructor(tensors: readonly TensorView[], table: BucketTable, writes: Writes) {
    this.#tensors = tensors;
    this.#table = table;
    this.#writes = writes;
  }

  read(chunk: ChunkRow): void {
    let ofTensor = this.#reads.get(chunk.tensor);
    if (ofTensor === undefined) {
      ofTensor = new Map();
      this.#reads.set(chunk.tensor, ofTensor);
    }
    let reads = ofTensor.get(chunk.srcRank);
    if (reads === undefined) {
      reads = new BoxList(chunk.srcOffsets.length);
      ofTensor.set(chunk.srcRank, reads);
    }
    reads.add(chunk.bucket, chunk.index, chunk.srcOffsets, chunk.lengths);
  }

  /** After the writes were proved to tile every target, so that what a read covers was written. */
  finish(): void {
    for (const [tensor, ofTensor] of this.#reads) {
      for (const [rank, reads] of ofTensor) this.#checkReads(this.#tensors[tensor]!, rank, reads);
    }
  }

  #checkReads(view: TensorView, rank: number, reads: BoxList): void {
    const boxes = this.#writes.of(view.index, rank)!;
    const index = new BoxIndex(boxes, view.target.ndim);
    for (let read = 0; read < reads.count; read++) {
      const reader = reads.bucket(read);
      const missed = index.findTouching(
        reads,
        read,
        (box) => !this.#table.waitsFor(reader, boxes.bucket(box)),
      );
      if (missed === undefined) continue;
      const place = {
        bucket: reader,
        index: reads.index(read),
        srcRank: rank,
        dstRank: this.#table.rows.dstRank[reader]!,
      };
      throw view.broken(
        place,
        this.#table,
        "a chunk does not wait for the write of the elements that it reads",
        {
          bucket: this.#table.idOf(reader),
          write: this.#table.idOf(boxes.bucket(missed)),
        },
      );
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

  /** The first box that touches box `other` of a list and is `wanted`. */
  findTouching(list: BoxList, other: number, wanted: (box: number) => boolean): number | undefined {
    if (this.#ndim === 0) return this.#order.find(wanted);
    const start = list.offset(other, this.#dim);
    const end = start + list.length(other, this.#dim);
    for (let at = this.#firstAfter(start - this.#longest); at < this.#order.length; at++) {
      const box = this.#order[at]!;
      if (this.#boxes.offset(box, this.#dim) >= end) return undefined;
      if (this.#touches(box, list, other) && wanted(box)) return box;
    }
    return undefined;
  }

  #touches(box: number, list: BoxList, other: number): boolean {
    for (let dim = 0; dim < this.#ndim; dim++) {
      const from = this.#boxes.offset(box, dim);
      const offset = list.offset(other, dim);
      if (from >= offset + list.length(other, dim) || offset >= from + this.#boxes.length(box, dim))
        return false;
    }
    return true;
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
