/** Says in the journal what is done, and not before it is on disk. */
import type { Journal } from "./journal.ts";
import type { ItemChecksums } from "./scatter.ts";
import type { Syncer } from "./syncer.ts";

/** After so many bytes what was written begins to be made durable, beside what goes on. */
const syncBytes = 128 * 2 ** 20;

/** Notes items once they are durable, while others are moved: one sync at a time. */
export class Notes {
  readonly #syncer: Syncer;
  readonly #journal: Journal;
  #written: [item: number, checksums: ItemChecksums][] = [];
  #bytes = 0;
  #underWay = 0;
  #last: Promise<void> = Promise.resolve();
  #failure: { readonly error: unknown } | undefined;

  constructor(syncer: Syncer, journal: Journal) {
    this.#syncer = syncer;
    this.#journal = journal;
  }

  /** An item was written. Throws if an earlier one could not be made durable, or noted. */
  add(item: number, checksums: ItemChecksums, bytes: number): void {
    this.#requireDurable();
    this.#written.push([item, checksums]);
    this.#bytes += bytes;
    if (this.#bytes >= syncBytes && this.#underWay === 0) this.begin();
  }

  /** Begins with what is written, behind what is under way. */
  begin(): void {
    this.#last = this.#sync(this.#last);
  }

  /** Everything that was written is durable, and noted. */
  async settled(): Promise<void> {
    await this.#last;
    this.#requireDurable();
  }

  async #sync(before: Promise<void>): Promise<void> {
    this.#underWay++;
    await before;
    // Linux tells of a failed write once: the next sync of the file succeeds, whatever was lost before it.
    if (this.#failure === undefined) await this.#noteWritten();
    this.#underWay--;
  }

  async #noteWritten(): Promise<void> {
    const written = this.#written;
    [this.#written, this.#bytes] = [[], 0];
    try {
      await this.#syncer.sync();
      this.#journal.add(written);
    } catch (error) {
      this.#failure ??= { error };
    }
  }

  #requireDurable(): void {
    if (this.#failure !== undefined) throw this.#failure.error;
  }
}
