/**
 * Rounds that change all targets or none. What is received goes into memory of the agent's own; when every rank has its
 * part, one compare-and-set in the store decides for all of them, and then it is copied to where it belongs. A rank that can
 * not learn the decision leaves its targets as they are, and asks again later.
 */
import { randomBytes } from "node:crypto";
import { setImmediate as yieldLoop } from "node:timers/promises";
import { z } from "zod";
import { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { DType } from "../../layout/index.ts";
import { itemSize } from "../../layout/index.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { describeElements, move } from "../../memory/kernels.ts";
import type { Memory } from "../../memory/memory.ts";
import type { AgentEvent, RoundIdentity } from "../pair/events.ts";
import type { Rendezvous } from "../pair/rendezvous.ts";
import { pack, unpack } from "../queue/commands.ts";
import { knownCode } from "./round-epoch.ts";

/** A target of this rank, and where its next value is received. */
export interface ShadowedTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly memory: Memory;
  readonly offset: bigint;
  /** In the shadow memory, packed. */
  readonly shadowOffset: bigint;
}

export interface StagedCommitOptions {
  readonly rendezvous: Rendezvous;
  readonly prefix: string;
  readonly rank: number;
  /** Ranks of the batch: all of them have to have their part. */
  readonly voters: number;
  /** Absent where this rank receives nothing. */
  readonly shadow: HostMemory | undefined;
  readonly tensors: readonly ShadowedTensor[];
  /** Frees the shadow memory. */
  readonly letGo: () => void;
  readonly tell: (event: AgentEvent) => void;
}

const nonceSchema = z.instanceof(Uint8Array);
const decisionSchema = z.discriminatedUnion("committed", [
  z.strictObject({ committed: z.literal(true), nonce: nonceSchema }),
  z.strictObject({ committed: z.literal(false), nonce: nonceSchema, rank: z.int(), code: z.string() }),
]);

type Decision = { readonly committed: true } | { readonly committed: false; readonly error: TensorBusError };

const watchMs = 2 ** 31 - 1;
/** Bytes that are copied before others get their turn on the event loop. */
const sliceBytes = 32 * 2 ** 20;

export class StagedCommit {
  readonly #options: StagedCommitOptions;
  #doubt: RoundIdentity | undefined;

  constructor(options: StagedCommitOptions) {
    this.#options = options;
  }

  get inDoubt(): RoundIdentity | undefined {
    return this.#doubt;
  }

