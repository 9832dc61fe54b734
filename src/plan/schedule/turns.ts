import type { Channels } from "../planner/channels.ts";
import { type Jobs, listOf, type Wiring } from "./jobs.ts";

/** Jobs below this size count by their bytes: more of them are asked for at a time (`native/src/round/round_receive.c`). */
const smallBytes = 2 ** 20;

/** What a receiver takes in one stage: the channels of its jobs in the order in which it asks for them. */
interface Order {
  readonly rows: Uint32Array;
  next: number;
  jobs: number;
  bytes: number;
}

type Grant = (row: number, jobs: number) => void;

/**
 * The order in which receivers ask, the same as the executor's: a few jobs of each stage at a time, those that others wait for
 * first, of the channel that has come least far, then in the order of the waves. What comes from owners of reduced pieces is
 * asked for at once: they must be free to let go of them.
 */
export class Turns {
  /** For each job which part, by bytes, of all that its receiver asks for in the stage comes before it. */
  readonly position: Float64Array;
  readonly #jobs: Jobs;
  readonly #most: number;
  readonly #smallBytes: number;
  /** The order that each channel is in; channels that are asked for at once are in none. */
  readonly #orderOf: (Order | undefined)[] = [];
  readonly #atOnce: number[] = [];
  readonly #orders: readonly Order[];
  /** How many jobs of each channel were asked for. */
  readonly #asked: Uint32Array;
  readonly #grant: Grant;

