import type { Channels } from "../planner/channels.ts";
import type { Jobs, Wiring } from "./jobs.ts";

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
 * The order in which receivers ask, the same as the executor's: a few jobs of each stage at a time, of the channel that has come least far
 * first, then in the order of the waves. What comes from owners of reduced pieces is asked for at once: they must be free
 * to let go of them.
 */
export class Turns {
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
    const owners = new Set<number>();
    for (let row = 0; row < channels.count; row++) {
      if (channels.stage[row] === 0) owners.add(channels.dstRank[row]!);
    }
    const received = new Map<number, number[]>();
    for (let row = 0; row < channels.count; row++) {
      if (outEnd[row] === -1) continue;
      if (channels.stage[row] !== 0 && owners.has(channels.srcRank[row]!)) {
        this.#atOnce.push(row);
        continue;
      }
      const key = channels.dstRank[row]! * 3 + channels.stage[row]!;
      const rows = received.get(key);
      if (rows === undefined) received.set(key, [row]);
      else rows.push(row);
    }
    this.#orders = [...received.values()].map((rows) => {
      rows.sort((a, b) => channels.wave[a]! - channels.wave[b]! || a - b);
      const order = { rows: inTurns(rows, jobs), next: 0, jobs: 0, bytes: 0 };
      for (const row of rows) this.#orderOf[row] = order;
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
}

/** Each channel once for every job, so that all come equally far: job k of n at k / n. */
function inTurns(rows: readonly number[], { first }: Jobs): Uint32Array {
  const total = rows.reduce((sum, row) => sum + first[row + 1]! - first[row]!, 0);
  const rowOf = new Uint32Array(total);
  const progress = new Float64Array(total);
  let filled = 0;
  for (const row of rows) {
    const count = first[row + 1]! - first[row]!;
    for (let job = 0; job < count; job++) {
      rowOf[filled] = row;
      progress[filled++] = job / count;
    }
  }
  // Sorting keeps the order of equals, which is that of the waves.
  const places = Uint32Array.from({ length: total }, (_, place) => place);
  return places.sort((a, b) => progress[a]! - progress[b]! || a - b).map((place) => rowOf[place]!);
}
