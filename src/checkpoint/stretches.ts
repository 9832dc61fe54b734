/** What a file holds, stretch by stretch, with the checksum of each: what was written is summed up without reading it again. */
import { crc32c } from "../memory/kernels.ts";
import { joinChecksums, zeroChecksum } from "./checksum.ts";
import { constantBytes, type PlannedFile } from "./output.ts";
import { type ItemChecksums, placesOf } from "./scatter.ts";
import type { MovedTensor, WorkItem } from "./work.ts";

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
    placesOf(tensors[item.tensor]!, item).forEach(({ file, at, bytes, isOne }, part) => {
      if (isOne) written[file]?.add(at, bytes, checksums.get(number)![part]!);
      else written[file] = undefined;
    });
  });
  return files.map(({ bytes }, file) => written[file] && joined(filled(written[file], bytes), most));
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

  *ascending(): Generator<Stretch> {
    const order = Uint32Array.from({ length: this.#count }, (_, index) => index);
    order.sort((a, b) => this.#at[a]! - this.#at[b]! || this.#bytes[a]! - this.#bytes[b]!);
    for (const index of order)
      yield { at: this.#at[index]!, bytes: this.#bytes[index]!, checksum: this.#checksums[index]! };
  }
}

function grown<T extends Float64Array | Uint32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

/** With what lies between them, which is zero. */
function* filled(parts: Parts, bytes: number): Generator<Stretch> {
  let end = 0;
  const zeros = (next: number): Stretch => ({
    at: end,
    bytes: next - end,
    checksum: zeroChecksum(next - end),
  });
  for (const stretch of parts.ascending()) {
    if (stretch.at > end) yield zeros(stretch.at);
    yield stretch;
    end = stretch.at + stretch.bytes;
  }
  if (bytes > end) yield zeros(bytes);
}

function joined(stretches: Iterable<Stretch>, most: number): Stretch[] {
  const list: Stretch[] = [];
  for (const next of stretches) {
    const last = list.at(-1);
    if (last === undefined || last.bytes + next.bytes > most) list.push(next);
    else list[list.length - 1] = joinedStretch(last, next);
  }
  return list;
}

function joinedStretch(one: Stretch, next: Stretch): Stretch {
  const checksum = joinChecksums(one.checksum, next.checksum, next.bytes);
  return { at: one.at, bytes: one.bytes + next.bytes, checksum };
}

/** The checksum of a file from those of all of its stretches, in any order. */
export function wholeChecksum(stretches: readonly Stretch[]): number {
  const ascending = [...stretches].sort((a, b) => a.at - b.at);
  return ascending.reduce((sum, { checksum, bytes }) => joinChecksums(sum, checksum, bytes), 0);
}
