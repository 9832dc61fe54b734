import type { NormalTopology } from "../input/topology.ts";
import { hostOf } from "../input/topology.ts";
import type { Stage } from "../input/types.ts";

/**
 * Every channel of a plan, a column for each of its properties, by (stage, source, destination). What a rank copies or
 * reduces by itself is a channel from the rank to itself. Numbers are exact.
 */
export interface Channels {
  readonly count: number;
  readonly stage: Uint8Array;
  readonly srcRank: Uint32Array;
  readonly dstRank: Uint32Array;
  readonly wave: Uint32Array;
  readonly chunks: Float64Array;
  readonly buckets: Float64Array;
  /** Payload bytes. */
  readonly bytes: Float64Array;
  /** Payload bytes and the padding between chunks. */
  readonly wireBytes: Float64Array;
  /** Payload bytes of stage 1 that the receiver hands on to other replicas; they come first. */
  readonly handedOnBytes: Float64Array;
}

/** One channel. */
export interface ChannelStats {
  readonly stage: Stage;
  readonly srcRank: number;
  readonly dstRank: number;
  readonly wave: number;
  readonly chunks: number;
  readonly buckets: number;
  readonly bytes: bigint;
  /** With the padding between chunks. */
  readonly wireBytes: bigint;
}

/** All that ranks of one host send to ranks of another, or to others of the same. */
export interface HostLinkStats {
  readonly srcHost: number;
  readonly dstHost: number;
  /** Pairs of ranks, counted once for each stage. */
  readonly channels: number;
  readonly bytes: bigint;
}

/** Bytes from rank to rank, in all stages: an entry for each sender and receiver. */
export interface LinkMatrix {
  /** Ranks that send or copy, and that receive or copy, ascending. */
  readonly senders: Uint32Array;
  readonly receivers: Uint32Array;
  /** Row-major, `senders.length` rows; what a rank copies by itself included. */
  readonly bytes: Float64Array;
}

const stages = [0, 1, 2] as const;
const headWords = 6;
const sumWords = 5;

/** Reads the planner's table of channels (`assembly/channels.ts`) and its sums (`assembly/links.ts`). */
export function readChannels(table: Uint32Array, sums: BigInt64Array, world: number): Channels {
  const count = stages.reduce<number>((sum, stage) => sum + table[stage]!, 0);
  const columns = newColumns(count);
  let base = 0;
  let waves = 0;
  for (const stage of stages) {
    const own = table[stage]!;
    const peers = headWords + stages.length * (world + 1) + base;
    const slots = stage === 0 ? bySource(table, world, own) : undefined;
    const pointers = headWords + stage * (world + 1);
    for (let home = 0; home < world; home++) {
      for (let at = table[pointers + home]!; at < table[pointers + home + 1]!; at++) {
        const row = base + (slots === undefined ? at : slots[at]!);
        const peer = table[peers + at]!;
        columns.stage[row] = stage;
        columns.srcRank[row] = stage === 0 ? peer : home;
        columns.dstRank[row] = stage === 0 ? home : peer;
        columns.wave[row] = waves + table[peers + count + at]!;
        const sum = (base + at) * sumWords;
        columns.chunks[row] = Number(sums[sum]);
        columns.buckets[row] = Number(sums[sum + 1]);
        columns.bytes[row] = Number(sums[sum + 2]);
        columns.wireBytes[row] = Number(sums[sum + 3]);
        columns.handedOnBytes[row] = Number(sums[sum + 4]);
      }
    }
    base += own;
    waves += table[stages.length + stage]!;
  }
  return columns;
}

function newColumns(count: number): Channels {
  return {
    count,
    stage: new Uint8Array(count),
    srcRank: new Uint32Array(count),
    dstRank: new Uint32Array(count),
    wave: new Uint32Array(count),
    chunks: new Float64Array(count),
    buckets: new Float64Array(count),
    bytes: new Float64Array(count),
    wireBytes: new Float64Array(count),
    handedOnBytes: new Float64Array(count),
  };
}

/** Stage 0 stands by destination in the table: for each of its channels the place by source. */
function bySource(table: Uint32Array, world: number, count: number): Uint32Array {
  const peers = headWords + stages.length * (world + 1);
  const next = new Uint32Array(world + 1);
  for (let at = 0; at < count; at++) next[table[peers + at]! + 1]!++;
  for (let rank = 0; rank < world; rank++) next[rank + 1]! += next[rank]!;
  return Uint32Array.from({ length: count }, (_, at) => next[table[peers + at]!]!++);
}

/** The channels one by one. */
export function* eachChannel(channels: Channels): Generator<ChannelStats, void, undefined> {
  for (let row = 0; row < channels.count; row++) {
    yield {
      stage: channels.stage[row] as Stage,
      srcRank: channels.srcRank[row]!,
      dstRank: channels.dstRank[row]!,
      wave: channels.wave[row]!,
      chunks: channels.chunks[row]!,
      buckets: channels.buckets[row]!,
      bytes: BigInt(channels.bytes[row]!),
      wireBytes: BigInt(channels.wireBytes[row]!),
    };
  }
}

/** Sums by host, by (source, destination); what ranks keep to themselves is left out. */
export function hostLinks(channels: Channels, topology: NormalTopology): HostLinkStats[] {
  const { srcRank, dstRank, bytes } = channels;
  const links = new Map<string, { srcHost: number; dstHost: number; channels: number; bytes: number }>();
  for (let row = 0; row < channels.count; row++) {
    if (srcRank[row] === dstRank[row]) continue;
    const [srcHost, dstHost] = [hostOf(topology, srcRank[row]!), hostOf(topology, dstRank[row]!)];
    const key = `${srcHost} ${dstHost}`;
    const link = links.get(key) ?? { srcHost, dstHost, channels: 0, bytes: 0 };
    if (link.channels === 0) links.set(key, link);
    link.channels++;
    link.bytes += bytes[row]!;
  }
  return [...links.values()]
    .sort((a, b) => a.srcHost - b.srcHost || a.dstHost - b.dstHost)
    .map((link) => ({ ...link, bytes: BigInt(link.bytes) }));
}

/** Sums over the stages from rank to rank. */
export function linkMatrix({ count, srcRank, dstRank, bytes }: Channels): LinkMatrix {
  const senders = Uint32Array.from(new Set(srcRank)).sort();
  const receivers = Uint32Array.from(new Set(dstRank)).sort();
  const [rows, columns] = [placesOf(senders), placesOf(receivers)];
  const sums = new Float64Array(senders.length * receivers.length);
  for (let row = 0; row < count; row++) {
    sums[rows[srcRank[row]!]! * receivers.length + columns[dstRank[row]!]!]! += bytes[row]!;
  }
  return { senders, receivers, bytes: sums };
}

function placesOf(ranks: Uint32Array): Uint32Array {
  const places = new Uint32Array((ranks.at(-1) ?? -1) + 1);
  for (const [place, rank] of ranks.entries()) places[rank] = place;
  return places;
}
