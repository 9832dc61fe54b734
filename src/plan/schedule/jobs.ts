import type { Channels } from "../planner/channels.ts";
import type { BucketGraph } from "../planner/listing.ts";

/**
 * What is scheduled, with what waits for what: the jobs of channel r are those from `first[r]` up to `first[r + 1]`, in the
 * order in which they are sent; then milestones, which take no time.
 */
export interface Jobs {
  readonly count: number;
  readonly first: Uint32Array;
  /** Bytes on the wire. */
  readonly bytes: Float64Array;
  /** How many jobs each waits for. */
  readonly waits: Uint32Array;
  /** Those that wait for job j are `dependents[dependentFirst[j]]` up to `[dependentFirst[j + 1]]`. */
  readonly dependentFirst: Uint32Array;
  readonly dependents: Uint32Array;
}

/** What carries the channels: each of its ends carries one job at a time. */
export interface Wiring {
  /** For each channel the end of the link that it leaves and that it enters by; -1 if a rank sends to itself. */
  readonly outEnd: Int32Array;
  readonly inEnd: Int32Array;
  readonly ends: number;
  /** Nanoseconds that each job occupies its ends. */
  readonly duration: Float64Array;
  /** Nanoseconds from the last byte of a job on the way to its arrival. */
  readonly latency: number;
  /** How many jobs of each stage a receiver asks for at a time. */
  readonly inFlight: number;
  /** The most bytes of a bucket. */
  readonly bucketBytes: number;
}

/** A job for each bucket, and what it waits for. */
export function bucketJobs(channels: Channels, graph: BucketGraph): Jobs {
  const first = firstJobs(channels, (row) => channels.buckets[row]!);
  const rowOf = rowFinder(channels);
  const jobOf = Uint32Array.from(
    { length: graph.count },
    (_, bucket) =>
      first[rowOf(graph.stage[bucket]!, graph.srcRank[bucket]!, graph.dstRank[bucket]!)]! +
      graph.sequence[bucket]!,
  );
  const bytes = new Float64Array(graph.count);
  const edges = new Edges();
  for (let bucket = 0; bucket < graph.count; bucket++) {
    bytes[jobOf[bucket]!] = graph.wireBytes[bucket]!;
    for (let at = graph.dependencyFirst[bucket]!; at < graph.dependencyFirst[bucket + 1]!; at++) {
      edges.add(jobOf[graph.dependencies[at]!]!, jobOf[bucket]!);
    }
  }
  return { count: graph.count, first, bytes, ...edges.byJob(graph.count) };
}

/** The most slices of a channel whose buckets are too many: of what is handed on, and of the rest, together. */
const slicesMost = 16;

/**
 * Jobs for channels whose buckets are too many to look at each: equal slices of what is handed on of a channel, and of the
 * rest, which comes after it. A slice waits until every channel of the stage before has brought its rank as large a part of
 * what it hands on.
 */
export function sliceJobs(channels: Channels, most: number): Jobs {
  const { count, buckets, bytes: payload, wireBytes } = channels;
  const each = slicesByStage(channels, most);
  const handedOn = new Uint32Array(count);
  const slicesOf = new Uint32Array(count);
  for (let row = 0; row < count; row++) {
    const most = Math.min(each[channels.stage[row]!]!, buckets[row]!);
    const part = handedOnPart(channels, row);
    handedOn[row] = Math.ceil(most * part);
    slicesOf[row] = part > 0 && part < 1 ? handedOn[row]! + Math.ceil(most * (1 - part)) : most;
  }
  const first = firstJobs(channels, (row) => slicesOf[row]!);
  const slices = first[count]!;
  const bytes = new Float64Array(slices);
  for (let row = 0; row < count; row++) {
    const part = payload[row] === 0 ? 0 : handedOnPart(channels, row);
    const border = first[row]! + handedOn[row]!;
    bytes.fill((wireBytes[row]! * part) / handedOn[row]!, first[row], border);
    bytes.fill((wireBytes[row]! * (1 - part)) / (slicesOf[row]! - handedOn[row]!), border, first[row + 1]);
  }
  const edges = new Edges();
  const milestones = addMilestones(channels, first, handedOn, edges);
  const total = slices + milestones;
  return { count: total, first, bytes, ...edges.byJob(total) };
}

