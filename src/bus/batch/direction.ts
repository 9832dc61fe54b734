/**
 * A batch in one direction on one rank: its rounds, one at a time. A rank that stands on both sides takes part once both
 * of its clients have asked for the round.
 */
import { map, type Observable } from "rxjs";
import { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { Execution } from "../../exec/executor.ts";
import type { RoundProgress, RoundReport } from "../../transport/transport.ts";
import type { AgentEvent, AgentProgress, RoundIdentity } from "../pair/events.ts";
import type { BatchId, CommandResult } from "../queue/commands.ts";
import type { RegionEvents } from "./region-events.ts";
import { knownCode, type RoundEpochs } from "./round-epoch.ts";
import type { StagedCommit } from "./staged-commit.ts";
import { settlingDeadline, type TransferSignal } from "./transfer-signal.ts";

export type Role = "source" | "target";
export type TransferResult = CommandResult<"Transfer">;

export interface DirectionOptions {
  readonly batch: BatchId;
  readonly pairs: readonly string[];
  readonly number: number;
  readonly rank: number;
  readonly from: string;
  readonly to: string;
  /** What this rank is in it. */
  readonly roles: readonly Role[];
  /** The first source rank tidies up behind all others. */
  readonly tidies: boolean;
  readonly execution: Execution;
  readonly signal: TransferSignal;
  readonly epochs: RoundEpochs;
  /** Absent where targets change as bytes arrive. */
  readonly staged?: StagedCommit | undefined;
  /** What the plan promises of a round, where it knows the links: until earlier rounds promise better. */
  readonly predictedSeconds?: number | undefined;
  readonly tell: (event: AgentEvent) => void;
}

interface Poster {
  readonly deadline: Deadline;
  readonly events: RegionEvents | undefined;
  /** The GPUs of this role's memory have come to the round. */
  readonly ready: Promise<void>;
  readonly resolve: (result: TransferResult) => void;
  readonly reject: (error: TensorBusError) => void;
}

interface Round {
  readonly number: number;
  readonly abort: AbortController;
  readonly posters: Map<Role, Poster>;
  started: boolean;
  /** Its memory is ready, and it is posted. */
  isPosted: boolean;
}

const nothing = (): void => {};

export class Direction {
  readonly #options: DirectionOptions;
  #next = 1;
  #epoch = 0;
  #round: Round | undefined;
  #idle: Promise<void> = Promise.resolve();
  /** Of the rounds so far, for a prediction. */
  #secondsPerByte: number | undefined;

  constructor(options: DirectionOptions) {
    this.#options = options;
    options.signal.follow(1);
  }

  get from(): string {
    return this.#options.from;
  }
  /** How far its rounds are. */
  get progress$(): Observable<AgentProgress> {
    const { batch, from, execution } = this.#options;
    return execution.progress$.pipe(map((progress) => ({ batch, from, ...progress })));
  }
  /** How far the round under way is; `undefined` where none has started. */
  get progress(): RoundProgress | undefined {
    if (this.#round?.started !== true) return undefined;
    try {
      const { round, bytesDone, bytesTotal } = this.execution.progress();
      // What is counted is that of the round before, until this one is posted.
      const isPosted = round === this.#round.number;
      return { round: this.#round.number, bytesDone: isPosted ? bytesDone : 0n, bytesTotal };
    } catch {
      // The session is ending, and the round with it.
      return undefined;
    }
  }
  get execution(): Execution {
    return this.#options.execution;
  }
  /** True from the first post of a round until its end is known. */
  get busy(): boolean {
    return this.#round !== undefined;
  }
  get ready(): boolean {
    return this.#options.signal.ready;
  }
  get round(): number {
    return this.#round?.number ?? this.#next;
  }

  /**
   * Takes part in the next round, as source or target. Settles when the memory of this rank is quiet: with what was moved, or
   * with why it failed and where (`details.rank`); `details.torn` says that targets of this rank may be half written. `events`
   * are those of this role's memory: where they do not come to the round in time, it fails on all ranks.
   */
  post(role: Role, deadline: Deadline, events?: RegionEvents): Promise<TransferResult> {
    const round = this.#round ?? this.#begin();
    if (round.posters.has(role)) {
      throw new TensorBusError("TB_BUSY", `round ${round.number} of ${this.#name()} is under way`, {
        details: { batch: this.#options.batch, round: round.number, rank: this.#options.rank },
      });
    }
    return new Promise((resolve, reject) => {
      const ready = this.#ready(round, role, deadline, events);
      round.posters.set(role, { deadline, events, ready, resolve, reject });
      this.#cancelWith(round, deadline);
      if (round.posters.size === this.#options.roles.length) this.#start(round);
      else this.#awaitOther(round, deadline);
    });
  }

  /** Cancels the round under way, here and elsewhere; resolves when its memory is quiet. */
  cancel(reason: TensorBusError): Promise<void> {
    const round = this.#round;
    if (round !== undefined) {
      round.abort.abort(reason);
      if (!round.started) this.#start(round);
    }
    return this.#idle;
  }

  /** Resolves when no round is under way; where that takes too long, the round is cancelled. */
  async idle(deadline: Deadline): Promise<void> {
    if (this.#round === undefined) return;
    const late = setTimeout(
      () => void this.cancel(new TensorBusError("TB_CANCELLED", "the agent was drained")),
      deadline.remainingMs,
    );
    await this.#idle;
    clearTimeout(late);
  }

  /**
   * This rank will take part in no round any more: the next one is cancelled as soon as the one under way has ended, so that
   * nobody waits for it.
   */
  abandon(reason: TensorBusError): void {
    if (this.#round !== undefined && !this.#round.isPosted) void this.cancel(reason);
    this.#idle = this.#idle.then(async () => {
      const round = this.#next++;
      const signal = AbortSignal.abort(reason);
      await this.#options.execution.run({ round, signal, timeoutMs: 1000 }).catch(nothing);
    });
  }

  /** Ends it: nothing prepared is left. */
  async close(reason: TensorBusError): Promise<void> {
    this.#options.signal.close();
    await this.cancel(reason);
    await this.#options.execution[Symbol.asyncDispose]();
    if (this.doubt === undefined) this.#options.staged?.close();
  }

  /** What has to be settled by the next store before the memory of this direction can go. */
  get doubt(): StagedCommit | undefined {
    const { staged } = this.#options;
    return staged?.inDoubt === undefined ? undefined : staged;
  }

  #begin(): Round {
    const round: Round = {
      number: this.#next,
      abort: new AbortController(),
      posters: new Map(),
      started: false,
      isPosted: false,
    };
    this.#round = round;
    return round;
  }

  /** The client of the other side has not asked yet: the round is cancelled where it does not in time. */
  #awaitOther(round: Round, deadline: Deadline): void {
    const timer = setTimeout(() => {
      if (round.started) return;
      const message = `round ${round.number} of ${this.#name()}: the other side of rank ${this.#options.rank} did not come`;
      round.abort.abort(new TensorBusError("TB_TIMEOUT", message, { details: { rank: this.#options.rank } }));
      this.#start(round);
    }, deadline.remainingMs);
    round.abort.signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
    this.#idle = this.#idle.finally(() => clearTimeout(timer));
  }

  /** The caller may take it back: the round ends on all ranks, as any other that is cancelled. */
  #cancelWith(round: Round, { signal }: Deadline): void {
    const onAbort = () => {
      if (this.#round !== round) return;
      const message = `round ${round.number} of ${this.#name()} was cancelled on rank ${this.#options.rank}`;
      const details = { rank: this.#options.rank };
      void this.cancel(new TensorBusError("TB_CANCELLED", message, { details, cause: signal?.reason }));
    };
    signal?.addEventListener("abort", onAbort, { once: true });
  }

  #announce(number: number, deadline: Deadline): void {
    const { signal, tell } = this.#options;
    signal.announce(number, deadline).catch((error: unknown) => {
      if (error instanceof TensorBusError && error.code !== "TB_CLOSED") tell({ kind: "fault", error });
    });
  }

  /** Waits for the GPUs of a role's memory; a source is announced then. */
  #ready(round: Round, role: Role, deadline: Deadline, events: RegionEvents | undefined): Promise<void> {
    // The signal and the round go on side by side: a store that hangs fails the first one alone.
    const announce = () => {
      if (role === "source") this.#announce(round.number, deadline);
    };
    if (events === undefined) {
      announce();
      return Promise.resolve();
    }
    const { remainingMs: timeoutMs } = deadline;
    const ready = events.ready(new Deadline({ timeoutMs, signal: round.abort.signal })).then(announce);
    // What becomes of it is asked when the round starts.
    ready.catch(nothing);
    return ready;
  }

  #start(round: Round): void {
    round.started = true;
    this.#idle = this.#run(round);
  }

  async #run(round: Round): Promise<void> {
    const { tell, epochs } = this.#options;
    const identity = this.#identity(round.number);
    const predictedSeconds = this.#predict();
    tell({ kind: "roundStarted", predictedSeconds, ...identity });
    // Whether others failed since the last round is asked while this one runs.
    const known = epochs.read(settlingDeadline()).catch(() => undefined);
    try {
      const { report, seconds } = await this.#move(round);
      const before = await known;
      const failedBefore =
        before !== undefined && before.epoch > this.#epoch
          ? { round: before.next - 1, rank: before.rank, code: before.code }
          : undefined;
      this.#epoch = Math.max(this.#epoch, before?.epoch ?? 0);
      this.#next = round.number + 1;
      this.#learn(report);
      this.#tidy(round.number);
      tell({
        kind: "roundCompleted",
        report,
        predictedSeconds,
        seconds,
        peers: this.execution.stats.peers,
        ...identity,
      });
      const { bytesSent, bytesReceived, bytesCopied } = report;
      this.#settle(round, ({ resolve }) =>
        resolve({
          round: round.number,
          epoch: this.#epoch,
          bytesSent,
          bytesReceived,
          bytesCopied,
          seconds: report.seconds,
          ...(predictedSeconds === undefined ? {} : { predictedSeconds }),
          ...(failedBefore === undefined ? {} : { failedBefore }),
        }),
      );
    } catch (thrown) {
      const error = await this.#fail(round, asBusError(thrown));
      this.#settle(round, ({ reject }, role) => reject(this.#explain(round, error, role)));
    }
  }

  async #move(round: Round): Promise<{
    report: RoundReport;
    seconds: { readonly move: number; readonly commit: number };
  }> {
    const { execution, staged } = this.#options;
    const deadline = this.#deadlineOf(round);
    // What an earlier round left open is settled first: its outcome may change what targets hold.
    await staged?.resolve(deadline);
    try {
      await Promise.all([...round.posters.values()].map(({ ready }) => ready));
    } catch (error) {
      // It is posted all the same, as cancelled: others wait for it.
      round.abort.abort(asBusError(error));
    }
    round.isPosted = true;
    const began = performance.now();
    let failure: TensorBusError | undefined;
    const stopWatching = staged?.watch(this.#identity(round.number), (error) => round.abort.abort(error));
    const report = await execution.run({ ...deadline.rest, round: round.number }).catch((error: unknown) => {
      failure = asBusError(error);
      return undefined;
    });
    stopWatching?.();
    const moved = performance.now();
    if (staged !== undefined) await staged.decide(this.#identity(round.number), failure, deadline);
    if (failure?.code !== "TB_QUARANTINED") {
      for (const { events } of round.posters.values()) events?.recordFree();
    }
    if (report === undefined) throw failure;
    return { report, seconds: { move: (moved - began) / 1000, commit: (performance.now() - moved) / 1000 } };
  }

  #deadlineOf(round: Round): Deadline {
    const timeoutMs = Math.min(...[...round.posters.values()].map(({ deadline }) => deadline.remainingMs));
    return new Deadline({ timeoutMs, signal: round.abort.signal });
  }

  /** Begins a new epoch, or joins the one that others began; the error as this rank's clients are to see it. */
  async #fail(round: Round, error: TensorBusError): Promise<TensorBusError> {
    const { epochs, signal, rank, tell, roles, staged } = this.#options;
    const { reason } = round.abort.signal;
    // That memory is still in use is for its owner to know, whatever the round was ended for.
    const told = reason instanceof TensorBusError && error.code !== "TB_QUARANTINED" ? reason : error;
    this.#next = round.number + 1;
    this.#epoch += 1;
    try {
      const epoch = await epochs.advance(round.number, error, rank, settlingDeadline());
      this.#next = Math.max(this.#next, epoch.next);
      this.#epoch = epoch.epoch;
      await signal.withdraw(round.number, settlingDeadline());
    } catch (fault) {
      // A store that is lost ends the pairs; who is out of step then meets nobody any more.
      if (fault instanceof TensorBusError && fault.code !== "TB_CLOSED")
        tell({ kind: "fault", error: fault });
    }
    signal.follow(this.#next);
    const torn = staged === undefined && roles.includes("target");
    tell({ kind: "roundFailed", error: told, torn, ...this.#identity(round.number) });
    return told;
  }

  #explain(round: Round, error: TensorBusError, role: Role): TensorBusError {
    const { batch, staged, rank } = this.#options;
    const torn = staged === undefined && role === "target";
    const origin = error.details["rank"] ?? rank;
    const details = { ...error.details, batch, round: round.number, epoch: this.#epoch, rank: origin, torn };
    const message = `round ${round.number} of ${this.#name()}: ${error.message}`;
    return new TensorBusError(error.code, message, { details, cause: error });
  }

  #settle(round: Round, each: (poster: Poster, role: Role) => void): void {
    this.#round = undefined;
    for (const [role, poster] of round.posters) each(poster, role);
  }

  /** Removes what nobody reads any more: all are past the round before a completed one. */
  #tidy(round: number): void {
    const { signal, staged, tidies } = this.#options;
    signal.follow(round + 1);
    if (!tidies || round === 1) return;
    signal.forget(round - 1, settlingDeadline()).catch(nothing);
    staged?.forget(round - 1, settlingDeadline()).catch(nothing);
  }

  #bytes(): number {
    const { bytesSent, bytesReceived, bytesCopied } = this.execution.stats;
    return Math.max(Number(bytesSent), Number(bytesReceived), Number(bytesCopied));
  }

  #predict(): number | undefined {
    if (this.#secondsPerByte === undefined) return this.#options.predictedSeconds;
    return this.#secondsPerByte * this.#bytes();
  }

  #learn({ seconds }: RoundReport): void {
    const bytes = this.#bytes();
    if (bytes === 0) return;
    const last = this.#secondsPerByte ?? seconds / bytes;
    this.#secondsPerByte = 0.7 * last + (0.3 * seconds) / bytes;
  }

  #identity(round: number): RoundIdentity {
    const { batch, pairs, number, from, to } = this.#options;
    return { batch, pairs, number, from, to, round, epoch: this.#epoch };
  }

  #name(): string {
    return `batch ${String(this.#options.batch)}, ${this.#options.from} to ${this.#options.to}`;
  }
}

/** What was thrown, as an error of the table. */
export function asBusError(error: unknown): TensorBusError {
  if (error instanceof TensorBusError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new TensorBusError("TB_SYSTEM", message, { cause: error });
}

/** What another rank's record says, as an error of this one. */
export function errorOfRecord(code: string, rank: number, message: string): TensorBusError {
  return new TensorBusError(knownCode(code), message, { details: { rank } });
}
