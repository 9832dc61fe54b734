/**
 * Rounds that change all targets or none. What is received goes into memory of the agent's own; when every rank has its
 * part, one compare-and-set in the store decides for all of them, and then it is copied to where it belongs. A rank that
 * cannot learn the decision leaves its targets as they are, and asks again later.
 */
import { randomBytes } from "node:crypto";
import { setImmediate as yieldLoop } from "node:timers/promises";
import * as z from "zod";
import { Deadline, waitUntil } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { DType } from "../../layout/index.ts";
import { itemSize } from "../../layout/index.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import { describeElements, move } from "../../memory/kernels.ts";
import type { Memory } from "../../memory/memory.ts";
import type { AgentEvent, RoundIdentity } from "../pair/events.ts";
import { inGroups, type Rendezvous } from "../pair/rendezvous.ts";
import type { StoreConnection } from "../pair/uplink.ts";
import { pack } from "../queue/commands.ts";
import { decode } from "../queue/decode.ts";
import type { MemoryTurn } from "./memory-turn.ts";
import { testimonyKey, withdrawalKey } from "./records.ts";
import { elsewhere, knownCode, originOf } from "./round-log.ts";
import { roundKey } from "./round-records.ts";

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

interface StagedCommitOptions {
  readonly connection: Pick<StoreConnection, "rendezvous" | "life">;
  readonly prefix: string;
  /** Names the registration among all of all stores. */
  readonly registration: string;
  /** The side that sends. */
  readonly from: string;
  readonly rank: number;
  /** Ranks of the batch: all of them have to have their part. */
  readonly voters: readonly number[];
  /** Absent if this rank receives nothing. */
  readonly shadow: HostMemory | undefined;
  readonly tensors: readonly ShadowedTensor[];
  /** Rounds of the other direction send what a commit writes to. */
  readonly turn: MemoryTurn;
  /** Frees the shadow memory. */
  readonly letGo: () => void;
  readonly tell: (event: AgentEvent) => void;
}

const nonceSchema = z.instanceof(Uint8Array);
const decisionSchema = z.discriminatedUnion("committed", [
  z.strictObject({ committed: z.literal(true), nonce: nonceSchema }),
  z.strictObject({ committed: z.literal(false), nonce: nonceSchema, rank: z.int(), code: z.string() }),
]);

/** What ends a vote. */
interface VoteLimits {
  /** The deadline of the call: at it, this rank proposes to abort. */
  readonly deadline: Deadline;
  /** As well as when this fires, whose reason is the error. */
  readonly signal: AbortSignal;
  /** When the call ends, decided or not. */
  readonly end: Deadline;
}

type Decision = { readonly committed: true } | { readonly committed: false; readonly error: TensorBusError };

/** Milliseconds after which voters that have said nothing yet are asked again. */
const askAgainMs = 500;
/** Milliseconds beyond its deadline in which a rank that has voted waits to hear who is to blame. */
const blameMs = 100;
/** Bytes that are copied before others get their turn on the event loop. */
const sliceBytes = 32 * 2 ** 20;

export class StagedCommit {
  readonly #options: StagedCommitOptions;
  #doubt: RoundIdentity | undefined;
  /** What was in doubt is being settled: the decision is known. */
  #settling: Promise<void> | undefined;
  #isClosed = false;
  /** The last round that was committed, as far as this rank knows. */
  #committed = 0;

  constructor(options: StagedCommitOptions) {
    this.#options = options;
  }

  get inDoubt(): RoundIdentity | undefined {
    return this.#doubt;
  }

