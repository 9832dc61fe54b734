/** What a file holds, stretch by stretch, with the checksum of each: what was written is summed up without reading it again. */
import { crc32c } from "../memory/kernels.ts";
import { joinChecksums, zeroChecksum } from "./checksum.ts";
import type { MovedTensor } from "./kinds.ts";
import { constantBytes, type PlannedFile } from "./output.ts";
import { eachPlace, type ItemChecksums } from "./scatter.ts";
import type { WorkItem } from "./work.ts";

export interface Stretch {
  readonly at: number;
  readonly bytes: number;
  readonly checksum: number;
}

/**
 * For each file its stretches, ascending and without gaps: head, constants, the parts of items, and zeros between them. Several
 * that follow each other are joined, up to `most` bytes. `undefined` for a file of which a part was not written in one piece.
 */
export function stretchesOf(
  files: readonly PlannedFile[],
  tensors: readonly MovedTensor[],
  items: readonly WorkItem[],
  checksums: ReadonlyMap<number, ItemChecksums>,
  most: number,
): (readonly Stretch[] | undefined)[] {
  const written: (Parts | undefined)[] = files.map(({ headStretch, parameters, positions }) => {
    const parts = new Parts();
    parts.add(headStretch.at, headStretch.bytes, headStretch.checksum);
    for (const [index, { dtype, constant }] of parameters.entries()) {
      if (constant === undefined) continue;
      const value = constantBytes(constant, dtype);
      parts.add(positions[index]!, value.length, crc32c(value));
    }
    return parts;
  });
  items.forEach((item, number) => {
    const sums = checksums.get(number)!;
    eachPlace(tensors[item.tensor]!, item, (part, file, at, bytes, isOne) => {
      if (isOne) written[file]?.add(at, bytes, sums[part]!);
      else written[file] = undefined;
    });
  });
  return files.map(({ bytes }, file) => written[file]?.joined(bytes, most));
}

/** Parts of a file in any order, as numbers side by side: there may be a million of them. */
class Parts {
  #at = new Float64Array(16);
  #bytes = new Float64Array(16);
  #checksums = new Uint32Array(16);
  #count = 0;

  add(at: number, bytes: number, checksum: number): void {
    if (this.#count === this.#at.length) {
      this.#at = grown(this.#at, new Float64Array(2 * this.#count));
      this.#bytes = grown(this.#bytes, new Float64Array(2 * this.#count));
      this.#checksums = grown(this.#checksums, new Uint32Array(2 * this.#count));
    }
    this.#at[this.#count] = at;
    this.#bytes[this.#count] = bytes;
    this.#checksums[this.#count] = checksum;
    this.#count++;
  }

  /** All of a file of so many bytes: with what lies between the parts, which is zero. */
  joined(bytes: number, most: number): Stretch[] {
    const list = new Joined(most);
    for (const index of this.#order()) {
      const at = this.#at[index]!;
      if (at > list.end) list.add(at - list.end, zeroChecksum(at - list.end));
      list.add(this.#bytes[index]!, this.#checksums[index]!);
    }
    if (bytes > list.end) list.add(bytes - list.end, zeroChecksum(bytes - list.end));
    return list.stretches();
  }

  /** Ascending: mostly as they came. */
  #order(): Uint32Array {
    const order = Uint32Array.from({ length: this.#count }, (_, index) => index);
    const compare = (a: number, b: number) =>
      this.#at[a]! - this.#at[b]! || this.#bytes[a]! - this.#bytes[b]!;
    for (let index = 1; index < this.#count; index++)
      if (compare(index - 1, index) > 0) return order.sort(compare);
    return order;
  }
}

function grown<T extends Float64Array | Uint32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

/** Stretches that follow each other, of `most` bytes at the most unless one has more. */
class Joined {
  readonly #most: number;
  readonly #stretches: Stretch[] = [];
  #at = 0;
  #bytes = 0;
  #checksum = 0;

  constructor(most: number) {
    this.#most = most;
  }

  get end(): number {
    return this.#at + this.#bytes;
  }

  add(bytes: number, checksum: number): void {
    if (this.#bytes + bytes > this.#most && this.#bytes > 0) this.#cut();
    this.#checksum = joinChecksums(this.#checksum, checksum, bytes);
    this.#bytes += bytes;
  }

  #cut(): void {
    this.#stretches.push({ at: this.#at, bytes: this.#bytes, checksum: this.#checksum });
    [this.#at, this.#bytes, this.#checksum] = [this.end, 0, 0];
  }

  stretches(): Stretch[] {
    if (this.#bytes > 0) this.#cut();
    return this.#stretches;
  }
}

/** The checksum of a file from those of all of its stretches, in any order. */
export function wholeChecksum(stretches: readonly Stretch[]): number {
  const ascending = [...stretches].sort((a, b) => a.at - b.at);
  return ascending.reduce((sum, { checksum, bytes }) => joinChecksums(sum, checksum, bytes), 0);
}