  /** `grant` is called for what is asked for. */
  constructor(channels: Channels, jobs: Jobs, { outEnd, inFlight, bucketBytes }: Wiring, grant: Grant) {
    this.#jobs = jobs;
    this.#grant = grant;
    this.#most = inFlight;
    this.#smallBytes = Math.min(smallBytes, bucketBytes);
    this.#asked = jobs.first.slice(0, channels.count);
    this.position = new Float64Array(jobs.count);
    const owners = new Set<number>();
    for (let row = 0; row < channels.count; row++) {
      if (channels.stage[row] === 0) owners.add(channels.dstRank[row]!);
    }
    const receivers = receiversOf(channels);
    const received = new Map<number, number[]>();
    /** All that a rank receives in stage 1, whether it takes turns or not. */
    const crossing = new Map<number, number[]>();
    for (let row = 0; row < channels.count; row++) {
      if (outEnd[row] === -1) continue;
      if (channels.stage[row] === 1) listOf(crossing, channels.dstRank[row]!).push(row);
      if (channels.stage[row] !== 0 && owners.has(channels.srcRank[row]!)) {
        this.#atOnce.push(row);
        this.#place(inTurns([row], jobs, placesIn([row])));
        continue;
      }
      listOf(received, channels.dstRank[row]! * 3 + channels.stage[row]!).push(row);
    }
    this.#orders = [...received.values()].map((rows) => {
      rows.sort((a, b) => channels.wave[a]! - channels.wave[b]! || a - b);
      const around =
        channels.stage[rows[0]!] === 1
          ? roundOf(crossing.get(channels.dstRank[rows[0]!]!)!, channels, jobs, receivers)
          : placesIn(rows);
      const order = { rows: inTurns(rows, jobs, around), next: 0, jobs: 0, bytes: 0 };
      for (const row of rows) this.#orderOf[row] = order;
      this.#place(order.rows);
      return order;
    });
  }

  /** Asks for what can be asked for at the beginning. */
  begin(): void {
    const { first } = this.#jobs;
    for (const row of this.#atOnce) this.#grant(row, first[row + 1]! - first[row]!);
    for (const order of this.#orders) this.#ask(order);
  }

  /** A job has come: others may be asked for. */
  took(row: number, job: number): void {
    const order = this.#orderOf[row];
    if (order === undefined) return;
    order.jobs--;
    order.bytes -= this.#jobs.bytes[job]!;
    this.#ask(order);
  }

  #ask(order: Order): void {
    const mostBytes = this.#most * this.#smallBytes;
    if (order.jobs >= this.#most && order.bytes > mostBytes / 2) return;
    while (order.next < order.rows.length && (order.jobs < this.#most || order.bytes < mostBytes)) {
      const row = order.rows[order.next++]!;
      order.jobs++;
      order.bytes += this.#jobs.bytes[this.#asked[row]!++]!;
      this.#grant(row, 1);
    }
  }

  /** Sets the positions of jobs, given by the channel of each in their order. */
  #place(rows: Uint32Array): void {
    const { bytes } = this.#jobs;
    const next = this.#asked;
    let total = 0;
    for (const row of rows) {
      const job = next[row]!++;
      this.position[job] = total;
      total += bytes[job]!;
    }
    for (const row of rows) this.position[--next[row]!]! /= total || 1;
  }
}

/**
 * Each channel once for every job: first what others wait for, so that it can be handed on while the rest comes; of either,
 * all channels come equally far, job k of n at k / n. What others wait for comes as `around` says, the rest by the waves.
 */
function inTurns(rows: readonly number[], jobs: Jobs, around: ReadonlyMap<number, number>): Uint32Array {
  const { first } = jobs;
  const total = rows.reduce((sum, row) => sum + first[row + 1]! - first[row]!, 0);
  const rowOf = new Uint32Array(total);
  /** Below 1 of what others wait for, from 1 on of the rest; and the order of equals. */
  const progress = new Float64Array(total);
  const turn = new Uint32Array(total);
  let filled = 0;
  rows.forEach((row, byWave) => {
    const count = first[row + 1]! - first[row]!;
    const awaited = awaitedJobs(jobs, row);
    for (let job = 0; job < count; job++) {
      rowOf[filled] = row;
      turn[filled] = job < awaited ? around.get(row)! : byWave;
      progress[filled++] = job < awaited ? job / awaited : 1 + (job - awaited) / (count - awaited);
    }
  });
  const places = Uint32Array.from({ length: total }, (_, place) => place);
  return places
    .sort((a, b) => progress[a]! - progress[b]! || turn[a]! - turn[b]!)
    .map((place) => rowOf[place]!);
}

function placesIn(rows: readonly number[]): Map<number, number> {
  return new Map(rows.map((row, place) => [row, place]));
}

/**
 * The place of each channel of a receiver in its turns. They go around its sources and, if k of n receivers come before
 * it, begin behind the first k/n of what it hands on: `assembly/turns.ts`.
 */
function roundOf(
  rows: readonly number[],
  { srcRank, dstRank }: Channels,
  jobs: Jobs,
  receivers: ReadonlyMap<number, number>,
): Map<number, number> {
  const bySource = rows.toSorted((a, b) => srcRank[a]! - srcRank[b]!);
  let sum = 0;
  const before = bySource.map((row) => {
    const start = sum;
    const end = jobs.first[row]! + awaitedJobs(jobs, row);
    for (let job = jobs.first[row]!; job < end; job++) sum += jobs.bytes[job]!;
    return start;
  });
  const place = BigInt(receivers.get(dstRank[rows[0]!]!)!);
  const from = Number((BigInt(Math.floor(sum)) * place) / BigInt(receivers.size));
  const found = before.findIndex((start) => start >= from);
  const start = found === -1 ? rows.length : found;
  return new Map(bySource.map((row, at) => [row, (at + rows.length - start) % rows.length]));
}

/** The ranks that receive in stage 1, each with its place among them. */
function receiversOf({ count, stage, dstRank }: Channels): Map<number, number> {
  const ranks = new Set<number>();
  for (let row = 0; row < count; row++) if (stage[row] === 1) ranks.add(dstRank[row]!);
  return placesIn([...ranks].sort((a, b) => a - b));
}

/** The jobs of a channel up to the last one that another waits for. */
function awaitedJobs({ first, dependentFirst }: Jobs, row: number): number {
  let end = first[row + 1]!;
  while (end > first[row]! && dependentFirst[end] === dependentFirst[end - 1]) end--;
  return end - first[row]!;
}
