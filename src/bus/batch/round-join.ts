/**
 * How a call of this rank takes part in a round (docs/adr/0021-rounds.md): it joins the next round that has not failed,
 * posts it at once and reads alongside what has become of earlier ones. If it finds that it joined one that had failed
 * before, it joins the next, within the same call.
 */
import { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { Execution } from "../../exec/executor.ts";
import type { RoundReport } from "../../transport/transport.ts";
import type { RoundIdentity } from "../pair/events.ts";
import type { MemoryTurn } from "./memory-turn.ts";
import {
  type BatchEnd,
  elsewhere,
  endedError,
  errorOfEnd,
  errorOfFailed,
  originOf,
  type RoundLog,
  settled,
} from "./round-log.ts";
import type { RoundNames } from "./round-names.ts";
import type { StagedCommit } from "./staged-commit.ts";

/** One call of this rank, of all roles that it has. */
interface RoundCall {
  readonly deadline: Deadline;
  /** Fired to end it early; the reason is the error that its callers see. */
  readonly abort: AbortController;
  /** The GPUs of its memory have come to it. */
  readonly ready: Promise<unknown>;
  /** The highest that its callers named. */
  readonly version: bigint | undefined;
  /** It takes part in this round, until told otherwise. */
  readonly onJoined: (round: number) => void;
  /** The transfer signal says of that round that this rank is in it. */
  readonly isShown: (round: number) => boolean;
  /** The round is posted: others count on this rank now. */
  readonly onPosted: (round: number) => void;
  /** Nothing of it touches the memory of its tensors any more. */
  readonly onQuiet: () => void;
}

export interface RoundOutcome {
  readonly round: number;
  readonly report: RoundReport;
  readonly seconds: { readonly move: number; readonly commit: number };
}

/** A call that ended without having been in any round: the round stays open for the next one. */
export class NoRound extends Error {
  readonly error: TensorBusError;

  constructor(error: TensorBusError) {
    super(error.message);
    this.error = error;
  }
}

interface RoundJoinOptions {
  readonly rank: number;
  /** The side that sends. */
  readonly from: string;
  readonly execution: Execution;
  readonly log: RoundLog;
  readonly names: RoundNames;
  readonly staged: StagedCommit | undefined;
  readonly turn: MemoryTurn;
  readonly identity: (round: number) => RoundIdentity;
}

/** Milliseconds beyond its deadline in which a call says what has become of it. */
export const graceMs = 250;
/** What a transport says of a rank that has given a round up, or left: the log may have said why before. */
const unexplained = ["TB_CANCELLED", "TB_INVALIDATED", "TB_PEER_LOST"];
/** Milliseconds that a failure waits for the log to say whether the round had failed before. */
const holdMs = 250;

/** What the log says of the round that was joined. */
interface Reading {
  /** False: it had failed before; `undefined` while the log has not answered. */
  isConfirmed: boolean | undefined;
  readonly answered: Promise<void>;
}

const again = Symbol("again");

export class RoundJoin {
  readonly #options: RoundJoinOptions;
  #next = 1;

  constructor(options: RoundJoinOptions) {
    this.#options = options;
  }

  /** The round that a call would join now. */
  get next(): number {
    const { log, from } = this.#options;
    return Math.max(this.#next, log.next(from));
  }

  /**
   * Takes part in a round. Rejects with `NoRound`, or with why the round failed: then all other ranks know it, or will as
   * soon as the store lets them. Settles at the latest `graceMs` after the deadline, unless memory is not quiet yet.
   */
  async join(call: RoundCall): Promise<RoundOutcome> {
    const end = new Deadline({ timeoutMs: call.deadline.remainingMs + graceMs });
    for (;;) {
      const round = this.next;
      this.#requireOpen(round);
      call.onJoined(round);
      try {
        const outcome = await this.#attempt(round, call, end);
        this.#next = Math.max(this.#next, round + 1);
        if (outcome === again) continue;
        call.onQuiet();
        return outcome;
      } catch (thrown) {
        if (thrown instanceof NoRound) throw thrown;
        const error = asBusError(thrown);
        this.#next = Math.max(this.#next, round + 1);
        // Nothing may be said of a round in doubt but its decision.
        if (error.code === "TB_IN_DOUBT") throw error;
        if (error.code !== "TB_QUARANTINED") call.onQuiet();
        await this.#tell(round, error, end);
        throw error;
      }
    }
  }

  /** A round that failed may have been the last one. */
  #requireOpen(round: number): void {
    const ended = this.#ended(round);
    if (ended !== undefined) throw new NoRound(ended);
  }

  /** Why nobody can join that round any more. */
  #ended(round: number): TensorBusError | undefined {
    const { log, from } = this.#options;
    const { end } = log;
    if (end === undefined || round <= log.last(from)) return undefined;
    return endedError("the batch", end.rank, errorOfEnd(end));
  }

  /** Takes up the next round for no call, and as cancelled, so that nobody waits for this rank in it. */
  async refuse(reason: TensorBusError): Promise<void> {
    const round = this.next;
    this.#next = round + 1;
    const signal = AbortSignal.abort(reason);
    await this.#options.execution.run({ round, signal, timeoutMs: 1000 }).catch(() => {});
  }

  async #attempt(round: number, call: RoundCall, end: Deadline): Promise<RoundOutcome | typeof again> {
    const { execution, staged } = this.#options;
    const { deadline, abort } = call;
    if (!(await this.#prepare(round, call))) return again;
    const local = new AbortController();
    const signal = AbortSignal.any([abort.signal, local.signal]);
    const reading = this.#read(round, deadline, local);
    const unfollow = this.#follow(round, reading, local);
    try {
      call.onPosted(round);
      const began = performance.now();
      const { remainingMs: timeoutMs } = deadline;
      const moved = await execution.run({ round, signal, timeoutMs }).catch(asBusError);
      const movedAt = performance.now();
      if (moved instanceof TensorBusError) {
        if (moved.code === "TB_QUARANTINED") throw moved;
        if (await this.#hadFailed(round, moved, call, reading, end)) return again;
        throw await this.#why(round, moved, call, local, end);
      }
      if (staged !== undefined) {
        if (!(await this.#confirmed(round, call, reading, signal))) return again;
        await staged.vote(this.#options.identity(round), { deadline, signal, end }).catch(async (error) => {
          throw isStale(error) ? await this.#asWritten(round, error, end) : error;
        });
      }
      const seconds = { move: (movedAt - began) / 1000, commit: (performance.now() - movedAt) / 1000 };
      return { round, report: moved, seconds };
    } finally {
      unfollow();
    }
  }

  /** What comes before others see this rank in the round. False if another round is to be joined. */
  async #prepare(round: number, call: RoundCall): Promise<boolean> {
    const { staged, turn, rank } = this.#options;
    const { deadline, abort, version } = call;
    // One that was taken back is posted as cancelled: others wait for it.
    if (abort.signal.aborted) return true;
    try {
      // What an earlier round left open is settled first: its outcome may change what targets hold.
      await staged?.resolve(deadline);
      // And one of the other direction, what this one sends.
      await turn.quiet(deadline);
      if (version !== undefined && !(await this.#name(round, version, call))) return false;
    } catch (thrown) {
      const error = asBusError(thrown);
      if (error.code !== "TB_TIMEOUT" || !call.isShown(round)) throw new NoRound(error);
      abort.abort(error);
    }
    await call.ready.catch((error: unknown) => {
      // It is posted all the same, as cancelled: others wait for it.
      abort.abort(asBusError(error));
    });
    if (deadline.remainingMs > 0 || abort.signal.aborted) return true;
    const late = new TensorBusError("TB_TIMEOUT", `round ${round} was not begun before its deadline`, {
      details: { rank },
    });
    if (!call.isShown(round)) throw new NoRound(late);
    // Others may have begun it for what they saw: a signal cannot be taken back, a round can.
    abort.abort(late);
    return true;
  }

  async #name(round: number, version: bigint, { deadline }: RoundCall): Promise<boolean> {
    const { names, log, from, rank } = this.#options;
    const standing = await names.name(round, version, deadline);
    if (standing === version) return true;
    if (standing > version) {
      // Another rank may have seen the round fail, and moved on with a later version.
      await log.sync(deadline);
      if (log.next(from) > round) return false;
      const message = `this call named version ${version}, but round ${round} carries version ${standing}`;
      throw new TensorBusError("TB_STALE_VERSION", message, {
        details: { rank, version, expected: standing },
      });
    }
    this.#next = round + 1;
    await settled(
      `telling others that version ${standing} is outdated`,
      log.appendFailed({ from, round, rank, code: "TB_STALE_VERSION", expected: version }),
      deadline,
    );
    return false;
  }

  /** Asks the log whether the round had failed before, or the batch had ended; if so, this rank leaves it. */
  #read(round: number, deadline: Deadline, local: AbortController): Reading {
    const { log, from } = this.#options;
    const read = log.sync(new Deadline({ timeoutMs: deadline.remainingMs })).then(
      () => {
        reading.isConfirmed = log.next(from) <= round;
        if (!reading.isConfirmed) local.abort(again);
        // Nobody who has left would tell this rank: those who were in a round when they heard of the end have refused that one.
        const ended = this.#ended(round);
        if (ended !== undefined) local.abort(ended);
      },
      () => {},
    );
    const reading: Reading = { isConfirmed: undefined, answered: read };
    return reading;
  }

  /** A round that fails elsewhere once it was confirmed here is over; before that, the log has a moment to answer. */
  #follow(round: number, reading: Reading, local: AbortController): () => void {
    const { log, from, staged } = this.#options;
    let held: ReturnType<typeof setTimeout> | undefined;
    /** A rank that has its part waits for all votes; of the end of one without a channel to it, only the log tells it. */
    const over = (end: BatchEnd) => {
      if (staged !== undefined && round > log.last(from)) local.abort(errorOfEnd(end));
    };
    if (log.end !== undefined) over(log.end);
    const unlisten = log.listen((entry) => {
      if (entry.kind === "ended") over(entry);
      if (entry.kind !== "failed" || entry.from !== from || entry.round < round) return;
      const fail = () => local.abort(errorOfFailed(entry));
      if (reading.isConfirmed === true) fail();
      else if (reading.isConfirmed === undefined) held ??= setTimeout(fail, holdMs);
    });
    return () => {
      clearTimeout(held);
      unlisten();
    };
  }

  /** True if the round had failed before this call joined it, and the call goes on in the next one. */
  async #hadFailed(
    round: number,
    failure: TensorBusError,
    { deadline, abort }: RoundCall,
    reading: Reading,
    end: Deadline,
  ): Promise<boolean> {
    if (abort.signal.aborted || deadline.remainingMs === 0) return false;
    if (failure.details["hadFailed"] === true) return true;
    if (reading.isConfirmed === undefined) {
      const timeoutMs = Math.min(holdMs, end.remainingMs);
      await settled(`what became of round ${round}`, reading.answered, new Deadline({ timeoutMs })).catch(
        () => {},
      );
    }
    return reading.isConfirmed === false;
  }

  /** No rank votes for a round before it knows that this round had not failed earlier. */
  async #confirmed(round: number, call: RoundCall, reading: Reading, signal: AbortSignal): Promise<boolean> {
    const { rank } = this.#options;
    const { remainingMs: timeoutMs } = call.deadline;
    const what = `whether round ${round} had failed before`;
    await settled(what, reading.answered, new Deadline({ timeoutMs, signal })).catch(() => {});
    if (reading.isConfirmed === true && !signal.aborted) return true;
    if (reading.isConfirmed === false && !call.abort.signal.aborted) return false;
    if (signal.aborted && signal.reason instanceof TensorBusError) throw signal.reason;
    throw new TensorBusError("TB_TIMEOUT", `${what} was not known in time`, { details: { rank } });
  }

  /** Why a round failed. If it is only that another rank has given it up, the log knows more: that rank has written there before. */
  async #why(
    round: number,
    failure: TensorBusError,
    call: RoundCall,
    local: AbortController,
    end: Deadline,
  ): Promise<TensorBusError> {
    const error = explain(failure, call, local);
    if (error !== failure || !unexplained.includes(failure.code)) return error;
    // The transport may be quicker to say that a rank with a newer version has gone on.
    const written = await this.#asWritten(round, failure, end);
    return this.#ended(round) ?? written;
  }

  /** What the log says of a round that a newer version has ended, which version that is among it; else the failure as it is. */
  async #asWritten(round: number, failure: TensorBusError, end: Deadline): Promise<TensorBusError> {
    const { log, from } = this.#options;
    await log.sync(new Deadline({ timeoutMs: Math.min(holdMs, end.remainingMs) })).catch(() => {});
    const written = log.lastFailed(from);
    return written?.round === round && written.code === "TB_STALE_VERSION" ? errorOfFailed(written) : failure;
  }

  /** Has all others know that the round failed. The call that failed waits for that as long as it may. */
  async #tell(round: number, error: TensorBusError, end: Deadline): Promise<void> {
    const { log, from, rank } = this.#options;
    if (error.code === "TB_CLOSED" || round > log.last(from)) return;
    const appended = log.appendFailed({ from, round, rank: originOf(error, rank), code: elsewhere(error) });
    await settled(`telling others of round ${round}`, appended, end).catch(() => {});
  }
}

function isStale(error: unknown): error is TensorBusError {
  return error instanceof TensorBusError && error.code === "TB_STALE_VERSION";
}

/** Why a round ended, as its callers are to see it: for what it was ended here, unless the transport knows better. */
function explain(failure: TensorBusError, { abort }: RoundCall, local: AbortController): TensorBusError {
  for (const { aborted, reason } of [abort.signal, local.signal])
    if (aborted && reason instanceof TensorBusError) return reason;
  return failure;
}

/** What was thrown, as an error of the table. */
export function asBusError(error: unknown): TensorBusError {
  if (error instanceof TensorBusError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new TensorBusError("TB_SYSTEM", message, { cause: error });
}
