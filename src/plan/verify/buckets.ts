import { TensorBusError } from "../../errors.ts";
import type { BucketRows, ChunkRow } from "../input/rows.ts";
import { Places } from "./places.ts";

const defaultBucketBytes = 8 * 2 ** 20;
const defaultPeersInFlight = 4;
const alignment = 16;
/** A list that is looked through sooner than a set of it is made. */
const fewWaits = 64;
/** Ranks are below. */
const worldMost = 2 ** 20;
const ends = ["stage", "wave", "srcRank", "dstRank"] as const;

/** A broken rule of a plan, as the error that says where. */
export function invalid(message: string, details: Readonly<Record<string, unknown>>): TensorBusError {
  return new TensorBusError("TB_PLAN_INVALID", message, { details });
}

interface Limits {
  readonly bucketBytes?: number;
  readonly peersInFlight?: number;
}

/** The buckets: their own rules, what waits for what, and the payload that chunks fill them with. */
export class BucketTable {
  readonly rows: BucketRows;
  readonly #waits: (ReadonlySet<number> | undefined)[] = [];
  /** For each bucket, how many chunks came without a gap among their indexes, and where the last of them ends. */
  readonly #chunks: Uint32Array;
  readonly #ends: Float64Array;
  /** The bytes of chunks that came ahead of others, by bucket and index. */
  readonly #ahead = new Map<number, Map<number, number>>();
  readonly #limits: Limits;

  constructor(rows: BucketRows, limits: Limits) {
    this.#limits = limits;
    this.rows = rows;
    this.#chunks = new Uint32Array(rows.count);
    this.#ends = new Float64Array(rows.count);
    this.#checkChannels();
    for (let bucket = 0; bucket < rows.count; bucket++) this.#checkWaits(bucket);
  }

  idOf(bucket: number): string {
    const { stage, srcRank, dstRank, sequence } = this.rows;
    return `${stage[bucket]}:${srcRank[bucket]}:${dstRank[bucket]}:${sequence[bucket]}`;
  }

  chunkId(bucket: number, index: number): string {
    return `${this.idOf(bucket)}:${index}`;
  }

