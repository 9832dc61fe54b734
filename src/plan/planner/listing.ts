import { TensorBusError } from "../../errors.ts";
import { isPacked, unitOf } from "../../layout/index.ts";
import { defaultMaxChunks } from "../input/normalize.ts";
import type { Bucket, Chunk, ChunkKind, Stage } from "../input/types.ts";
import { Question, type Subject } from "./question.ts";

/** The answers of `gather`, by the numbers of `answer` in `assembly/index.ts`. */
const answers = {
  records: 0,
  recordBytes: 1,
  recordCount: 2,
  order: 3,
  bucketCount: 4,
  bucketChannel: 5,
  bucketSequence: 6,
  bucketFirst: 7,
  bucketSize: 8,
  usedCount: 9,
  usedWave: 10,
  dependencyFirst: 11,
  dependencies: 12,
  wide: 13,
} as const;

export const headBytes = 48;
export const kinds: readonly ChunkKind[] = ["copy", "send", "reduce"];
const none: readonly string[] = Object.freeze([]);

/** Views on what was gathered. */
export interface Gathered {
  readonly recordWords: Uint32Array;
  readonly recordLongs: BigInt64Array;
  readonly wordsPerRecord: number;
  readonly dims: number;
  /** Offsets and lengths are 64 bits rather than 32. */
  readonly wide: boolean;
  readonly count: number;
  readonly order: Uint32Array;
  readonly bucketCount: number;
  readonly bucketChannel: Uint32Array;
  readonly bucketSequence: Uint32Array;
  readonly bucketFirst: Uint32Array;
  readonly bucketSize: BigInt64Array;
  readonly wave: Uint32Array;
  readonly dependencyFirst: Uint32Array;
  readonly dependencies: Uint32Array;
  /** For each tensor of a packed type, how many of its elements are one; absent if there is none. */
  readonly units: ReadonlyMap<number, bigint> | undefined;
}

function gather(
  question: Question,
  subject: Subject,
  rank: number | undefined,
  forBuckets: boolean,
  most = subject.input.maxChunks,
): Gathered {
  if (rank === undefined) {
    const all = question.ask((planner) => planner.countAll());
    if (all > BigInt(most)) throw tooLarge(all, most);
  }
  question.withChannels();
  const ask = (limit: number, dependencies: boolean): bigint =>
    question.ask((planner) => planner.gather(rank ?? -1, BigInt(limit), dependencies ? 1 : 0));
  if (rank !== undefined && forBuckets) {
    // The buckets that this rank's buckets wait for bring chunks of other ranks along; maxChunks bounds this rank's own.
    const own = ask(0, false);
    if (own > BigInt(most)) throw tooLarge(own, most);
  }
  const limit = rank !== undefined && forBuckets ? Math.max(most, defaultMaxChunks) : most;
  const count = ask(limit, forBuckets);
  if (count > BigInt(limit)) throw tooLarge(count, limit);
  return readAnswers(question, subject, forBuckets);
}

export function readAnswers(question: Question, subject: Subject, forBuckets: boolean): Gathered {
  const { buffer } = question.planner;
  // Made by the first list, since few commands make one.
  if (smallBigints.length === 0) smallBigints = Array.from({ length: 2 ** 14 }, (_, value) => BigInt(value));
  const at = question.ask((planner) => Object.values(answers).map((which) => planner.answer(which)));
  const words = (which: number, length: number) => new Uint32Array(buffer, at[which]!, length);
  const recordBytes = at[answers.recordBytes]!;
  const recordCount = at[answers.recordCount]!;
  const bucketCount = at[answers.bucketCount]!;
  const dependencyFirst = forBuckets
    ? words(answers.dependencyFirst, bucketCount + 1)
    : new Uint32Array(bucketCount + 1);
  return {
    recordWords: words(answers.records, (recordBytes / 4) * recordCount),
    recordLongs: new BigInt64Array(buffer, at[answers.records]!, (recordBytes / 8) * recordCount),
    wordsPerRecord: recordBytes / 4,
    dims: subject.input.patterns.reduce((most, { shape }) => Math.max(most, shape.length), 0),
    wide: at[answers.wide] !== 0,
    count: recordCount,
    order: words(answers.order, recordCount),
    bucketCount,
    bucketChannel: words(answers.bucketChannel, bucketCount),
    bucketSequence: words(answers.bucketSequence, bucketCount),
    bucketFirst: words(answers.bucketFirst, bucketCount + 1),
    bucketSize: new BigInt64Array(buffer, at[answers.bucketSize]!, bucketCount),
    wave: words(answers.usedWave, at[answers.usedCount]!),
    dependencyFirst,
    dependencies: words(answers.dependencies, dependencyFirst[bucketCount]!),
    units: packedUnits(subject),
  };
}

