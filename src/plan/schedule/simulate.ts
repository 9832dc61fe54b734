import type { Channels } from "../planner/channels.ts";
import { EventQueue } from "./event-queue.ts";
import type { Jobs, Wiring } from "./jobs.ts";
import { Turns } from "./turns.ts";

/** When the first job of each channel begins and its last one has arrived, in nanoseconds. */
export interface Timeline {
  readonly start: Float64Array;
  readonly end: Float64Array;
}

const nobody = -1;

/** Runs all jobs, each as soon as what it waits for, its receiver's turns and both ends of its link allow. */
export function simulate(channels: Channels, jobs: Jobs, wiring: Wiring): Timeline {
  return new Simulation(channels, jobs, wiring).run();
}

class Simulation {
  readonly #channels: Channels;
  readonly #jobs: Jobs;
  readonly #wiring: Wiring;
  readonly #start: Float64Array;
  readonly #end: Float64Array;
  /** The job of each channel that is sent next. */
  readonly #next: Uint32Array;
  readonly #waits: Uint32Array;
  readonly #rowOf: Int32Array;
  readonly #isBusy: Uint8Array;
  /** When a channel was served last, as a number that grows. */
  readonly #served: Uint32Array;
  #turn = 0;
  /** How many jobs of each channel were granted so far. */
  readonly #granted: Uint32Array;
  /** When the first of a channel's jobs that have not left was granted, as a number that grows. */
  readonly #since: Uint32Array;
  #grants = 0;
  /** For each end the channels whose next job was granted and waits for nothing, in any order: most wait for others. */
  readonly #open: number[][];
  /** Says where each channel stands in the lists of its two ends: `nobody` if it is in none. */
  readonly #outAt: Int32Array;
  readonly #inAt: Int32Array;
  readonly #turns: Turns;
  readonly #events = new EventQueue();
  #now = 0;
  /** Ends that may have something to do. */
  #touched: number[] = [];

  constructor(channels: Channels, jobs: Jobs, wiring: Wiring) {
    const { count } = channels;
    this.#channels = channels;
    this.#jobs = jobs;
    this.#wiring = wiring;
    this.#start = new Float64Array(count);
    this.#end = new Float64Array(count);
    this.#next = jobs.first.slice(0, count);
    this.#waits = jobs.waits.slice();
    this.#rowOf = new Int32Array(jobs.count).fill(nobody);
    for (let row = 0; row < count; row++) this.#rowOf.fill(row, jobs.first[row], jobs.first[row + 1]);
    this.#isBusy = new Uint8Array(wiring.ends);
    this.#served = new Uint32Array(count);
    this.#granted = jobs.first.slice(0, count);
    this.#since = new Uint32Array(count);
    this.#open = Array.from({ length: wiring.ends }, () => []);
    this.#outAt = new Int32Array(count).fill(nobody);
    this.#inAt = new Int32Array(count).fill(nobody);
    this.#turns = new Turns(channels, jobs, wiring, (row, jobs) => this.#grant(row, jobs));
  }

  run(): Timeline {
    const { count, waits } = this.#jobs;
    for (let job = 0; job < count; job++) if (waits[job] === 0) this.#becomeReady(job);
    this.#turns.begin();
    this.#startAll();
    while (this.#events.size > 0) {
      this.#now = this.#events.time;
      while (this.#events.size > 0 && this.#events.time === this.#now) {
        const event = this.#events.pop();
        if (event % 2 === 0) this.#leave(event / 2);
        else this.#arrive((event - 1) / 2);
      }
      this.#startAll();
    }
    return { start: this.#start, end: this.#end };
  }

  #grant(row: number, jobs: number): void {
    if (this.#granted[row] === this.#next[row]) this.#since[row] = ++this.#grants;
    this.#granted[row]! += jobs;
    this.#admit(row);
    this.#touched.push(this.#wiring.outEnd[row]!);
  }

  /** Its next job may leave, as far as the channel itself is asked. */
  #isAdmissible(row: number): boolean {
    const next = this.#next[row]!;
    return next < this.#granted[row]! && this.#waits[next] === 0;
  }

