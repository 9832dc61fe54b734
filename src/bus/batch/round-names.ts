/**
 * The version that a round carries: the first rank that names one writes it down before it grants or sends anything, so that
 * no round ever mixes two. Who names none takes what comes.
 */
import type { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { Store } from "../../store/store.ts";
import type { TransferResult } from "./call.ts";
import { roundKey } from "./round-records.ts";

interface RoundNamesOptions {
  readonly store: Store;
  /** What its keys begin with. */
  readonly prefix: string;
}

export class RoundNames {
  readonly #options: RoundNamesOptions;
  /** Rounds whose names this rank has written, and has to remove. */
  readonly #written: number[] = [];
  #isUsed = false;

  constructor(options: RoundNamesOptions) {
    this.#options = options;
  }

  /** True once this rank has named a version: then others may have, too. */
  get isUsed(): boolean {
    return this.#isUsed;
  }

  /** The version of a round, after this rank has named its own. */
  async name(round: number, version: bigint, deadline: Deadline): Promise<bigint> {
    const { store } = this.#options;
    this.#isUsed = true;
    const key = this.#key(round);
    const own = Buffer.from(String(version));
    const { swapped, stored } = await store.compareAndSet(key, undefined, own, deadline.rest);
    if (swapped) this.#written.push(round);
    return stored === undefined ? version : this.#read(key, stored);
  }

  /** The version of a round that this rank has taken part in; undefined if nobody has named one. */
  async look(round: number, deadline: Deadline): Promise<bigint | undefined> {
    const key = this.#key(round);
    const stored = await this.#options.store.get(key, deadline.rest);
    return stored === undefined ? undefined : this.#read(key, stored);
  }

  /** What a result says of the version that its round carried: that it is unknown, if the store does not tell before `end`. */
  async carried(round: number, end: Deadline): Promise<Pick<TransferResult, "version" | "versionUnknown">> {
    try {
      const version = await this.look(round, end);
      return version === undefined ? {} : { version };
    } catch {
      return { versionUnknown: true };
    }
  }

  #read(key: string, stored: Uint8Array): bigint {
    const text = Buffer.from(stored).toString("latin1");
    if (/^-?\d{1,20}$/.test(text)) return BigInt(text);
    throw new TensorBusError("TB_VERSION", `the record ${key} does not hold a version number`, {
      details: { key },
    });
  }

  /** Removes names up to a round that no rank can join any more. */
  async forget(upTo: number, deadline: Deadline): Promise<void> {
    while (this.#written.length > 0 && this.#written[0]! <= upTo) {
      await this.#options.store.delete(this.#key(this.#written.shift()!), deadline.rest);
    }
  }

  /** Removes the name of a round, whoever wrote it. */
  async remove(round: number, deadline: Deadline): Promise<void> {
    await this.#options.store.delete(this.#key(round), deadline.rest);
  }

  #key(round: number): string {
    return roundKey(this.#options.prefix, round, "named");
  }
}