function packedUnits({ input }: Subject): ReadonlyMap<number, bigint> | undefined {
  if (!input.kinds.some(({ dtype }) => isPacked(dtype))) return undefined;
  const units = new Map<number, bigint>();
  input.tensorKinds.forEach((number, tensor) => {
    const { dtype } = input.kinds[number]!;
    if (isPacked(dtype)) units.set(tensor, BigInt(unitOf(dtype).elements));
  });
  return units;
}

function tooLarge(count: bigint, most: number): TensorBusError {
  return new TensorBusError(
    "TB_PLAN_TOO_LARGE",
    `the list has ${count} chunks, more than maxChunks (${most}) allows`,
    {
      details: { chunks: count, maxChunks: most },
    },
  );
}

function bucketId(gathered: Gathered, bucket: number): string {
  const at = gathered.order[gathered.bucketFirst[bucket]!]! * gathered.wordsPerRecord;
  const words = gathered.recordWords;
  return `${words[at + 3]! & 0xff}:${words[at]}:${words[at + 1]}:${gathered.bucketSequence[bucket]}`;
}

export function* listChunks(subject: Subject, rank: number | undefined): Generator<Chunk, void, undefined> {
  if (rank !== undefined && rank >= subject.input.world) return;
  const question = new Question(subject);
  try {
    // Millions of them: handing each through a second generator would cost as much as its id does.
    const gathered = gather(question, subject, rank, false);
    const read = chunkReader(gathered);
    for (let place = 0; place < gathered.count; place++) yield read(place);
  } finally {
    question.end();
  }
}

/** Gives the chunk at a place of the order; in turn, so that a bucket's id is made once. */
function chunkReader(gathered: Gathered, tensor?: number): (place: number) => Chunk {
  const { recordWords, order, wordsPerRecord, wave, bucketChannel, units } = gathered;
  let last = -1;
  let id = "";
  const read = (place: number): Chunk => {
    const at = order[place]! * wordsPerRecord;
    const bucket = recordWords[at + 6]!;
    if (bucket !== last) {
      last = bucket;
      id = bucketId(gathered, bucket);
    }
    return chunkAt(gathered, at, tensor ?? recordWords[at + 2]!, id, wave[bucketChannel[bucket]!]!);
  };
  if (units === undefined) return read;
  return (place) => {
    const chunk = read(place);
    const unit = units.get(recordWords[order[place]! * wordsPerRecord + 2]!);
    return unit === undefined ? chunk : inElements(chunk, unit);
  };
}

function* chunksOf(gathered: Gathered, tensor: number): Generator<Chunk, void, undefined> {
  const read = chunkReader(gathered, tensor);
  for (let place = 0; place < gathered.count; place++) yield read(place);
}

/** A chunk whose last dimension counts units of a packed type, in elements. */
function inElements(chunk: Chunk, unit: bigint): Chunk {
  const scaled = (values: readonly bigint[]) => values.with(-1, values.at(-1)! * unit);
  const { srcOffsets, dstOffsets, lengths } = chunk;
  return {
    ...chunk,
    srcOffsets: scaled(srcOffsets),
    dstOffsets: scaled(dstOffsets),
    lengths: scaled(lengths),
  };
}

function chunkAt(gathered: Gathered, at: number, tensor: number, bucket: string, wave: number): Chunk {
  const { recordWords: words, dims } = gathered;
  const flags = words[at + 3]!;
  const ndim = (flags >>> 16) & 0xff;
  const stage = (flags & 0xff) as Stage;
  const offsets = at + headBytes / 4;
  return {
    id: `${bucket}:${words[at + 7]}`,
    stage,
    kind: kinds[(flags >>> 8) & 0xff]!,
    srcRank: words[at]!,
    dstRank: words[at + 1]!,
    tensor,
    from: stage === 2 ? "target" : flags >>> 24 === 0 ? "source" : "reduced",
    to: stage === 0 ? "reduced" : "target",
    srcOffsets: vector(gathered, offsets, 0, ndim),
    dstOffsets: vector(gathered, offsets, dims, ndim),
    lengths: vector(gathered, offsets, 2 * dims, ndim),
    bytes: bytesAt(gathered, at),
    bucket,
    wave,
  };
}

/** Elements times the bytes of one: as bigint only if that does not fit a number. */
function bytesAt({ recordWords: words, recordLongs }: Gathered, at: number): bigint {
  if (words[at + 9] === 0) return asBigint(words[at + 8]! * words[at + 10]!);
  return recordLongs[at / 2 + 4]! * BigInt(words[at + 10]!);
}

/** The smaller numbers, which most offsets and lengths are: making a bigint takes longer than finding it. */
let smallBigints: readonly bigint[] = [];

function asBigint(value: number): bigint {
  return smallBigints[value] ?? BigInt(value);
}

