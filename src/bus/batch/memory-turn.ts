/**
 * Whose turn it is with the memory of a batch on one rank. What rounds of one direction are received into is what those of the other
 * one send: the commit of a round that was in doubt waits until none of the other direction is under way, and a round that begins
 * meanwhile waits until that is copied.
 */
import type { Deadline } from "../../deadline.ts";
import { settled } from "./round-log.ts";

export class MemoryTurn {
  /** Directions in which a call is under way, by the side that sends. */
  readonly #calls = new Set<string>();
  readonly #copies = new Set<Promise<unknown>>();
  #waiting: (() => void)[] = [];

  /** From the first post of a round on, what its caller has written is its own. */
  begin(from: string): void {
    this.#calls.add(from);
  }

  /** Its call is over. */
  end(from: string): void {
    this.#calls.delete(from);
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const goOn of waiting) goOn();
  }

  /** Copies what a round of that direction brought, when it does not change what another round sends. */
  async copy(from: string, copy: () => Promise<void>): Promise<void> {
    while ([...this.#calls].some((each) => each !== from))
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    // From here to its end nothing else begins: large ones leave the event loop to others in between.
    const copying = copy();
    this.#copies.add(copying);
    try {
      await copying;
    } finally {
      this.#copies.delete(copying);
    }
  }

  /** Resolves when nothing is being copied. */
  async quiet(deadline: Deadline): Promise<void> {
    while (this.#copies.size > 0)
      await settled("copying a round that was committed", Promise.allSettled(this.#copies), deadline);
  }
}
