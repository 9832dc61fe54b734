import { itemSize } from "../../../src/layout/index.ts";
import type { Bucket, Chunk, PlanInput } from "../../../src/plan/input/types.ts";
import type { Random } from "../../kit/random.ts";

export interface PlanLists {
  readonly chunks: readonly Chunk[];
  readonly buckets: readonly Bucket[];
}

type LooseChunk = { -readonly [Key in keyof Omit<Chunk, "id" | "bucket" | "bytes">]: Chunk[Key] };

/** A bucket with its chunks and no ids or bytes, so that a change leaves no trace but itself. */
interface LooseBucket {
  stage: Bucket["stage"];
  wave: number;
  srcRank: number;
  dstRank: number;
  chunks: LooseChunk[];
  waitsFor: LooseBucket[];
}

function loosen({ chunks, buckets }: PlanLists): LooseBucket[] {
  const byId = new Map<string, LooseBucket>();
  for (const { id, stage, wave, srcRank, dstRank } of buckets) {
    byId.set(id, { stage, wave, srcRank, dstRank, chunks: [], waitsFor: [] });
  }
  for (const bucket of buckets)
    byId.get(bucket.id)!.waitsFor = bucket.waitsFor.map((other) => byId.get(other)!);
  const index = (chunk: Chunk): number => Number(chunk.id.slice(chunk.bucket.length + 1));
  for (const chunk of chunks.toSorted((a, b) => index(a) - index(b))) {
    const { id, bucket, bytes, ...rest } = chunk;
    byId.get(bucket)!.chunks.push(rest);
  }
  return [...byId.values()];
}

/** Ids, ends, waves and bytes anew. */
function tighten(input: PlanInput, loose: readonly LooseBucket[]): PlanLists {
  const kept = loose.filter((bucket) => bucket.chunks.length > 0);
  const counts = new Map<string, number>();
  const ids = new Map<LooseBucket, string>();
  for (const bucket of kept) {
    const channel = `${bucket.stage}:${bucket.srcRank}:${bucket.dstRank}`;
    const sequence = counts.get(channel) ?? 0;
    counts.set(channel, sequence + 1);
    ids.set(bucket, `${channel}:${sequence}`);
  }
  const chunks: Chunk[] = [];
  const buckets = kept.map((loosed): Bucket => {
    const { stage, wave, srcRank, dstRank } = loosed;
    const id = ids.get(loosed)!;
    let end = 0n;
    loosed.chunks.forEach((chunk, index) => {
      const bytes = wireBytes(input, chunk);
      end = ((end + 15n) / 16n) * 16n + bytes;
      chunks.push({ ...chunk, id: `${id}:${index}`, bucket: id, bytes, stage, wave, srcRank, dstRank });
    });
    const waitsFor = loosed.waitsFor.flatMap((other) => ids.get(other) ?? []);
    return { id, stage, wave, srcRank, dstRank, bytes: end, waitsFor };
  });
  return { chunks, buckets };
}

function wireBytes(input: PlanInput, chunk: LooseChunk): bigint {
  const { dtype, targetDtype = dtype } = input.tensors[chunk.tensor]!;
  const sizes = [itemSize(dtype), Math.min(itemSize(dtype), itemSize(targetDtype)), itemSize(targetDtype)];
  return chunk.lengths.reduce((a, b) => a * b, BigInt(sizes[chunk.stage]!));
}

/** Makes a plan wrong; `undefined` if it has nothing of the kind. */
type Mutation = (input: PlanInput, plan: PlanLists, random: Random) => PlanLists | undefined;

function pick<T>(list: readonly T[], random: Random): T | undefined {
  return list[random.below(list.length)];
}

/** A change of one random bucket that `applies`, in a plan otherwise made consistent again. */
function deep(
  change: (bucket: LooseBucket, random: Random, all: LooseBucket[], input: PlanInput) => boolean,
): Mutation {
  return (input, plan, random) => {
    const loose = loosen(plan);
    for (const bucket of random.shuffle(loose)) {
      if (change(bucket, random, loose, input)) return tighten(input, loose);
    }
    return undefined;
  };
}

/** A change of one random chunk as it is listed. */
function raw(change: (chunk: Chunk, random: Random) => Chunk[] | undefined): Mutation {
  return (_input, { chunks, buckets }, random) => {
    if (chunks.length === 0) return undefined;
    const at = random.below(chunks.length);
    const changed = change(chunks[at]!, random);
    return changed && { chunks: [...chunks.slice(0, at), ...changed, ...chunks.slice(at + 1)], buckets };
  };
}