function vector(gathered: Gathered, offsets: number, first: number, ndim: number): bigint[] {
  const { recordWords: words, recordLongs, wide } = gathered;
  const at = offsets + first;
  if (wide) {
    return Array.from({ length: ndim }, (_, dim) => recordLongs[offsets / 2 + first + dim]!);
  }
  // Literals take half the time of an array that is filled, and nearly all tensors have so few dimensions.
  if (ndim === 1) return [asBigint(words[at]!)];
  if (ndim === 2) return [asBigint(words[at]!), asBigint(words[at + 1]!)];
  if (ndim === 3) return [asBigint(words[at]!), asBigint(words[at + 1]!), asBigint(words[at + 2]!)];
  return Array.from({ length: ndim }, (_, dim) => asBigint(words[at + dim]!));
}

export function* listBuckets(subject: Subject, rank: number | undefined): Generator<Bucket, void, undefined> {
  if (rank !== undefined && rank >= subject.input.world) return;
  const question = new Question(subject);
  try {
    yield* bucketsOf(gather(question, subject, rank, true), rank);
  } finally {
    question.end();
  }
}

function* bucketsOf(gathered: Gathered, rank?: number): Generator<Bucket, void, undefined> {
  for (let bucket = 0; bucket < gathered.bucketCount; bucket++) {
    const at = gathered.order[gathered.bucketFirst[bucket]!]! * gathered.wordsPerRecord;
    const [srcRank, dstRank] = [gathered.recordWords[at]!, gathered.recordWords[at + 1]!];
    // With a rank, buckets that its own wait for were gathered too, at ranks that it has nothing to do with.
    if (rank !== undefined && srcRank !== rank && dstRank !== rank) continue;
    yield {
      id: bucketId(gathered, bucket),
      stage: (gathered.recordWords[at + 3]! & 0xff) as Stage,
      wave: gathered.wave[gathered.bucketChannel[bucket]!]!,
      srcRank,
      dstRank,
      bytes: gathered.bucketSize[bucket]!,
      waitsFor: waitsFor(gathered, bucket),
    };
  }
}

/**
 * Hands over all chunks of one tensor, in buckets cut as if the plan had no other tensor. They can be gone through several
 * times, and are gone once `use` returns.
 */
export function withTensor(subject: Subject, tensor: number, use: (chunks: Iterable<Chunk>) => void): void {
  const question = new Question(subject).withChannels();
  try {
    question.ask((planner) => planner.gatherTensor(tensor, BigInt(2 ** 32 - 2)));
    const gathered = readAnswers(question, subject, false);
    use({ [Symbol.iterator]: () => chunksOf(gathered, tensor) });
  } finally {
    question.end();
  }
}

function waitsFor(gathered: Gathered, bucket: number): readonly string[] {
  const first = gathered.dependencyFirst[bucket]!;
  const end = gathered.dependencyFirst[bucket + 1]!;
  if (first === end) return none;
  return Array.from(gathered.dependencies.subarray(first, end), (other) => bucketId(gathered, other));
}

/** The buckets of a world as columns, by (wave, source, destination, sequence). */
export interface BucketGraph {
  readonly count: number;
  readonly stage: Uint8Array;
  readonly srcRank: Uint32Array;
  readonly dstRank: Uint32Array;
  /** The place in its channel. */
  readonly sequence: Uint32Array;
  /** With the padding between chunks. */
  readonly wireBytes: Float64Array;
  /** What bucket b waits for are `dependencies[dependencyFirst[b]]` up to `[dependencyFirst[b + 1]]`. */
  readonly dependencyFirst: Uint32Array;
  readonly dependencies: Uint32Array;
}

/** All buckets and what they wait for, whatever `maxChunks` says: the caller knows that they are few. */
export function bucketGraph(subject: Subject): BucketGraph {
  const question = new Question(subject);
  try {
    const gathered = gather(question, subject, undefined, true, Number.MAX_SAFE_INTEGER);
    const { bucketCount: count, recordWords, order, wordsPerRecord } = gathered;
    const record = (bucket: number) => order[gathered.bucketFirst[bucket]!]! * wordsPerRecord;
    return {
      count,
      stage: Uint8Array.from({ length: count }, (_, bucket) => recordWords[record(bucket) + 3]! & 0xff),
      srcRank: Uint32Array.from({ length: count }, (_, bucket) => recordWords[record(bucket)]!),
      dstRank: Uint32Array.from({ length: count }, (_, bucket) => recordWords[record(bucket) + 1]!),
      sequence: gathered.bucketSequence.slice(),
      wireBytes: Float64Array.from(gathered.bucketSize, Number),
      dependencyFirst: gathered.dependencyFirst.slice(),
      dependencies: gathered.dependencies.slice(),
    };
  } finally {
    question.end();
  }
}