  #admit(row: number): void {
    if (this.#outAt[row] !== nobody || !this.#isAdmissible(row)) return;
    this.#outAt[row] = this.#open[this.#wiring.outEnd[row]!]!.push(row) - 1;
    this.#inAt[row] = this.#open[this.#wiring.inEnd[row]!]!.push(row) - 1;
  }

  #withdraw(row: number): void {
    this.#remove(this.#wiring.outEnd[row]!, this.#outAt[row]!);
    this.#remove(this.#wiring.inEnd[row]!, this.#inAt[row]!);
    this.#outAt[row] = nobody;
    this.#inAt[row] = nobody;
  }

  /** The last one takes the place of the one that goes. */
  #remove(end: number, at: number): void {
    const rows = this.#open[end]!;
    const last = rows.pop()!;
    if (at === rows.length) return;
    rows[at] = last;
    if (this.#wiring.outEnd[last] === end) this.#outAt[last] = at;
    else this.#inAt[last] = at;
  }

  #startAll(): void {
    const touched = this.#touched;
    this.#touched = [];
    for (const end of touched) this.#startAt(end);
  }

  #startAt(end: number): void {
    if (this.#isBusy[end] === 1) return;
    let chosen = nobody;
    for (const row of this.#open[end]!) {
      if (this.#isFree(row) && (chosen === nobody || this.#isFirst(row, chosen))) chosen = row;
    }
    if (chosen === nobody) return;
    const job = this.#next[chosen]!;
    if (job === this.#jobs.first[chosen]) this.#start[chosen] = this.#now;
    this.#served[chosen] = ++this.#turn;
    this.#isBusy[this.#wiring.outEnd[chosen]!] = 1;
    this.#isBusy[this.#wiring.inEnd[chosen]!] = 1;
    this.#events.push(this.#now + this.#wiring.duration[job]!, job * 2);
  }

  /**
   * What comes first of all that its receiver asks for goes first, so that all receivers come equally far; of equals the earlier
   * stage, so that later ones have what they wait for as early as can be; then the channel that was served longest ago, and of
   * those that never were the one that was granted first.
   */
  #isFirst(row: number, other: number): boolean {
    const { position } = this.#turns;
    const ahead = position[this.#next[row]!]! - position[this.#next[other]!]!;
    if (ahead !== 0) return ahead < 0;
    const stage = this.#channels.stage[row]! - this.#channels.stage[other]!;
    if (stage !== 0) return stage < 0;
    const served = this.#served[row]! - this.#served[other]!;
    return served === 0 ? this.#since[row]! < this.#since[other]! : served < 0;
  }

  #isFree(row: number): boolean {
    return this.#isBusy[this.#wiring.outEnd[row]!] === 0 && this.#isBusy[this.#wiring.inEnd[row]!] === 0;
  }

  /** All of a job is on its way: its ends are free. */
  #leave(job: number): void {
    const row = this.#rowOf[job]!;
    const [out, into] = [this.#wiring.outEnd[row]!, this.#wiring.inEnd[row]!];
    this.#isBusy[out] = 0;
    this.#isBusy[into] = 0;
    this.#touched.push(out, into);
    this.#next[row]!++;
    if (!this.#isAdmissible(row)) this.#withdraw(row);
    this.#turns.took(row, job);
    if (this.#wiring.latency === 0) this.#arrive(job);
    else this.#events.push(this.#now + this.#wiring.latency, job * 2 + 1);
  }

  #arrive(job: number): void {
    const row = this.#rowOf[job]!;
    if (row !== nobody) this.#end[row] = this.#now;
    const { dependentFirst, dependents } = this.#jobs;
    for (let at = dependentFirst[job]!; at < dependentFirst[job + 1]!; at++) {
      const dependent = dependents[at]!;
      if (--this.#waits[dependent]! === 0) this.#becomeReady(dependent);
    }
  }

  /** What goes nowhere has arrived at once. */
  #becomeReady(job: number): void {
    const row = this.#rowOf[job]!;
    if (row === nobody || this.#wiring.outEnd[row] === nobody) {
      if (row !== nobody && job === this.#jobs.first[row]) this.#start[row] = this.#now;
      this.#arrive(job);
    } else {
      this.#admit(row);
      this.#touched.push(this.#wiring.outEnd[row]!);
    }
  }
}