  /** Takes a chunk into its bucket. */
  admit(chunk: ChunkRow): void {
    const { bucket, index } = chunk;
    const { rows } = this;
    if (!(bucket >= 0 && bucket < rows.count)) {
      const { tensor, dstRank } = chunk;
      throw invalid("a chunk is in a bucket that is not listed", { bucket, index, tensor, rank: dstRank });
    }
    if (
      chunk.stage !== rows.stage[bucket] ||
      chunk.wave !== rows.wave[bucket] ||
      chunk.srcRank !== rows.srcRank[bucket] ||
      chunk.dstRank !== rows.dstRank[bucket]
    ) {
      const field = ends.find((name) => chunk[name] !== rows[name][bucket])!;
      throw invalid(`a chunk and its bucket differ in ${field}`, {
        ...this.#placeOf(chunk),
        found: chunk[field],
        expected: rows[field][bucket],
      });
    }
    if (!this.#take(bucket, index, chunk.bytes))
      throw invalid("a chunk is listed twice", this.#placeOf(chunk));
  }

  /** Chunks of a bucket; right once all were admitted. */
  chunkCount(bucket: number): number {
    return this.#chunks[bucket]!;
  }

  /** True if bucket `reader` starts only after bucket `writer` is complete, by way of others if needed. */
  waitsFor(reader: number, writer: number): boolean {
    const { wave } = this.rows;
    if (this.#waitsDirectly(reader, writer)) return true;
    const seen = new Set<number>();
    const open = [reader];
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      if (this.#waitsDirectly(next, writer)) return true;
      for (const earlier of this.#waitsOf(next)) {
        if (wave[earlier]! > wave[writer]! && !seen.has(earlier)) {
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
    for (let bucket = 0; bucket < this.rows.count; bucket++) {
      const end = this.#ends[bucket]!;
      const rank = this.rows.dstRank[bucket]!;
      if (this.#ahead.has(bucket)) {
        const chunk = this.chunkId(bucket, this.#chunks[bucket]!);
        throw invalid("a chunk of a bucket is missing", { bucket: this.idOf(bucket), chunk, rank });
      }
      if (this.#chunks[bucket] === 0)
        throw invalid("a bucket has no chunk", { bucket: this.idOf(bucket), rank });
      const bytes = this.rows.bytes[bucket]!;
      if (end !== bytes) {
        const details = { bucket: this.idOf(bucket), rank, found: bytes, expected: end };
        throw invalid("the bytes of a bucket are not the sum of its chunks' bytes", details);
      }
      if (end > most) {
        const details = { bucket: this.idOf(bucket), rank, bytes, bucketBytes: most };
        throw invalid("a bucket exceeds bucketBytes", details);
      }
    }
  }

  /** False if the bucket has a chunk of that index. */
  #take(bucket: number, index: number, bytes: number): boolean {
    const next = this.#chunks[bucket]!;
    if (index < next) return false;
    if (index > next) return this.#takeAhead(bucket, index, bytes);
    this.#append(bucket, bytes);
    if (this.#ahead.size > 0) this.#appendAhead(bucket);
    return true;
  }

  #takeAhead(bucket: number, index: number, bytes: number): boolean {
    const ahead = this.#ahead.get(bucket);
    if (ahead?.has(index)) return false;
    if (ahead === undefined) this.#ahead.set(bucket, new Map([[index, bytes]]));
    else ahead.set(index, bytes);
    return true;
  }

  #append(bucket: number, bytes: number): void {
    this.#ends[bucket] = Math.ceil(this.#ends[bucket]! / alignment) * alignment + bytes;
    this.#chunks[bucket]!++;
  }

  #appendAhead(bucket: number): void {
    const ahead = this.#ahead.get(bucket);
    if (ahead === undefined) return;
    for (let index = this.#chunks[bucket]!; ahead.has(index); index++) {
      this.#append(bucket, ahead.get(index)!);
      ahead.delete(index);
    }
    if (ahead.size === 0) this.#ahead.delete(bucket);
  }

  /** Sequence numbers, one wave a channel, and the most channels of a wave at a receiver. */
  #checkChannels(): void {
    const { count, stage, srcRank, dstRank, wave } = this.rows;
    const channels = new Places(count);
    const channelOf = new Uint32Array(count);
    /** By channel: how many buckets it has, and the place of the first. */
    const sizes = new Uint32Array(count);
    const firsts = new Uint32Array(count);
    const waves = new Places(0);
    const receivers = new Places(0);
    const arriving: number[] = [];
    const most = this.#limits.peersInFlight ?? defaultPeersInFlight;
    for (let bucket = 0; bucket < count; bucket++) {
      const no = (message: string) =>
        invalid(message, { bucket: this.idOf(bucket), rank: dstRank[bucket], wave: wave[bucket] });
      if (!(stage[bucket]! <= 2)) throw no(`a bucket has the unknown stage ${stage[bucket]}`);
      if (!Number.isSafeInteger(wave[bucket]) || wave[bucket]! < 0)
        throw no("the wave of a bucket is not a whole number of at least 0");
      if (!(srcRank[bucket]! < worldMost && dstRank[bucket]! < worldMost))
        throw no(`a rank of a bucket is not below ${worldMost}`);
      const name = (stage[bucket]! * worldMost + srcRank[bucket]!) * worldMost + dstRank[bucket]!;
      const channel = channels.placeOf(name);
      channelOf[bucket] = channel;
      if (sizes[channel]!++ > 0) {
        if (wave[firsts[channel]!] !== wave[bucket]) throw no("a channel has more than one wave");
        continue;
      }
      firsts[channel] = bucket;
      const receiver = receivers.placeOf(waves.placeOf(wave[bucket]!) * worldMost + dstRank[bucket]!);
      arriving[receiver] = (arriving[receiver] ?? 0) + 1;
      if (arriving[receiver]! > most) throw no(`a receiver has more than ${most} channels in a wave`);
    }
    this.#checkSequences(channelOf, sizes.subarray(0, channels.count), firsts);
  }

  /** The numbers of a channel's buckets are those below its size, each once. */
  #checkSequences(channelOf: Uint32Array, sizes: Uint32Array, firsts: Uint32Array): void {
    const { count, sequence } = this.rows;
    const starts = new Uint32Array(sizes.length + 1);
    for (let channel = 0; channel < sizes.length; channel++)
      starts[channel + 1] = starts[channel]! + sizes[channel]!;
    const isThere = new Uint8Array(count);
    for (let bucket = 0; bucket < count; bucket++) {
      const channel = channelOf[bucket]!;
      // A number beyond leaves one below without its bucket.
      if (sequence[bucket]! >= sizes[channel]!) continue;
      const place = starts[channel]! + sequence[bucket]!;
      if (isThere[place] === 1) throw invalid("a bucket is listed twice", { bucket: this.idOf(bucket) });
      isThere[place] = 1;
    }
    const gap = isThere.indexOf(0);
    if (gap < 0) return;
    const channel = starts.findIndex((_, at) => starts[at + 1]! > gap);
    const { stage, srcRank, dstRank } = this.rows;
    const first = firsts[channel]!;
    const name = `${stage[first]}:${srcRank[first]}:${dstRank[first]}`;
    throw invalid("a bucket of a channel is missing", { bucket: `${name}:${gap - starts[channel]!}` });
  }

  /** A bucket has a larger wave than those that it waits for, so there can be no circle. */
  #checkWaits(bucket: number): void {
    const { count, wave, srcRank, dstRank, waitFirst, waits } = this.rows;
    for (let at = waitFirst[bucket]!; at < waitFirst[bucket + 1]!; at++) {
      const earlier = waits[at]!;
      const no = (message: string, details = {}) =>
        invalid(message, {
          bucket: this.idOf(bucket),
          waitsFor: earlier < count ? this.idOf(earlier) : earlier,
          rank: srcRank[bucket],
          ...details,
        });
      if (!(earlier < count)) throw no("a bucket waits for one that is not listed");
      if (wave[earlier]! >= wave[bucket]!) {
        const both = { wave: wave[bucket], waitsForWave: wave[earlier] };
        throw no("a bucket does not have a larger wave than one that it waits for", both);
      }
      if (srcRank[earlier] !== srcRank[bucket] && dstRank[earlier] !== srcRank[bucket])
        throw no("a bucket waits for one that its sender does not see");
    }
  }

  #waitsOf(bucket: number): Uint32Array {
    const { waitFirst, waits } = this.rows;
    return waits.subarray(waitFirst[bucket]!, waitFirst[bucket + 1]!);
  }

  #waitsDirectly(reader: number, writer: number): boolean {
    const { waitFirst, waits } = this.rows;
    const end = waitFirst[reader + 1]!;
    if (end - waitFirst[reader]! > fewWaits) return this.#waitSet(reader).has(writer);
    for (let at = waitFirst[reader]!; at < end; at++) if (waits[at] === writer) return true;
    return false;
  }

  #waitSet(bucket: number): ReadonlySet<number> {
    let set = this.#waits[bucket];
    if (set === undefined) {
      set = new Set(this.#waitsOf(bucket));
      this.#waits[bucket] = set;
    }
    return set;
  }

  #placeOf({ bucket, index, tensor, dstRank }: ChunkRow) {
    const id = this.idOf(bucket);
    return { chunk: `${id}:${index}`, tensor, bucket: id, rank: dstRank };
  }
}
