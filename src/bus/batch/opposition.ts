/**
 * How ranks find out that they wait for each other in opposite directions of one batch: nobody would ever come. Whoever is in a
 * round for longer than a moment notes in one record of the registration which round that is, and looks who waits in the other
 * direction. Rounds that are over sooner cost nothing.
 */
import * as z from "zod";
import type { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { Store } from "../../store/store.ts";
import { pack } from "../queue/commands.ts";
import { decode } from "../queue/decode.ts";
import { opposedError, type RoundLog } from "./round-log.ts";

const waitingSchema = z.strictObject({
  /** The side that sends. */
  from: z.string(),
  round: z.int().min(1),
  /** One that waits in it, and the round of the other direction that it would join: of all that wait, the lowest. */
  rank: z.int().min(0),
  other: z.int().min(1),
});
const recordSchema = z.array(waitingSchema).max(2);
/** The ranks that wait, and in what. */
type Waiting = z.infer<typeof waitingSchema>;

interface OppositionOptions {
  readonly store: Store;
  readonly key: string;
  readonly rank: number;
  readonly log: RoundLog;
}

export class Opposition {
  readonly #options: OppositionOptions;
  /** The round of each direction that this rank would join, by the side that sends. */
  readonly #next = new Map<string, () => number>();

  constructor(options: OppositionOptions) {
    this.#options = options;
  }

  /** A direction of this batch, and which of its rounds this rank would join. */
  add(from: string, next: () => number): void {
    this.#next.set(from, next);
  }

  /**
   * This rank waits in a round. Why that has to end, if another rank waits in the other direction and has not been in this round:
   * then the round that it waits in has failed as well, by the log. The later of two ranks that note themselves finds the other.
   */
  async find(from: string, round: number, deadline: Deadline): Promise<TensorBusError | undefined> {
    const { log, rank } = this.#options;
    const [opposite, next] = [...this.#next].find(([each]) => each !== from) ?? [];
    if (opposite === undefined || next === undefined) return undefined;
    const own = { from, round, rank, other: next() };
    const isOpposed = (waiting: Waiting | undefined): waiting is Waiting =>
      waiting !== undefined && waiting.round >= next() && waiting.other <= round;
    let found = await this.#note(own, deadline);
    if (!isOpposed(found)) return undefined;
    // It may have failed long ago, which this rank has not read yet.
    await log.sync(deadline);
    if (log.next(from) > round) return undefined;
    found = await this.#note({ ...own, other: next() }, deadline);
    if (!isOpposed(found)) return undefined;
    void log.appendFailed({ from: opposite, round: found.round, rank, code: "TB_BUSY" });
    return opposedError(found.rank);
  }

  /** Writes down who waits, unless that stands there already; who waits in the other direction. */
  async #note(own: Waiting, deadline: Deadline): Promise<Waiting | undefined> {
    const { store, key } = this.#options;
    let stored = await store.get(key, deadline.rest);
    for (;;) {
      const record = this.#parse(stored);
      const other = record.find(({ from }) => from !== own.from);
      const standing = record.find(({ from }) => from === own.from);
      if (standing !== undefined && covers(standing, own)) return other;
      const desired = pack(other === undefined ? [own] : [own, other]);
      const answer = await store.compareAndSet(key, stored, desired, deadline.rest);
      if (answer.swapped) return other;
      stored = answer.stored;
    }
  }

  #parse(bytes: Uint8Array | undefined): readonly Waiting[] {
    if (bytes === undefined) return [];
    const { key } = this.#options;
    const parsed = decode(recordSchema, bytes);
    if (parsed.success) return parsed.data;
    throw new TensorBusError("TB_VERSION", `the record ${key} was written by another version`, {
      details: { key },
    });
  }
}

/** True for a note that tells others all that the new one would. */
function covers(standing: Waiting, own: Waiting): boolean {
  return standing.round > own.round || (standing.round === own.round && standing.other <= own.other);
}
