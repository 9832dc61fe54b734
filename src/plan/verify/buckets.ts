import { TensorBusError } from "../../errors.ts";
import type { Bucket, Chunk } from "../input/types.ts";

const defaultBucketBytes = 8 * 2 ** 20;
const defaultPeersInFlight = 4;
const alignment = 16;
/** A list that is looked through sooner than a set of it is made. */
const fewWaits = 8;
/** Ranks are below. */
const worldMost = 2 ** 20;
const zero = "0".charCodeAt(0);
const colon = ":".charCodeAt(0);

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
  /** For each bucket, how many chunks came without a gap among their indexes, and where the last of them ends. */
  readonly #chunks: Uint32Array;
  readonly #ends: Float64Array;
  /** The bytes of chunks that came ahead of others, by bucket and index. */
  readonly #ahead = new Map<number, Map<number, number>>();
  readonly #limits: Limits;

  /** `rank`: the list is of that rank alone, and what others wait for is not in it. */
  constructor(buckets: Iterable<Bucket>, limits: Limits, rank?: number) {
    this.#limits = limits;
    this.buckets = [...buckets];
    this.buckets.forEach((bucket, number) => {
      if (this.#numbers.has(bucket.id)) throw invalid("a bucket is listed twice", { bucket: bucket.id });
      this.#numbers.set(bucket.id, number);
    });
    this.#chunks = new Uint32Array(this.buckets.length);
    this.#ends = new Float64Array(this.buckets.length);
    this.#checkChannels();
    for (const bucket of this.buckets) {
      if (rank !== undefined && bucket.srcRank !== rank && bucket.dstRank !== rank)
        throw invalid("a bucket is in the list of a rank that is at neither of its ends", {
          bucket: bucket.id,
          rank,
        });
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
    const index = chunkIndex(chunk);
    if (index < 0)
      throw invalid("the id of a chunk is not the id of its bucket and an index", placeOf(chunk));
    // Too large a number is not exact, and too large for any bucket.
    if (!this.#take(number, index, Number(chunk.bytes)))
      throw invalid("a chunk is listed twice", { ...placeOf(chunk), rank: chunk.dstRank });
    return number;
  }

  /** Chunks of a bucket; right once all were admitted. */
  chunkCount(number: number): number {
    return this.#chunks[number]!;
  }

  /** True if bucket `reader` starts only after bucket `writer` is complete, by way of others if needed. */
  waitsFor(reader: number, writer: number): boolean {
    const { id, wave } = this.buckets[writer]!;
    const direct = this.buckets[reader]!.waitsFor;
    if (direct.length <= fewWaits && direct.includes(id)) return true;
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
      const end = this.#ends[number]!;
      if (this.#ahead.has(number)) {
        throw invalid("a chunk of a bucket is missing", {
          bucket: bucket.id,
          chunk: `${bucket.id}:${this.#chunks[number]}`,
          rank: bucket.dstRank,
        });
      }
      if (this.#chunks[number] === 0) throw invalid("a bucket has no chunk", { bucket: bucket.id });
      if (end !== Number(bucket.bytes)) {
        throw invalid("the bytes of a bucket are not the sum of its chunks' bytes", {
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

  /** False if the bucket has a chunk of that index. */
  #take(number: number, index: number, bytes: number): boolean {
    const next = this.#chunks[number]!;
    if (index < next) return false;
    const ahead = this.#ahead.get(number);
    if (index > next) {
      if (ahead?.has(index)) return false;
      if (ahead === undefined) this.#ahead.set(number, new Map([[index, bytes]]));
      else ahead.set(index, bytes);
      return true;
    }
    for (let own: number | undefined = bytes; own !== undefined; own = ahead?.get(this.#chunks[number]!)) {
      ahead?.delete(this.#chunks[number]!);
      this.#ends[number] = Math.ceil(this.#ends[number]! / alignment) * alignment + own;
      this.#chunks[number]!++;
    }
    if (ahead?.size === 0) this.#ahead.delete(number);
    return true;
  }

  /** Sequence numbers, one wave a channel, and the most channels of a wave at a receiver. */
  #checkChannels(): void {
    const channels = new Map<number, { readonly first: Bucket; count: number; last: number }>();
    const arrivals = new Map<number, Map<number, number>>();
    const most = this.#limits.peersInFlight ?? defaultPeersInFlight;
    for (const bucket of this.buckets) {
      const { id, stage, srcRank, dstRank, wave } = bucket;
      const no = (message: string) => invalid(message, { bucket: id, rank: dstRank, wave });
      if (stage !== 0 && stage !== 1 && stage !== 2) throw no(`a bucket has the unknown stage ${stage}`);
      if (!Number.isSafeInteger(wave) || wave < 0)
        throw no("the wave of a bucket is not a whole number of at least 0");
      const sequence = sequenceOf(bucket);
      if (sequence < 0) throw no("the id of a bucket does not name its own ends");
      const name = (stage * worldMost + srcRank) * worldMost + dstRank;
      const channel = channels.get(name);
      if (channel !== undefined) {
        if (channel.first.wave !== wave) throw no("a channel has more than one wave");
        channel.count++;
        channel.last = Math.max(channel.last, sequence);
        continue;
      }
      channels.set(name, { first: bucket, count: 1, last: sequence });
      const receivers = arrivals.get(wave) ?? new Map<number, number>();
      if (receivers.size === 0) arrivals.set(wave, receivers);
      const arriving = (receivers.get(dstRank) ?? 0) + 1;
      if (arriving > most) throw no(`a receiver has more than ${most} channels in a wave`);
      receivers.set(dstRank, arriving);
    }
    for (const { first, count, last } of channels.values()) {
      // Ids are unique, so that `count` numbers up to `count - 1` are all of them.
      if (last === count - 1) continue;
      const name = `${first.stage}:${first.srcRank}:${first.dstRank}`;
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

/** The index of a chunk in its bucket; -1 if its id is not the bucket's and a number. */
export function chunkIndex({ id, bucket }: Pick<Chunk, "id" | "bucket">): number {
  return id.startsWith(bucket) ? numberAfter(id, bucket.length) : -1;
}

/** The place of a bucket in its channel; -1 if its id is not `stage:source:destination:` and a number. */
function sequenceOf({ id, stage, srcRank, dstRank }: Bucket): number {
  let at = 0;
  for (const expected of [stage, srcRank, dstRank]) {
    const digits = decimalLength(expected);
    if (numberBetween(id, at, at + digits) !== expected) return -1;
    at += digits;
    if (id.charCodeAt(at++) !== colon) return -1;
  }
  return numberBetween(id, at, id.length);
}

/** The number that an id ends with, after a beginning of so many characters and a colon; -1 if it does not. */
function numberAfter(id: string, beginning: number): number {
  return id.charCodeAt(beginning) === colon ? numberBetween(id, beginning + 1, id.length) : -1;
}

function decimalLength(value: number): number {
  let digits = 1;
  for (let most = 10; digits < 10 && value >= most; most *= 10) digits++;
  return digits;
}

/** Up to nine digits without a zero before them as a number, else -1. */
function numberBetween(id: string, start: number, end: number): number {
  const digits = end - start;
  if (digits < 1 || digits > 9 || (digits > 1 && id.charCodeAt(start) === zero)) return -1;
  let value = 0;
  for (let at = start; at < end; at++) {
    const digit = id.charCodeAt(at) - zero;
    // Beyond the end there is no character, which is not a number.
    if (!(digit >= 0 && digit <= 9)) return -1;
    value = value * 10 + digit;
  }
  return value;
}
