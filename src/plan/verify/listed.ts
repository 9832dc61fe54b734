import { type BucketRows, emptyChunkRow, type PlanRows } from "../input/rows.ts";
import type { Bucket, Chunk } from "../input/types.ts";
import { invalid } from "./buckets.ts";

const zero = "0".charCodeAt(0);
const colon = ":".charCodeAt(0);

/** What both ends of a channel are to list alike. */
interface Witness {
  chunk(rank: number, chunk: Chunk): void;
  bucket(rank: number, bucket: Bucket): void;
}

/** The lists are of one rank alone. */
interface RankView {
  readonly rank: number;
  readonly agreement: Witness;
}

/**
 * Lists with ids as rows, and the rules of the ids: each says what it is of, none is there twice, and none leads nowhere.
 * In the list of one rank, what others wait for is not there and is left out.
 */
export function listedRows(chunks: Iterable<Chunk>, listed: Iterable<Bucket>, view?: RankView): PlanRows {
  const numbers = new Map<string, number>();
  const buckets = bucketRows([...listed], numbers, view);
  const row = emptyChunkRow();
  return {
    buckets,
    eachChunk(use) {
      for (const chunk of chunks) {
        const bucket = numbers.get(chunk.bucket);
        if (bucket === undefined) throw invalid("a chunk is in a bucket that is not listed", placeOf(chunk));
        const index = chunkIndex(chunk);
        if (index < 0)
          throw invalid("the id of a chunk is not the id of its bucket and an index", placeOf(chunk));
        view?.agreement.chunk(view.rank, chunk);
        row.stage = chunk.stage;
        row.wave = chunk.wave;
        row.srcRank = chunk.srcRank;
        row.dstRank = chunk.dstRank;
        row.bucket = bucket;
        row.index = index;
        row.tensor = chunk.tensor;
        row.kind = chunk.kind;
        row.from = chunk.from;
        row.to = chunk.to;
        readVector(chunk.srcOffsets, row.srcOffsets);
        readVector(chunk.dstOffsets, row.dstOffsets);
        readVector(chunk.lengths, row.lengths);
        row.bytes = exactNumber(chunk.bytes);
        use(row);
      }
    },
  };
}

function bucketRows(list: readonly Bucket[], numbers: Map<string, number>, view?: RankView): BucketRows {
  const waitFirst = new Uint32Array(list.length + 1);
  const rows = {
    count: list.length,
    stage: new Uint8Array(list.length),
    wave: new Float64Array(list.length),
    srcRank: new Uint32Array(list.length),
    dstRank: new Uint32Array(list.length),
    sequence: new Uint32Array(list.length),
    bytes: new Float64Array(list.length),
  };
  list.forEach((bucket, number) => {
    const { id, stage, wave, srcRank, dstRank } = bucket;
    const no = (message: string) => invalid(message, { bucket: id, rank: dstRank, wave });
    if (numbers.has(id)) throw invalid("a bucket is listed twice", { bucket: id });
    if (stage !== 0 && stage !== 1 && stage !== 2) throw no(`a bucket has the unknown stage ${stage}`);
    const sequence = sequenceOf(bucket);
    if (sequence < 0) throw no("the id of a bucket does not name its own ends");
    if (view !== undefined && srcRank !== view.rank && dstRank !== view.rank)
      throw invalid("a bucket is in the list of a rank that is at neither of its ends", {
        bucket: id,
        rank: view.rank,
      });
    numbers.set(id, number);
    view?.agreement.bucket(view.rank, bucket);
    rows.stage[number] = stage;
    rows.wave[number] = wave;
    rows.srcRank[number] = srcRank;
    rows.dstRank[number] = dstRank;
    rows.sequence[number] = sequence;
    rows.bytes[number] = exactNumber(bucket.bytes);
  });
  const waits: number[] = [];
  list.forEach((bucket, number) => {
    if (view === undefined || bucket.srcRank === view.rank) {
      for (const id of bucket.waitsFor) waits.push(waitOf(bucket, id, numbers));
    }
    waitFirst[number + 1] = waits.length;
  });
  return { ...rows, waitFirst, waits: Uint32Array.from(waits) };
}

function waitOf(bucket: Bucket, id: string, numbers: ReadonlyMap<string, number>): number {
  const number = numbers.get(id);
  if (number !== undefined) return number;
  const details = { bucket: bucket.id, waitsFor: id, rank: bucket.srcRank };
  throw invalid("a bucket waits for one that is not listed", details);
}

function readVector(from: readonly bigint[], to: number[]): void {
  to.length = from.length;
  for (let dim = 0; dim < from.length; dim++) to[dim] = exactNumber(from[dim]!);
}

/** NaN for what is no bigint, or too large to be exact: no rule holds for it. */
function exactNumber(value: bigint): number {
  const number = typeof value === "bigint" ? Number(value) : Number.NaN;
  return Number.isSafeInteger(number) ? number : Number.NaN;
}

function placeOf({ id, tensor, bucket, dstRank }: Chunk) {
  return { chunk: id, tensor, bucket, rank: dstRank };
}

/** The index of a chunk in its bucket; -1 if its id is not the bucket's and a number. */
function chunkIndex({ id, bucket }: Chunk): number {
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