  /**
   * Says that this rank has its part, and resolves once the round is committed and targets hold what it brought. From here on
   * nothing but the decision counts: what ends the call early only proposes to abort. Rejects with why the round was not
   * committed: targets are unchanged. `TB_IN_DOUBT` if the store does not tell until `end`; it is asked on.
   */
  async vote(round: RoundIdentity, until: VoteLimits): Promise<void> {
    this.#doubt = round;
    const { remainingMs: timeoutMs } = until.end;
    let decision: Decision;
    try {
      decision = await within("the decision", this.#decide(round.round, until), new Deadline({ timeoutMs }));
    } catch (cause) {
      throw this.#doubtError(`it is not known whether round ${round.round} was committed`, cause);
    }
    if (decision.committed) await this.#commit(round);
    this.#doubt = undefined;
    if (!decision.committed) throw decision.error;
  }

  /**
   * Settles a round that was in doubt, once no round of the other direction is under way. `TB_IN_DOUBT`, and it stays so, if the store
   * still does not tell: one that has forgotten the round tells it by what all voters testify.
   */
  async resolve(deadline: Deadline, connection = this.#options.connection): Promise<void> {
    const round = this.#doubt;
    if (round === undefined) return;
    let decision: Decision;
    try {
      const { rendezvous, life } = connection;
      const late = this.#lateError(round.round);
      decision =
        life === this.#options.connection.life
          ? await this.#propose(rendezvous, round.round, late, deadline)
          : await this.#askVoters(rendezvous, round.round, deadline);
    } catch (cause) {
      throw this.#doubtError(`it is still not known whether round ${round.round} was committed`, cause);
    }
    // Two may have asked at once.
    if (this.#doubt !== round) return;
    this.#settling ??= this.#settle(round, decision.committed).finally(() => {
      this.#settling = undefined;
    });
    await within("copying it", this.#settling, deadline).catch((cause: unknown) => {
      throw this.#doubtError(
        `round ${round.round} was committed, but its bytes are not in the tensors yet`,
        cause,
      );
    });
  }

  async #settle(round: RoundIdentity, committed: boolean): Promise<void> {
    if (committed) await this.#commit(round);
    // It may have been given up before its turn came.
    if (this.#doubt !== round) return;
    this.#leaveDoubt(round, committed);
  }

  #leaveDoubt(round: RoundIdentity, committed: boolean | undefined): void {
    this.#doubt = undefined;
    this.#options.tell({ kind: "resolved", committed, ...round });
    if (this.#isClosed) this.#options.letGo();
  }

  /** Says in a store that has forgotten the rounds which one was committed last. */
  async testify(
    { rendezvous, life }: Pick<StoreConnection, "rendezvous" | "life">,
    deadline: Deadline,
  ): Promise<void> {
    if (life === this.#options.connection.life) return;
    const { registration, from, rank } = this.#options;
    await rendezvous.publish(testimonyKey(registration, from, rank), this.#committed, deadline.rest);
  }

  /**
   * Takes back what was testified: nobody is in doubt any more. Each rank its own; the first to claim it, what all others have said,
   * since they may have ended. A rank that finds its own gone has nothing to do: all voters together remove as many as there are.
   */
  async withdraw(rendezvous: Rendezvous, deadline: Deadline): Promise<void> {
    const { registration, from, rank, voters } = this.#options;
    const { store } = rendezvous;
    const own = testimonyKey(registration, from, rank);
    if ((await store.get(own, deadline.rest)) === undefined) return;
    await rendezvous.remove(own, deadline.rest);
    const claim = withdrawalKey(registration, from);
    const { swapped } = await store.compareAndSet(claim, undefined, Buffer.from(String(rank)), deadline.rest);
    if (!swapped) return;
    await inGroups(voters.length, (index) =>
      rendezvous.remove(testimonyKey(registration, from, voters[index]!), deadline.rest),
    );
    await store.delete(claim, deadline.rest);
  }

  /**
   * Nobody will ever know the decision here: targets stay as they are, and the memory goes. What is being copied is decided, and
   * comes before.
   */
  async giveUp(deadline: Deadline): Promise<void> {
    await this.#options.turn.quiet(deadline);
    if (this.#doubt !== undefined) this.#leaveDoubt(this.#doubt, undefined);
  }

  /** Removes what was written of a round that all have left. */
  async forget(round: number, deadline: Deadline): Promise<void> {
    const { store } = this.#options.connection.rendezvous;
    const keys = (["votes", "decision"] as const).map((what) => this.#key(round, what));
    await Promise.all(keys.map((key) => store.delete(key, deadline.rest)));
  }

  /** There will be no round any more: the memory goes, when nothing is in doubt. */
  close(): void {
    this.#isClosed = true;
    if (this.#doubt === undefined) this.#options.letGo();
  }

  async #decide(round: number, { deadline, signal, end }: VoteLimits): Promise<Decision> {
    const { connection, voters } = this.#options;
    const { rendezvous } = connection;
    const { store } = rendezvous;
    try {
      // Said once: a vote that may have been counted although its answer did not come is never said again.
      const votes = await store.add(this.#key(round, "votes"), 1n, deadline.rest);
      if (votes === BigInt(voters.length)) return await this.#propose(rendezvous, round, undefined, end);
      const decided = () => store.wait([this.#key(round, "decision")], { timeoutMs, signal });
      let timeoutMs = deadline.remainingMs;
      await decided().catch((error: unknown) => {
        if (!isLate(error) || signal.aborted) throw error;
        // Those who wait for a rank that did not come say so at the same deadline; this one only knows that not all have voted.
        timeoutMs = Math.min(blameMs, end.remainingMs);
        return decided();
      });
    } catch (cause) {
      if (!(cause instanceof TensorBusError) || !["TB_TIMEOUT", "TB_CANCELLED"].includes(cause.code))
        throw cause;
      const { reason } = signal;
      const why = signal.aborted && reason instanceof TensorBusError ? reason : this.#lateError(round, cause);
      return this.#propose(rendezvous, round, why, end);
    }
    const stored = await store.get(this.#key(round, "decision"), end.rest);
    if (stored !== undefined) return readDecision(round, stored);
    throw new TensorBusError("TB_STORE_LOST", `the store no longer has the decision for round ${round}`);
  }

  #doubtError(what: string, cause: unknown): TensorBusError {
    const message = `${what}: ${(cause as Error).message}`;
    return new TensorBusError("TB_IN_DOUBT", message, { details: { rank: this.#options.rank }, cause });
  }

  #lateError(round: number, cause?: unknown): TensorBusError {
    const { rank } = this.#options;
    const message = `round ${round} was not decided in time`;
    return new TensorBusError("TB_TIMEOUT", message, { details: { rank }, cause });
  }

  /** What stands in the store after this rank has said what it wants: the first one to say it decides. */
  async #propose(
    rendezvous: Rendezvous,
    round: number,
    failure: TensorBusError | undefined,
    deadline: Deadline,
  ): Promise<Decision> {
    const { rank } = this.#options;
    // Bytes of its own tell apart who was first, on every store.
    const nonce = randomBytes(8);
    const wish =
      failure === undefined
        ? { committed: true, nonce }
        : {
            committed: false,
            nonce,
            rank: originOf(failure, rank),
            code: elsewhere(failure),
          };
    const key = this.#key(round, "decision");
    const bytes = pack(wish);
    const { stored } = await rendezvous.store.compareAndSet(key, undefined, bytes, deadline.rest);
    const decision = readDecision(round, stored ?? bytes);
    const own = stored === undefined || bytes.equals(stored);
    return own && failure !== undefined ? { committed: false, error: failure } : decision;
  }

  /** Any voter that knows of the commit commits; that there was none takes the word of all of them. */
  async #askVoters(rendezvous: Rendezvous, round: number, deadline: Deadline): Promise<Decision> {
    const { registration, from, voters } = this.#options;
    const keys = voters.map((rank) => testimonyKey(registration, from, rank));
    for (;;) {
      const committed = await rendezvous.readAll(keys, z.int(), deadline.rest);
      if (committed.includes(round)) return { committed: true };
      const missing = keys.filter((_, index) => committed[index] === undefined);
      if (missing.length === 0) return { committed: false, error: this.#lateError(round) };
      const timeoutMs = Math.min(askAgainMs, deadline.remainingMs);
      const { signal } = deadline;
      await rendezvous.store
        .wait(missing, { timeoutMs, ...(signal === undefined ? {} : { signal }) })
        .catch((error: unknown) => {
          if (!isLate(error) || deadline.remainingMs === 0) throw error;
        });
    }
  }

  async #commit(round: RoundIdentity): Promise<void> {
    const { turn, from } = this.#options;
    // Others may ask in the next store before it is copied.
    this.#committed = round.round;
    await turn.copy(from, async () => {
      if (this.#doubt === round) await this.#apply();
    });
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
    return roundKey(this.#options.prefix, round, what);
  }
}

function within<T>(what: string, promise: Promise<T>, deadline: Deadline): Promise<T> {
  return waitUntil(what, deadline, (resolve, reject) => {
    promise.then(resolve, reject);
    return () => {};
  });
}

function isLate(error: unknown): boolean {
  return error instanceof TensorBusError && error.code === "TB_TIMEOUT";
}

function readDecision(round: number, bytes: Uint8Array): Decision {
  const parsed = decode(decisionSchema, bytes);
  if (!parsed.success) {
    throw new TensorBusError("TB_VERSION", `the decision for round ${round} was written by another version`);
  }
  if (parsed.data.committed) return { committed: true };
  const { rank, code } = parsed.data;
  const message = `round ${round} was not committed: rank ${rank} failed`;
  return { committed: false, error: new TensorBusError(knownCode(code), message, { details: { rank } }) };
}
