import { TensorBusError } from "../errors.ts";
import type { Bucket, Chunk } from "./types.ts";

const defaultBucketBytes = 8 * 2 ** 20;
const defaultPeersInFlight = 4;
const alignment = 16;

/** A broken rule of a plan, as the error that says where. */
export function invalid(message: string, details: Readonly<Record<string, unknown>>): TensorBusError {
  return new TensorBusError("TB_PLAN_INVALID", message, { details });
}

interface Limits {
  readonly bucketBytes?: number;
  readonly peersInFlight?: number;
}

/** The listed buckets by id: their own rules, what waits for what, and the payload that chunks fill them with. */
export class BucketTable {
  readonly buckets: readonly Bucket[];
  readonly #numbers = new Map<string, number>();
  readonly #waits: (ReadonlySet<number> | undefined)[] = [];
  /** For each bucket, the bytes of its chunks by index. */
  readonly #chunkBytes: number[][] = [];
  readonly #limits: Limits;

  /** `rank`: the list is of that rank alone, and what others wait for is not in it. */
  constructor(buckets: Iterable<Bucket>, limits: Limits, rank?: number) {
    this.#limits = limits;
    this.buckets = [...buckets];
    this.buckets.forEach((bucket, number) => {
      if (this.#numbers.has(bucket.id)) throw invalid("a bucket is listed twice", { bucket: bucket.id });
      this.#numbers.set(bucket.id, number);
      this.#chunkBytes.push([]);
    });
    this.#checkChannels();
    for (const bucket of this.buckets) {
      if (rank !== undefined && bucket.srcRank !== rank && bucket.dstRank !== rank)
        throw invalid("a bucket in the list of a rank that is at neither end", { bucket: bucket.id, rank });
      if (rank === undefined || bucket.srcRank === rank) this.#checkWaits(bucket);
    }
  }

  /** Takes a chunk into its bucket and returns the bucket's number. */
  admit(chunk: Chunk): number {
    const number = this.#numbers.get(chunk.bucket);
    if (number === undefined) throw invalid("a chunk is in a bucket that is not listed", placeOf(chunk));
    const bucket = this.buckets[number]!;
    for (const field of ["stage", "wave", "srcRank", "dstRank"] as const) {
      if (chunk[field] !== bucket[field]) {
        throw invalid(`a chunk and its bucket differ in ${field}`, {
          ...placeOf(chunk),
          rank: chunk.dstRank,
          found: chunk[field],
          expected: bucket[field],
        });
      }
    }
    const index = this.#indexOf(chunk);
    const bytes = this.#chunkBytes[number]!;
    if (bytes[index] !== undefined)
      throw invalid("a chunk is listed twice", { ...placeOf(chunk), rank: chunk.dstRank });
    // Too large a number is not exact, and too large for any bucket.
    bytes[index] = Number(chunk.bytes);
    return number;
  }

  /** Chunks of a bucket; right once all were admitted. */
  chunkCount(number: number): number {
    return this.#chunkBytes[number]!.length;
  }

  /** Whether bucket `reader` starts only after bucket `writer` is complete, by way of others where needed. */
  waitsFor(reader: number, writer: number): boolean {
    const wave = this.buckets[writer]!.wave;
    const seen = new Set<number>();
    const open = [reader];
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      const waits = this.#waitSet(next);
      if (waits.has(writer)) return true;
      for (const earlier of waits) {
        if (this.buckets[earlier]!.wave > wave && !seen.has(earlier)) {
          seen.add(earlier);
          open.push(earlier);
        }
      }
    }
    return false;
  }

  /** After the last chunk: no gap among the indexes of a bucket, and its bytes are those of its chunks. */
  finish(): void {
    const most = this.#limits.bucketBytes ?? defaultBucketBytes;
    this.buckets.forEach((bucket, number) => {
      const chunks = this.#chunkBytes[number]!;
      if (chunks.length === 0) throw invalid("a bucket without a chunk", { bucket: bucket.id });
      let end = 0;
      for (let index = 0; index < chunks.length; index++) {
        const bytes = chunks[index];
        if (bytes === undefined) {
          throw invalid("a chunk of a bucket is missing", {
            bucket: bucket.id,
            chunk: `${bucket.id}:${index}`,
            rank: bucket.dstRank,
          });
        }
        end = Math.ceil(end / alignment) * alignment + bytes;
      }
      if (end !== Number(bucket.bytes)) {
        throw invalid("the bytes of a bucket are not those of its chunks", {
          bucket: bucket.id,
          found: bucket.bytes,
          expected: BigInt(end),
        });
      }
      if (end > most) {
        const details = { bucket: bucket.id, bytes: bucket.bytes, bucketBytes: BigInt(most) };
        throw invalid("a bucket exceeds bucketBytes", details);
      }
    });
  }

