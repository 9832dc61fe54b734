/**
 * The transfer signal of one direction: true once every source rank has posted a round, until this rank has completed it.
 * It travels through the store, so that it can be read before any target has granted anything; each rank watches it, so
 * that reading it takes no round trip. It speaks of the round that this rank would join: one that has failed is nobody's.
 */
import type { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { Store } from "../../store/store.ts";
import { roundKey } from "./round-records.ts";

/** What stands in the store once all sources have come: with the version that the last of them named. */
const readyText = "ready";
/** The longest wait of a store; it begins anew then. */
const watchMs = 2 ** 31 - 1;

interface TransferSignalOptions {
  readonly store: Store;
  /** What the keys of this direction begin with. */
  readonly prefix: string;
  /** Ranks that post each round as its sources. */
  readonly sources: number;
  /** By how many rounds, at least, a rank has gone on from one whose records others remove: it has to look after later ones itself. */
  readonly margin: number;
  /** What could not be watched: a store that was lost. */
  readonly onFault: (error: unknown) => void;
  readonly onReady: (round: number) => void;
}

export class TransferSignal {
  readonly #options: TransferSignalOptions;
  #round = 0;
  #ready = false;
  #announced = 0;
  /** Announcements that may come to the store after others have removed the records of their round. */
  readonly #late = new Map<number, Promise<void>>();
  #watch: AbortController | undefined;
  #closed = false;

  constructor(options: TransferSignalOptions) {
    this.#options = options;
  }

  get ready(): boolean {
    return this.#ready;
  }

  /** The round that it speaks of. */
  get round(): number {
    return this.#round;
  }

  /** The version that the last source to come named for its round; undefined if it named none, or none is ready. */
  async version(deadline: Deadline): Promise<bigint | undefined> {
    if (!this.#ready) return undefined;
    const stored = await this.#options.store.get(this.#key(this.#round, "state"), deadline.rest);
    const named = /^ready (\d{1,20})$/.exec(Buffer.from(stored ?? []).toString("latin1"));
    return named === null ? undefined : BigInt(named[1]!);
  }

  /** From here on it speaks of that round. */
  follow(round: number): void {
    if (round <= this.#round || this.#closed) return;
    this.#round = round;
    this.#ready = false;
    this.#watch?.abort();
    const watch = new AbortController();
    this.#watch = watch;
    void this.#watchRound(round, watch.signal).catch((error) => {
      if (!watch.signal.aborted) this.#options.onFault(error);
    });
  }

  /** This rank, a source, is in that round, with that version: said once of each. */
  announce(round: number, version: bigint | undefined, deadline: Deadline): Promise<void> {
    if (round <= this.#announced) return Promise.resolve();
    this.#announced = round;
    const saying = this.#say(round, version, deadline);
    const said = saying.then(
      () => {
        // Had others removed anything of it by now, this rank would be further on.
        const { margin } = this.#options;
        if (Math.max(this.#round, this.#announced) < round + margin) this.#late.delete(round);
      },
      // It may still take effect.
      () => {},
    );
    this.#late.set(round, said);
    return saying;
  }

  async #say(round: number, version: bigint | undefined, deadline: Deadline): Promise<void> {
    const { store, sources } = this.#options;
    const posted = sources === 1 ? 1n : await store.add(this.#key(round, "posted"), 1n, deadline.rest);
    if (posted < BigInt(sources)) return;
    const value = Buffer.from(version === undefined ? readyText : `${readyText} ${version}`);
    await store.compareAndSet(this.#key(round, "state"), undefined, value, deadline.rest);
  }

  /** Removes what was written of a round that nobody is in any more. */
  async forget(round: number, deadline: Deadline): Promise<void> {
    const { store, sources } = this.#options;
    // Both are asked for at once: a store that answers late does both, and one that is asked later may never be.
    await Promise.all([
      ...(sources > 1 ? [store.delete(this.#key(round, "posted"), deadline.rest)] : []),
      store.delete(this.#key(round, "state"), deadline.rest),
    ]);
  }

  /**
   * Removes what this rank may have written of rounds up to that one after others had removed the rest: its part goes over a
   * connection of its own, or in two steps, and rounds do not wait for it.
   */
  async forgetLate(upTo: number, within: () => Deadline): Promise<void> {
    const late = [...this.#late].filter(([round]) => round <= upTo);
    await Promise.all(
      late.map(async ([round, said]) => {
        this.#late.delete(round);
        await said;
        await this.forget(round, within());
      }),
    );
  }

  close(): void {
    this.#closed = true;
    this.#watch?.abort();
    this.#ready = false;
  }

  async #watchRound(round: number, signal: AbortSignal): Promise<void> {
    const { store, onReady } = this.#options;
    const key = this.#key(round, "state");
    for (;;) {
      try {
        await store.wait([key], { timeoutMs: watchMs, signal });
        break;
      } catch (error) {
        if (signal.aborted || !(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") throw error;
      }
    }
    if (signal.aborted) return;
    this.#ready = true;
    onReady(round);
  }

  #key(round: number, what: "posted" | "state"): string {
    return roundKey(this.#options.prefix, round, what);
  }
}
