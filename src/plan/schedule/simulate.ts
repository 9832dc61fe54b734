import type { Channels } from "../planner/channels.ts";
import { EventLine, EventQueue } from "./event-queue.ts";
import type { Jobs, Wiring } from "./jobs.ts";
import { Lines } from "./lines.ts";
import { Turns } from "./turns.ts";

/** When the first job of each channel begins and its last one has arrived, in nanoseconds. */
interface Timeline {
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
  /** The channels whose next job was granted and waits for nothing: most wait for others. */
  readonly #lines: Lines;
  /** 1 for a channel that stands in lines, or whose job is leaving. */
  readonly #isIn: Uint8Array;
  readonly #turns: Turns;
  /** Jobs whose last bytes leave, and that arrive, at a time: those that are on their way arrive in the order in which they left. */
  readonly #leaving = new EventQueue();
  readonly #coming = new EventLine();
  #now = 0;
  /** Ends that may have something to do. */
  readonly #touched: number[] = [];

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
    this.#lines = new Lines(wiring, (row, other) => this.#isBefore(row, other));
    this.#isIn = new Uint8Array(count);
    this.#turns = new Turns(channels, jobs, wiring, (row, jobs) => this.#grant(row, jobs));
  }

  run(): Timeline {
    const { count, waits } = this.#jobs;
    for (let job = 0; job < count; job++) if (waits[job] === 0) this.#becomeReady(job);
    this.#turns.begin();
    this.#startAll();
    for (;;) {
      const now = Math.min(this.#leaving.time, this.#coming.time);
      if (now === Number.POSITIVE_INFINITY) break;
      this.#now = now;
      this.#settle();
      this.#startAll();
    }
    return { start: this.#start, end: this.#end };
  }

  /** Whatever leaves or arrives now, by the numbers of jobs. */
  #settle(): void {
    const [leaving, coming] = [this.#leaving, this.#coming];
    for (;;) {
      const leaves = leaving.time === this.#now;
      const arrives = coming.time === this.#now;
      if (!leaves && !arrives) return;
      if (leaves && (!arrives || leaving.first <= coming.first)) this.#leave(leaving.pop());
      else this.#arrive(coming.pop());
    }
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
    if (this.#isIn[row] === 1 || !this.#isAdmissible(row)) return;
    this.#isIn[row] = 1;
    this.#lines.enter(row, this.#turns.position[this.#next[row]!]!);
  }

  #startAll(): void {
    for (const end of this.#touched) this.#startAt(end);
    this.#touched.length = 0;
  }

  /** What comes first of all that its receiver asks for goes first, so that all receivers come equally far. */
  #startAt(end: number): void {
    if (this.#isBusy[end] === 1) return;
    const row = this.#lines.takeFirst(end, this.#isBusy);
    if (row === nobody) return;
    const job = this.#next[row]!;
    if (job === this.#jobs.first[row]) this.#start[row] = this.#now;
    this.#served[row] = ++this.#turn;
    this.#isBusy[this.#wiring.outEnd[row]!] = 1;
    this.#isBusy[this.#wiring.inEnd[row]!] = 1;
    this.#leaving.push(this.#now + this.#wiring.duration[job]!, job);
  }

  /**
   * If two come equally early, the earlier stage goes first, so that later ones have what they wait for as early as can be; then
   * the channel that was served longest ago, and of those that never were the one that was granted first.
   */
  #isBefore(row: number, other: number): boolean {
    const stage = this.#channels.stage[row]! - this.#channels.stage[other]!;
    if (stage !== 0) return stage < 0;
    const served = this.#served[row]! - this.#served[other]!;
    return served === 0 ? this.#since[row]! < this.#since[other]! : served < 0;
  }

  /** All of a job is on its way: its ends are free. */
  #leave(job: number): void {
    const row = this.#rowOf[job]!;
    const [out, into] = [this.#wiring.outEnd[row]!, this.#wiring.inEnd[row]!];
    this.#isBusy[out] = 0;
    this.#isBusy[into] = 0;
    this.#touched.push(out, into);
    this.#next[row]!++;
    this.#isIn[row] = 0;
    this.#admit(row);
    this.#turns.took(row, job);
    if (this.#wiring.latency === 0) this.#arrive(job);
    else this.#coming.push(this.#now + this.#wiring.latency, job);
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