  /**
   * Resolves once the round is committed and targets hold what it brought. Rejects with `failure`, or with why another rank
   * could not: targets are unchanged. `TB_IN_DOUBT` where the store does not tell.
   */
  async decide(round: RoundIdentity, failure: TensorBusError | undefined, deadline: Deadline): Promise<void> {
    let decision: Decision;
    try {
      decision = await this.#agree(round, failure, deadline);
    } catch (cause) {
      if (failure !== undefined) throw failure;
      this.#doubt = round;
      const message = `whether round ${round.round} was committed is not known: ${(cause as Error).message}`;
      throw new TensorBusError("TB_IN_DOUBT", message, { details: { rank: this.#options.rank }, cause });
    }
    if (!decision.committed) throw failure === undefined || isFollowing(failure) ? decision.error : failure;
    await this.#apply();
  }

  /** Aborts `round` as soon as another rank has decided against it; until the returned function is called. */
  watch({ round }: RoundIdentity, abort: (error: TensorBusError) => void): () => void {
    const stop = new AbortController();
    const { store } = this.#options.rendezvous;
    const key = this.#key(round, "decision");
    const look = async () => {
      await store.wait([key], { timeoutMs: watchMs, signal: stop.signal });
      const stored = await store.get(key, { signal: stop.signal });
      const decision = stored === undefined ? undefined : readDecision(round, stored);
      if (decision?.committed === false && !stop.signal.aborted) abort(decision.error);
    };
    // A store that is lost ends the round otherwise.
    look().catch(() => {});
    return () => stop.abort();
  }

  /** Settles a round that was in doubt. Rejects, and stays in doubt, where the store still does not tell. */
  async resolve(deadline: Deadline, rendezvous = this.#options.rendezvous): Promise<void> {
    const round = this.#doubt;
    if (round === undefined) return;
    const late = new TensorBusError("TB_CANCELLED", `rank ${this.#options.rank} was in doubt for too long`, {
      details: { rank: this.#options.rank },
    });
    const decision = await this.#propose(rendezvous, round.round, late, deadline);
    if (decision.committed) await this.#apply();
    this.#doubt = undefined;
    this.#options.tell({ kind: "resolved", committed: decision.committed, ...round });
  }

  /** Removes what was written of a round that all have left. */
  async forget(round: number, deadline: Deadline): Promise<void> {
    const { store } = this.#options.rendezvous;
    for (const what of ["votes", "decision"] as const)
      await store.delete(this.#key(round, what), deadline.rest);
  }

  close(): void {
    this.#options.letGo();
  }

  async #agree(
    { round }: RoundIdentity,
    failure: TensorBusError | undefined,
    deadline: Deadline,
  ): Promise<Decision> {
    const { rendezvous, voters } = this.#options;
    const { store } = rendezvous;
    const key = this.#key(round, "decision");
    if (failure !== undefined) return this.#propose(rendezvous, round, failure, settling());
    const votes = await store.add(this.#key(round, "votes"), 1n, deadline.rest);
    if (votes === BigInt(voters)) return this.#propose(rendezvous, round, undefined, settling());
    try {
      await store.wait([key], deadline.rest);
    } catch (error) {
      if (!(error instanceof TensorBusError) || !["TB_TIMEOUT", "TB_CANCELLED"].includes(error.code))
        throw error;
      const details = { rank: this.#options.rank };
      const late = new TensorBusError(error.code, `round ${round} was not decided in time`, {
        details,
        cause: error,
      });
      return this.#propose(rendezvous, round, late, settling());
    }
    return this.#propose(rendezvous, round, undefined, deadline);
  }

  /** What stands in the store after this rank has said what it wants: the first one to say it decides. */
  async #propose(
    rendezvous: Rendezvous,
    round: number,
    failure: TensorBusError | undefined,
    deadline: Deadline,
  ): Promise<Decision> {
    const { rank } = this.#options;
    const origin = failure?.details["rank"];
    // Bytes of its own tell apart who was first, on every store.
    const nonce = randomBytes(8);
    const wish =
      failure === undefined
        ? { committed: true, nonce }
        : {
            committed: false,
            nonce,
            rank: typeof origin === "number" ? origin : rank,
            code: elsewhere(failure),
          };
    const key = this.#key(round, "decision");
    const bytes = pack(wish);
    const { stored } = await rendezvous.store.compareAndSet(key, undefined, bytes, deadline.rest);
    const decision = readDecision(round, stored ?? bytes);
    const own = stored === undefined || bytes.equals(stored);
    return own && failure !== undefined ? { committed: false, error: failure } : decision;
  }

  async #apply(): Promise<void> {
    const { shadow, tensors } = this.#options;
    if (shadow === undefined) return;
    let copied = 0;
    for (const { dtype, shape, strides, memory, offset, shadowOffset } of tensors) {
      const elements = shape.reduce((product, size) => product * size, 1);
      if (elements === 0) continue;
      const bytes = BigInt(elements * itemSize(dtype));
      move(
        { bytes: { memory, offset }, dtype, descriptor: describeElements(dtype, shape, strides) },
        { bytes: { memory: shadow, offset: shadowOffset, bytes }, dtype },
      );
      copied += Number(bytes);
      if (copied < sliceBytes) continue;
      copied = 0;
      await yieldLoop();
    }
  }

  #key(round: number, what: "votes" | "decision"): string {
    return `${this.#options.prefix}/${round}/${what}`;
  }
}

function readDecision(round: number, bytes: Uint8Array): Decision {
  const parsed = decisionSchema.safeParse(unpack(bytes));
  if (!parsed.success) {
    throw new TensorBusError("TB_VERSION", `the decision of round ${round} is none of this version`);
  }
  if (parsed.data.committed) return { committed: true };
  const { rank, code } = parsed.data;
  const message = `round ${round} was not committed: rank ${rank} failed`;
  return { committed: false, error: new TensorBusError(knownCode(code), message, { details: { rank } }) };
}

/** A round that was only ended because another rank had. */
function isFollowing({ code }: TensorBusError): boolean {
  return code === "TB_CANCELLED";
}

/** A rank's own timeout is a cancellation to all others. */
function elsewhere({ code }: TensorBusError): string {
  return code === "TB_TIMEOUT" ? "TB_CANCELLED" : code;
}

/** A decision is asked for a little longer than the round was given. */
function settling(): Deadline {
  return new Deadline({ timeoutMs: 2000 });
}
