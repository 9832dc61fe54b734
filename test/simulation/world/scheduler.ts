/**
 * Virtual time. Everything that happens is an event of a process, or of the world itself; one is taken at a time, in the
 * order of their moments, and all that follows from it at once (promises) is done before the next one is.
 */

/** What an operating system can do to a process. Its own events are only taken while it runs. */
export class Process {
  readonly name: string;
  state: "running" | "stopped" | "dead" = "running";
  /** What has come while it was stopped. */
  readonly parked: (() => void)[] = [];

  constructor(name: string) {
    this.name = name;
  }
}

export interface Timer {
  cancel(): void;
  /** As those of Node.js. */
  ref(): void;
  unref(): void;
}

class Event implements Timer {
  readonly at: number;
  readonly order: number;
  readonly owner: Process | undefined;
  run: (() => void) | undefined;

  constructor(at: number, order: number, owner: Process | undefined, run: () => void) {
    this.at = at;
    this.order = order;
    this.owner = owner;
    this.run = run;
  }

  cancel(): void {
    this.run = undefined;
  }
  ref(): void {}
  unref(): void {}
}

/** Each deadline that was kept leaves an event that is cancelled: they are taken out when the heap has grown so many times. */
const sweepAt = 2;
const smallHeap = 256;

/**
 * Does all that promises have waiting, as Node.js does after each of its callbacks. An event takes a third less time with it
 * than with a turn of the event loop, which is what it replaces; it does nothing within a promise's own callback.
 */
const drain = (process as unknown as { readonly _tickCallback: () => void })._tickCallback;

export class Scheduler {
  /** Milliseconds since the world began. */
  now = 0;
  /** Whose event is being taken. */
  current: Process | undefined;
  /** Events taken so far. */
  taken = 0;
  #heap: Event[] = [];
  /** How many events the heap has when those that were cancelled are taken out. */
  #sweepAt = smallHeap;
  #order = 0;

  /** In so many milliseconds, for the process whose event this is. */
  after(ms: number, run: () => void): Timer {
    return this.afterFor(this.current, ms, run);
  }

  /** The same, for another process or (`undefined`) the world. */
  afterFor(owner: Process | undefined, ms: number, run: () => void): Timer {
    const event = new Event(this.now + ms, this.#order++, owner, run);
    if (this.#heap.length >= this.#sweepAt) this.#sweep();
    this.#push(event);
    return event;
  }

  /** When the next event is; `undefined` if there is none. */
  get next(): number | undefined {
    while (this.#heap.length > 0 && !isAlive(this.#heap[0]!)) this.#pop();
    return this.#heap[0]?.at;
  }

  /** Timers and messages that wait for a process. */
  waitingFor(owner: Process): number {
    return this.#heap.filter((event) => event.owner === owner && event.run !== undefined).length;
  }

  /** Takes the next event, with all that follows from it at once. Not from within a promise's callback. */
  step(): void {
    if (this.next === undefined) return;
    const event = this.#pop();
    this.now = Math.max(this.now, event.at);
    const { owner, run } = event;
    if (run === undefined) return;
    if (owner?.state === "stopped") {
      owner.parked.push(run);
      return;
    }
    event.run = undefined;
    this.taken++;
    this.current = owner;
    try {
      run();
      drain();
    } finally {
      this.current = undefined;
    }
  }

  stop(process: Process): void {
    if (process.state === "running") process.state = "stopped";
  }

  /** It goes on with what has come meanwhile, in that order. */
  resume(process: Process): void {
    if (process.state !== "stopped") return;
    process.state = "running";
    for (const run of process.parked.splice(0)) this.afterFor(process, 0, run);
  }

  kill(process: Process): void {
    process.state = "dead";
    process.parked.length = 0;
  }

  #sweep(): void {
    // In the order in which they are to be taken, they are a heap.
    this.#heap = this.#heap
      .filter(({ run }) => run !== undefined)
      .sort((a, b) => a.at - b.at || a.order - b.order);
    this.#sweepAt = Math.max(smallHeap, sweepAt * this.#heap.length);
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): Event {
    const heap = this.#heap;
    const first = heap[0]!;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function isAlive({ run, owner }: Event): boolean {
  return run !== undefined && owner?.state !== "dead";
}

function isBefore(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
