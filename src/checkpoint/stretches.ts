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
  const written: (Stretch[] | undefined)[] = files.map(({ headStretch, parameters, positions }) => [
    headStretch,
    ...parameters.flatMap(({ dtype, constant }, index) => {
      if (constant === undefined) return [];
      const value = constantBytes(constant, dtype);
      return [{ at: positions[index]!, bytes: value.length, checksum: crc32c(value) }];
    }),
  ]);
  items.forEach((item, number) => {
    placesOf(tensors[item.tensor]!, item).forEach(({ file, at, bytes, isOne }, part) => {
      if (isOne) written[file]?.push({ at, bytes, checksum: checksums.get(number)![part]! });
      else written[file] = undefined;
    });
  });
  return files.map(({ bytes }, file) => written[file] && joined(filled(written[file], bytes), most));
}

/** With what lies between them, which is zero. */
function* filled(stretches: Stretch[], bytes: number): Generator<Stretch> {
  let end = 0;
  const zeros = (next: number): Stretch => ({
    at: end,
    bytes: next - end,
    checksum: zeroChecksum(next - end),
  });
  for (const stretch of stretches.sort((a, b) => a.at - b.at || a.bytes - b.bytes)) {
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
