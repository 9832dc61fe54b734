import type { Bucket, Chunk } from "../input/types.ts";
import { invalid } from "./buckets.ts";

/** What the sender listed of a channel less what the receiver listed, as sums of two hashes and a count. */
interface Difference {
  first: number;
  second: number;
  count: number;
}

/**
 * Compares what both ends of every channel list, without keeping the lists: the hashes of equal lists in any order leave
 * nothing. It finds two views of a plan that differ; it is no defence against someone who chooses them to collide.
 */
export class Agreement {
  readonly #channels = new Map<string, Difference>();

  chunk(rank: number, chunk: Chunk): void {
    const { id, kind, tensor, from, to, srcOffsets, dstOffsets, lengths, bytes, wave } = chunk;
    const text = `${id}|${kind}|${tensor}|${from}|${to}|${srcOffsets}|${dstOffsets}|${lengths}|${bytes}|${wave}`;
    this.#take(rank, chunk, text);
  }

  bucket(rank: number, bucket: Bucket): void {
    const { id, bytes, wave, waitsFor } = bucket;
    this.#take(rank, bucket, `${id}|${bytes}|${wave}|${waitsFor.toSorted()}`);
  }

  /** After both ends of all channels were listed. */
  finish(): void {
    for (const [channel, { first, second, count }] of this.#channels) {
      if (first === 0 && second === 0 && count === 0) continue;
      const [stage, srcRank, rank] = channel.split(":").map(Number);
      throw invalid("the two ends of a channel are listed differently", { stage, srcRank, rank });
    }
  }

  #take(rank: number, { stage, srcRank, dstRank }: Chunk | Bucket, text: string): void {
    if (srcRank === dstRank) return;
    const channel = `${stage}:${srcRank}:${dstRank}`;
    const difference = this.#channels.get(channel) ?? { first: 0, second: 0, count: 0 };
    this.#channels.set(channel, difference);
    const sign = rank === srcRank ? 1 : -1;
    difference.first = (difference.first + sign * hash(text, 0x811c9dc5)) | 0;
    difference.second = (difference.second + sign * hash(text, 0x2f0b4c47)) | 0;
    difference.count += sign;
  }
}

/** Multiplies and mixes character by character, so that neighbours in a text do not cancel. */
function hash(text: string, seed: number): number {
  let value = seed;
  for (let at = 0; at < text.length; at++) {
    value = Math.imul(value ^ text.charCodeAt(at), 0x01000193);
    value ^= value >>> 15;
  }
  return value | 0;
}