/** A change of one random bucket as it is listed, its chunks left alone. */
function rawBucket(change: (bucket: Bucket, all: readonly Bucket[]) => Bucket[] | undefined): Mutation {
  return (_input, { chunks, buckets }, random) => {
    if (buckets.length === 0) return undefined;
    const at = random.below(buckets.length);
    const changed = change(buckets[at]!, buckets);
    return changed && { chunks, buckets: [...buckets.slice(0, at), ...changed, ...buckets.slice(at + 1)] };
  };
}

function shift(field: "srcOffsets" | "dstOffsets" | "lengths"): Mutation {
  return deep((bucket, random) => {
    const chunk = pick(bucket.chunks, random)!;
    if (chunk.lengths.length === 0) return false;
    const dim = random.below(chunk.lengths.length);
    const by = random.below(2) === 0 ? 1n : -1n;
    chunk[field] = chunk[field].map((value, at) => (at === dim ? value + by : value));
    return true;
  });
}

/** Mutations after which no plan is right, by what they do. */
export const mutations: Readonly<Record<string, Mutation>> = {
  "drop a chunk": deep((bucket, random) => {
    bucket.chunks.splice(random.below(bucket.chunks.length), 1);
    return true;
  }),
  "drop a chunk and leave its gap": raw(() => []),
  "drop a bucket with its chunks": deep((bucket) => {
    bucket.chunks = [];
    return true;
  }),
  "double a chunk": deep((bucket, random) => {
    bucket.chunks.push({ ...pick(bucket.chunks, random)! });
    return true;
  }),
  "list a chunk twice": raw((chunk) => [chunk, chunk]),
  "double a bucket": deep((bucket, _random, all) => {
    all.push({ ...bucket, chunks: bucket.chunks.map((chunk) => ({ ...chunk })) });
    return true;
  }),
  "list a bucket twice": rawBucket((bucket) => [bucket, bucket]),
  "leave a bucket out of the list": rawBucket(() => []),
  "shift the source of a chunk": shift("srcOffsets"),
  "shift the destination of a chunk": shift("dstOffsets"),
  "stretch or shorten a chunk": shift("lengths"),
  "exchange the destinations of two chunks": deep((bucket, random) => {
    const one = pick(bucket.chunks, random)!;
    const other = bucket.chunks.find((chunk) => chunk.dstOffsets.join() !== one.dstOffsets.join());
    if (other === undefined || other.tensor !== one.tensor) return false;
    [one.dstOffsets, other.dstOffsets] = [other.dstOffsets, one.dstOffsets];
    return true;
  }),
  "name another tensor": deep((bucket, random, _all, input) => {
    if (input.tensors.length < 2) return false;
    const chunk = pick(bucket.chunks, random)!;
    chunk.tensor = (chunk.tensor + 1) % input.tensors.length;
    return true;
  }),
  "name a tensor that is not there": raw((chunk) => [{ ...chunk, tensor: chunk.tensor + 1000 }]),
  "say another sender than the bucket": raw((chunk) => [{ ...chunk, srcRank: chunk.srcRank + 1 }]),
  "say another receiver than the bucket": raw((chunk) => [{ ...chunk, dstRank: chunk.dstRank + 1 }]),
  "say another wave than the bucket": raw((chunk) => [{ ...chunk, wave: chunk.wave + 1 }]),
  "say another stage than the bucket": raw((chunk) => [{ ...chunk, stage: chunk.stage === 0 ? 1 : 0 }]),
  "hand a bucket to a receiver that it is not for": deep((bucket, _random, all) => {
    const other = all.find(({ stage, dstRank }) => stage === bucket.stage && dstRank !== bucket.dstRank);
    if (other === undefined) return false;
    bucket.dstRank = other.dstRank;
    return true;
  }),
  "let another rank contribute in a member's place": deep((bucket, _random, all) => {
    const other = all.find(({ stage, srcRank }) => stage === 0 && srcRank !== bucket.srcRank);
    if (bucket.stage !== 0 || other === undefined) return false;
    bucket.srcRank = other.srcRank;
    return true;
  }),
  "reduce at another owner": deep((bucket, _random, all) => {
    const other = all.find(({ stage, dstRank }) => stage === 0 && dstRank !== bucket.dstRank);
    if (bucket.stage !== 0 || other === undefined) return false;
    bucket.dstRank = other.dstRank;
    return true;
  }),
  "read the reduced values of another rank": deep((bucket, _random, all) => {
    const other = all.find(({ stage, dstRank }) => stage === 0 && dstRank !== bucket.srcRank);
    if (other === undefined || bucket.chunks[0]!.from !== "reduced") return false;
    bucket.srcRank = other.dstRank;
    for (const chunk of bucket.chunks) chunk.kind = bucket.srcRank === bucket.dstRank ? "copy" : "send";
    return true;
  }),
  "free a bucket of one dependency": deep((bucket, random) => {
    if (bucket.waitsFor.length === 0) return false;
    bucket.waitsFor.splice(random.below(bucket.waitsFor.length), 1);
    return true;
  }),
  "run a bucket in the wave of what it waits for": deep((bucket, random) => {
    const earlier = pick(bucket.waitsFor, random);
    if (earlier === undefined) return false;
    bucket.wave = earlier.wave;
    return true;
  }),
  "wait in a circle": deep((bucket, random) => {
    const earlier = pick(bucket.waitsFor, random);
    if (earlier === undefined) return false;
    earlier.waitsFor.push(bucket);
    return true;
  }),
  "wait for itself": rawBucket((bucket) => [{ ...bucket, waitsFor: [bucket.id] }]),
  "wait for a bucket that is not there": rawBucket((bucket) => [
    { ...bucket, waitsFor: [...bucket.waitsFor, "0:999999:999999:0"] },
  ]),
  "read a Partial source unreduced": deep((bucket, random) => {
    const chunk = pick(bucket.chunks, random)!;
    if (chunk.from !== "reduced") return false;
    chunk.from = "source";
    return true;
  }),
  "read a plain source as reduced": deep((bucket, random) => {
    const chunk = pick(bucket.chunks, random)!;
    if (chunk.from !== "source" || chunk.kind === "reduce") return false;
    chunk.from = "reduced";
    return true;
  }),
  "call a copy a send, or a send a copy": deep((bucket, random) => {
    const chunk = pick(bucket.chunks, random)!;
    if (chunk.kind === "reduce") return false;
    chunk.kind = chunk.kind === "copy" ? "send" : "copy";
    return true;
  }),
  "call a reduce a copy": deep((bucket, random) => {
    const chunk = pick(bucket.chunks, random)!;
    if (chunk.kind !== "reduce") return false;
    chunk.kind = "copy";
    return true;
  }),
  "reduce into a target": deep((bucket, random) => {
    const chunk = pick(bucket.chunks, random)!;
    if (chunk.kind !== "reduce") return false;
    chunk.to = "target";
    return true;
  }),
  "add an empty chunk": deep((bucket, random) => {
    const chunk = { ...pick(bucket.chunks, random)! };
    if (chunk.lengths.length === 0) return false;
    chunk.lengths = chunk.lengths.map((length, dim) => (dim === 0 ? 0n : length));
    bucket.chunks.push(chunk);
    return true;
  }),
  "count a byte too many in a chunk": raw((chunk) => [{ ...chunk, bytes: chunk.bytes + 1n }]),
  "count a byte too many in a bucket": rawBucket((bucket) => [{ ...bucket, bytes: bucket.bytes + 1n }]),
  "leave out a dimension": raw((chunk) =>
    chunk.lengths.length === 0 ? undefined : [{ ...chunk, lengths: chunk.lengths.slice(1) }],
  ),
  "misnumber a chunk": raw((chunk) => [{ ...chunk, id: `${chunk.bucket}:${chunk.id.length + 1000}` }]),
  "misname a chunk": raw((chunk) => [{ ...chunk, id: `x${chunk.id}` }]),
  "misname a bucket": rawBucket((bucket) => [{ ...bucket, id: `${bucket.id}x` }]),
  "skip a sequence number": (_input, { chunks, buckets }, random) => {
    const last = pick(buckets, random);
    if (last === undefined) return undefined;
    const parts = last.id.split(":").map(Number);
    if (buckets.some((bucket) => bucket.id === [...parts.slice(0, 3), parts[3]! + 1].join(":")))
      return undefined;
    const id = [...parts.slice(0, 3), parts[3]! + 7].join(":");
    const rename = (name: string): string => (name === last.id ? id : name);
    return {
      chunks: chunks.map((chunk) =>
        chunk.bucket === last.id ? { ...chunk, bucket: id, id: id + chunk.id.slice(last.id.length) } : chunk,
      ),
      buckets: buckets.map((bucket) => ({
        ...bucket,
        id: rename(bucket.id),
        waitsFor: bucket.waitsFor.map(rename),
      })),
    };
  },
};