/** Stages with few channels can be looked at more closely. */
function slicesByStage({ count, stage }: Channels, most: number): readonly number[] {
  const channels = [0, 0, 0];
  for (let row = 0; row < count; row++) channels[stage[row]!]!++;
  const stages = channels.filter((number) => number > 0).length;
  return channels.map((number) =>
    Math.min(slicesMost, Math.max(1, Math.floor(most / stages / Math.max(1, number)))),
  );
}

/** The part of a channel's bytes that its receiver hands on: contributions are all sent on, and of stage 1 the stripes. */
function handedOnPart({ stage, bytes, handedOnBytes }: Channels, row: number): number {
  if (stage[row] === 0) return 1;
  return stage[row] === 2 ? 0 : handedOnBytes[row]! / Math.max(1, bytes[row]!);
}

/** Puts milestones between what a rank is brought in one stage and what it hands on in the next; answers how many. */
function addMilestones(channels: Channels, first: Uint32Array, handedOn: Uint32Array, edges: Edges): number {
  const brought = new Map<number, number[]>();
  const handed = new Map<number, number[]>();
  for (let row = 0; row < channels.count; row++) {
    const stage = channels.stage[row]!;
    if (handedOn[row]! > 0) listOf(brought, channels.dstRank[row]! * 2 + stage).push(row);
    if (stage > 0) listOf(handed, channels.srcRank[row]! * 2 + stage - 1).push(row);
  }
  let next = first[channels.count]!;
  const start = next;
  const slicesOf = (row: number) => first[row + 1]! - first[row]!;
  for (const [key, consumers] of handed) {
    const feeders = brought.get(key);
    if (feeders === undefined) continue;
    const levels = consumers.reduce((top, row) => Math.max(top, slicesOf(row)), 1);
    for (let level = 1; level < levels; level++) edges.add(next + level - 1, next + level);
    for (const row of feeders) {
      const slices = handedOn[row]!;
      for (let slice = 0; slice < slices; slice++) {
        edges.add(first[row]! + slice, next + Math.floor((slice * levels) / slices));
      }
    }
    for (const row of consumers) {
      const slices = slicesOf(row);
      for (let slice = 0; slice < slices; slice++) {
        edges.add(next + Math.ceil(((slice + 1) * levels) / slices) - 1, first[row]! + slice);
      }
    }
    next += levels;
  }
  return next - start;
}

/** The list of a key, which is made when it is first asked for. */
export function listOf(map: Map<number, number[]>, key: number): number[] {
  const list = map.get(key) ?? [];
  if (list.length === 0) map.set(key, list);
  return list;
}

function firstJobs(channels: Channels, jobsOf: (row: number) => number): Uint32Array {
  const first = new Uint32Array(channels.count + 1);
  for (let row = 0; row < channels.count; row++) first[row + 1] = first[row]! + jobsOf(row);
  return first;
}

/** Finds a channel by its ends: rows are sorted by (stage, source, destination). */
function rowFinder({ count, stage, srcRank, dstRank }: Channels) {
  return (wantedStage: number, source: number, target: number): number => {
    let low = 0;
    let high = count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const before = stage[middle]! - wantedStage || srcRank[middle]! - source || dstRank[middle]! - target;
      if (before < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  };
}

/** The jobs that each job waits for, collected in any order. */
class Edges {
  #from = new Uint32Array(1024);
  #to = new Uint32Array(1024);
  #count = 0;

  add(from: number, to: number): void {
    if (this.#count === this.#from.length) {
      this.#from = doubled(this.#from);
      this.#to = doubled(this.#to);
    }
    this.#from[this.#count] = from;
    this.#to[this.#count++] = to;
  }

  byJob(count: number): Pick<Jobs, "waits" | "dependentFirst" | "dependents"> {
    const waits = new Uint32Array(count);
    const dependentFirst = new Uint32Array(count + 1);
    for (let at = 0; at < this.#count; at++) {
      waits[this.#to[at]!]!++;
      dependentFirst[this.#from[at]! + 1]!++;
    }
    for (let job = 0; job < count; job++) dependentFirst[job + 1]! += dependentFirst[job]!;
    const filled = dependentFirst.slice();
    const dependents = new Uint32Array(this.#count);
    for (let at = 0; at < this.#count; at++) dependents[filled[this.#from[at]!]!++] = this.#to[at]!;
    return { waits, dependentFirst, dependents };
  }
}

function doubled(words: Uint32Array<ArrayBuffer>): Uint32Array<ArrayBuffer> {
  const larger = new Uint32Array(words.length * 2);
  larger.set(words);
  return larger;
}
