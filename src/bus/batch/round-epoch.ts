/**
 * What the ranks of a batch know of its failed rounds, in one direction. Rounds are numbered on, whatever becomes of them;
 * a failure begins an epoch, whose first number is the one after the failed round: a rank that missed it goes on there.
 */
import { z } from "zod";
import type { Deadline } from "../../deadline.ts";
import { type ErrorCode, errorCodes, TensorBusError } from "../../errors.ts";
import type { Rendezvous } from "../pair/rendezvous.ts";
import { pack, unpack } from "../queue/commands.ts";

const epochSchema = z.strictObject({
  /** Failures so far. */
  epoch: z.int().min(0),
  /** The number of the next round. */
  next: z.int().min(1),
  /** Of the last failure: where it began, and what it was. */
  rank: z.int(),
  code: z.string(),
});
export type EpochRecord = z.infer<typeof epochSchema>;

export class RoundEpochs {
  readonly #rendezvous: Rendezvous;
  readonly #key: string;

  constructor(rendezvous: Rendezvous, prefix: string) {
    this.#rendezvous = rendezvous;
    this.#key = `${prefix}/epoch`;
  }

  async read(deadline: Deadline): Promise<EpochRecord | undefined> {
    return parse(await this.#rendezvous.store.get(this.#key, deadline.rest));
  }

  /** Has everyone know that a round failed; what stands then. */
  async advance(
    round: number,
    error: TensorBusError,
    ownRank: number,
    deadline: Deadline,
  ): Promise<EpochRecord> {
    const { store } = this.#rendezvous;
    let bytes = await store.get(this.#key, deadline.rest);
    for (;;) {
      const last = parse(bytes);
      if (last !== undefined && last.next > round) return last;
      const { rank } = error.details;
      const next: EpochRecord = {
        epoch: (last?.epoch ?? 0) + 1,
        next: round + 1,
        rank: typeof rank === "number" ? rank : ownRank,
        code: error.code,
      };
      const { swapped, stored } = await store.compareAndSet(this.#key, bytes, pack(next), deadline.rest);
      if (swapped) return next;
      bytes = stored;
    }
  }
}

/** The code that a record of another rank names. */
export function knownCode(code: string): ErrorCode {
  return code in errorCodes ? (code as ErrorCode) : "TB_CANCELLED";
}

function parse(bytes: Uint8Array | undefined): EpochRecord | undefined {
  if (bytes === undefined) return undefined;
  const parsed = epochSchema.safeParse(unpack(bytes));
  if (parsed.success) return parsed.data;
  throw new TensorBusError(
    "TB_VERSION",
    `the record of a batch's rounds is malformed: ${parsed.error.message}`,
  );
}
