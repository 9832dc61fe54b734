import { sha256 } from "@noble/hashes/sha2.js";

/** What a case made: the floor is the time to make as much of it without planning. */
export interface Made {
  /** The plan's canonical bytes: whoever plans has to hash as many. */
  readonly planBytes: Uint8Array;
  /** Chunks that were listed as objects. */
  readonly listed?: number;
  /** Chunks that were counted and summed up, but not listed. */
  readonly visited?: number;
  /** The bytes of a program. */
  readonly programBytes?: Uint8Array;
}

/**
 * The least that this engine takes for what a case made, measured in the same run: the hash of the same bytes, as many
 * objects like chunks with offsets read from a typed array, as many additions, a copy of the program's bytes.
 */
export function runFloor({ planBytes, listed = 0, visited = 0, programBytes }: Made): unknown {
  return [sha256(planBytes), listLike(listed), addUp(visited), programBytes?.slice()];
}

const words = BigInt64Array.from({ length: 4096 }, (_, index) => BigInt(index));

/** Objects of a chunk's form, two dimensions; only the last is kept, as by a caller that looks at each. */
function listLike(count: number): unknown {
  let last: unknown;
  for (let index = 0; index < count; index++) {
    const at = (index * 6) % 4000;
    const bucket = `1:${index}:0:0`;
    last = {
      id: `${bucket}:0`,
      stage: 1,
      kind: "send",
      srcRank: index,
      dstRank: 0,
      tensor: 0,
      from: "source",
      to: "target",
      srcOffsets: [words[at], words[at + 1]],
      dstOffsets: [words[at + 2], words[at + 3]],
      lengths: [words[at + 4], words[at + 5]],
      bytes: words[at],
      bucket,
      wave: 0,
    };
  }
  return last;
}

const numbers = Float64Array.from({ length: 4096 }, (_, index) => index);

function addUp(count: number): number {
  let sum = 0;
  for (let index = 0; index < count; index++) sum += numbers[index & 4095]!;
  return sum;
}