  #indexOf(chunk: Chunk): number {
    const index = numberAfter(chunk.id, chunk.bucket);
    if (index < 0) throw invalid("the id of a chunk is not its bucket's and an index", placeOf(chunk));
    return index;
  }

  /** Sequence numbers, one wave a channel, and the most channels of a wave at a receiver. */
  #checkChannels(): void {
    const channels = new Map<string, { readonly wave: number; count: number; last: number }>();
    const arrivals = new Map<string, number>();
    const most = this.#limits.peersInFlight ?? defaultPeersInFlight;
    for (const bucket of this.buckets) {
      const { id, stage, srcRank, dstRank, wave } = bucket;
      const name = `${stage}:${srcRank}:${dstRank}`;
      const no = (message: string) => invalid(message, { bucket: id, rank: dstRank, wave });
      if (stage !== 0 && stage !== 1 && stage !== 2) throw no(`a bucket of stage ${stage}`);
      if (!Number.isSafeInteger(wave) || wave < 0) throw no("a wave is malformed");
      const sequence = numberAfter(id, name);
      if (sequence < 0) throw no("the id of a bucket is not that of its ends");
      const channel = channels.get(name);
      if (channel !== undefined) {
        if (channel.wave !== wave) throw no("a channel has more than one wave");
        channel.count++;
        channel.last = Math.max(channel.last, sequence);
        continue;
      }
      channels.set(name, { wave, count: 1, last: sequence });
      const receiver = `${wave}:${dstRank}`;
      const arriving = (arrivals.get(receiver) ?? 0) + 1;
      if (arriving > most) throw no(`a receiver has more than ${most} channels in a wave`);
      arrivals.set(receiver, arriving);
    }
    for (const [name, { count, last }] of channels) {
      // Ids are unique, so that `count` numbers up to `count - 1` are all of them.
      if (last === count - 1) continue;
      let missing = 0;
      while (this.#numbers.has(`${name}:${missing}`)) missing++;
      throw invalid("a bucket of a channel is missing", { bucket: `${name}:${missing}` });
    }
  }

  /** That waves grow along what is waited for is also what excludes circles. */
  #checkWaits(bucket: Bucket): void {
    for (const id of bucket.waitsFor) {
      const no = (message: string, details = {}) =>
        invalid(message, { bucket: bucket.id, waitsFor: id, rank: bucket.srcRank, ...details });
      const number = this.#numbers.get(id);
      if (number === undefined) throw no("a bucket waits for one that is not listed");
      const earlier = this.buckets[number]!;
      if (earlier.wave >= bucket.wave) {
        const waves = { wave: bucket.wave, waitsForWave: earlier.wave };
        throw no("a bucket does not have a larger wave than one that it waits for", waves);
      }
      if (earlier.srcRank !== bucket.srcRank && earlier.dstRank !== bucket.srcRank) {
        throw no("a bucket waits for one that its sender does not see");
      }
    }
  }

  #waitSet(number: number): ReadonlySet<number> {
    let waits = this.#waits[number];
    if (waits === undefined) {
      waits = new Set(this.buckets[number]!.waitsFor.map((id) => this.#numbers.get(id)!));
      this.#waits[number] = waits;
    }
    return waits;
  }
}

function placeOf({ id, tensor, bucket }: Chunk) {
  return { chunk: id, tensor, bucket };
}

/** The number that an id ends with, after what it begins with and a colon; -1 where it is not of that form. */
function numberAfter(id: string, beginning: string): number {
  const start = beginning.length + 1;
  const digits = id.length - start;
  if (digits < 1 || digits > 9 || id.charCodeAt(start - 1) !== 58 || !id.startsWith(beginning)) return -1;
  if (digits > 1 && id.charCodeAt(start) === 48) return -1;
  let value = 0;
  for (let at = start; at < id.length; at++) {
    const digit = id.charCodeAt(at) - 48;
    if (digit < 0 || digit > 9) return -1;
    value = value * 10 + digit;
  }
  return value;
}
