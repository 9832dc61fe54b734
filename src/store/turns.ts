/** Milliseconds of work in one turn of the event loop, for all together, and for each before the next one has its turn. */
const turnMs = 6;
const sliceMs = 1;

/** Something with work to do: works until about `until` (`performance.now()`), and says whether there is more. */
export interface Worker {
  work(until: number): boolean;
}

/**
 * Shares the event loop between those who have work: each works for a millisecond, in turns, and all together for a few
 * in one turn of the loop. Whoever asks for much waits; nobody else waits for long.
 */
export class Turns {
  readonly #waiting = new Set<Worker>();
  #spentMs = 0;
  #planned = false;

  /** The worker may have something to do: it does at once what there is time for. */
  offer(worker: Worker): void {
    if (this.#waiting.has(worker)) return;
    if (this.#waiting.size > 0 || this.#spentMs >= turnMs || this.#slice(worker)) this.#waiting.add(worker);
    this.#plan();
  }

  /** The worker has nothing to do any more. */
  leave(worker: Worker): void {
    this.#waiting.delete(worker);
  }

  #turn(): void {
    this.#planned = false;
    this.#spentMs = 0;
    for (const worker of this.#waiting) {
      if (this.#spentMs >= turnMs) break;
      this.#waiting.delete(worker);
      if (this.#slice(worker)) this.#waiting.add(worker);
    }
    if (this.#waiting.size > 0) this.#plan();
  }

  #plan(): void {
    if (this.#planned) return;
    this.#planned = true;
    setImmediate(() => this.#turn());
  }

  #slice(worker: Worker): boolean {
    const begun = performance.now();
    const more = worker.work(begun + sliceMs);
    this.#spentMs += performance.now() - begun;
    return more;
  }
}
