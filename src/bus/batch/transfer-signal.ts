/**
 * The transfer signal of one direction: true once every source rank has posted a round, until this rank has completed it.
 * It travels through the store, so that it can be read before any target has granted anything; each rank watches it, so
 * that reading it takes no round trip.
 */
import { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { Rendezvous } from "../pair/rendezvous.ts";

const ready = Buffer.from("ready");
const cancelled = Buffer.from("cancelled");
/** The longest wait of a store; it begins anew then. */
const watchMs = 2 ** 31 - 1;

export interface TransferSignalOptions {
  readonly rendezvous: Rendezvous;
  /** Of the keys of this direction. */
  readonly prefix: string;
  /** Ranks that post each round as its sources. */
  readonly sources: number;
  /** What could not be watched: a store that was lost. */
  readonly onFault: (error: unknown) => void;
  readonly onReady: (round: number) => void;
}

export class TransferSignal {
  readonly #options: TransferSignalOptions;
  #round = 0;
  #ready = false;
  #watch: AbortController | undefined;

  constructor(options: TransferSignalOptions) {
    this.#options = options;
  }

  get ready(): boolean {
    return this.#ready;
  }

  /** From here on it speaks of that round. */
  follow(round: number): void {
    if (round <= this.#round) return;
    this.#round = round;
    this.#ready = false;
    this.#watch?.abort();
    const watch = new AbortController();
    this.#watch = watch;
    void this.#watchRound(round, watch.signal).catch((error) => {
      if (!watch.signal.aborted) this.#options.onFault(error);
    });
  }

  /** This rank, a source, has posted the round. */
  async announce(round: number, deadline: Deadline): Promise<void> {
    const { rendezvous, sources } = this.#options;
    const posted =
      sources === 1 ? 1n : await rendezvous.store.add(this.#key(round, "posted"), 1n, deadline.rest);
    if (posted < BigInt(sources)) return;
    await rendezvous.store.compareAndSet(this.#key(round, "state"), undefined, ready, deadline.rest);
  }

  /** The round has failed: it is nobody's to take any more. */
  async withdraw(round: number, deadline: Deadline): Promise<void> {
    const { store } = this.#options.rendezvous;
    await store.compareAndSet(this.#key(round, "state"), undefined, cancelled, deadline.rest);
    await store.set(this.#key(round, "over"), cancelled, deadline.rest);
  }

  /** Removes what was written of a round that nobody is in any more. */
  async forget(round: number, deadline: Deadline): Promise<void> {
    const { store } = this.#options.rendezvous;
    for (const what of ["posted", "state", "over"] as const)
      await store.delete(this.#key(round, what), deadline.rest);
  }

  close(): void {
    this.#watch?.abort();
    this.#ready = false;
  }

  async #watchRound(round: number, signal: AbortSignal): Promise<void> {
    const { rendezvous, onReady } = this.#options;
    const rest = { timeoutMs: watchMs, signal };
    await waitLong(() => rendezvous.store.wait([this.#key(round, "state")], rest), signal);
    const state = await rendezvous.store.get(this.#key(round, "state"), { signal });
    if (state !== undefined && ready.equals(state) && !signal.aborted) {
      this.#ready = true;
      onReady(round);
      await waitLong(() => rendezvous.store.wait([this.#key(round, "over")], rest), signal);
    }
    // A failed round is followed by the next one, whoever of us was in it.
    if (!signal.aborted) this.follow(round + 1);
  }

  #key(round: number, what: "posted" | "state" | "over"): string {
    return `${this.#options.prefix}/${round}/${what}`;
  }
}

async function waitLong(wait: () => Promise<void>, signal: AbortSignal): Promise<void> {
  for (;;) {
    try {
      await wait();
      return;
    } catch (error) {
      if (signal.aborted || !(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") throw error;
    }
  }
}

/** How long an end of a round waits for a store that says nothing. */
export function settlingDeadline(): Deadline {
  return new Deadline({ timeoutMs: 2000 });
}
