/**
 * A batch in one direction on one rank: its rounds, one at a time. A rank that stands on both sides takes part once both
 * of its clients have asked for the round.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { map, type Observable } from "rxjs";
import { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { Execution } from "../../exec/executor.ts";
import type { RoundProgress } from "../../transport/transport.ts";
import type { AgentProgress, RoundIdentity } from "../pair/events.ts";
import type { Call, Poster, PostOptions, TransferResult } from "./call.ts";
import type { DirectionOptions, Role } from "./direction-options.ts";
import type { RegionEvents } from "./region-events.ts";
import { asBusError, graceMs, NoRound, RoundJoin, type RoundOutcome } from "./round-join.ts";
import { type FailedRound, originOf, settled } from "./round-log.ts";
import { RoundRate } from "./round-rate.ts";
import type { StagedCommit } from "./staged-commit.ts";

/** How long what is tidied waits for a store that says nothing, and the pause before a doubt is asked about again. */
const tidyMs = 2000;
const doubtMs = 500;
/** Milliseconds after which a call that has not ended looks whether others wait in the opposite direction. */
const lookMs = 100;
const nothing = (): void => {};

export class Direction {
  readonly #options: DirectionOptions;
  readonly #join: RoundJoin;
  #call: Call | undefined;
  #idle: Promise<void> = Promise.resolve();
  readonly #rate: RoundRate;
  /** What is under way to the store beside the rounds. */
  readonly #writing = new Set<Promise<unknown>>();
  /** Records of rounds up to this one are removed. */
  #tidied = 0;
  #completed = 0;
  /** The last failure of which a caller here knows. */
  #told = 0;
  #closed = false;
  /** In doubt, and asked about. */
  #asked: RoundIdentity | undefined;
  /** Rounds that are over, whose calls are answered once the store says what they carried. */
  readonly #answering = new Map<Role, number>();
  readonly #unlisten: () => void;

  constructor(options: DirectionOptions) {
    const { rank, from, execution, log, names, staged, signal, opposition, turn } = options;
    this.#options = options;
    this.#rate = new RoundRate(execution, options.predictedSeconds);
    const identity = (round: number) => this.#identity(round);
    this.#join = new RoundJoin({ rank, from, execution, log, names, staged, turn, identity });
    signal.follow(this.#join.next);
    opposition.add(from, () => this.#join.next);
    this.#unlisten = log.listen((entry) => {
      if (entry.kind === "failed" && entry.from === from) this.#moved();
    });
  }

  get from(): string {
    return this.#options.from;
  }
  /** How far its rounds are. */
  get progress$(): Observable<AgentProgress> {
    const { batch, from, execution } = this.#options;
    return execution.progress$.pipe(map((progress) => ({ batch, from, ...progress })));
  }
  /** How far the round under way is; `undefined` if none has started. */
  get progress(): RoundProgress | undefined {
    if (this.#call?.started !== true) return undefined;
    try {
      const { round, bytesDone, bytesTotal } = this.execution.progress();
      // What is counted is that of the round before, until this one is posted.
      const isPosted = round === this.#call.round;
      return { round: this.#call.round, bytesDone: isPosted ? bytesDone : 0n, bytesTotal };
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
    return this.#call !== undefined;
  }
  get ready(): boolean {
    return this.#options.signal.ready;
  }
  get round(): number {
    return this.#call?.round ?? this.#join.next;
  }
  /** The round under way, if others have seen this rank in it. */
  get posted(): number | undefined {
    return this.#call?.posted === this.#call?.round ? this.#call?.round : undefined;
  }
  /** The last round of which this rank has its part; 0 if there was none. */
  get completed(): number {
    return this.#completed;
  }
  /** Resolves when the round that has started is over, if there is one. */
  get ended(): Promise<void> {
    return this.#idle;
  }

  /** The round that is ready and the version that it carries, if a rank has named one. */
  async pending(deadline: Deadline): Promise<{ readonly round: number; readonly version?: bigint }> {
    const { signal, names } = this.#options;
    const { round } = signal;
    // Once a rank has begun the round, its version stands in the store; before that, the source that came last has said one.
    const version = (await names.look(round, deadline)) ?? (await signal.version(deadline));
    return version === undefined ? { round } : { round, version };
  }

  /**
   * Takes part in the next round that has not failed, as source or target. Settles when the memory of this rank is quiet: with
   * what was moved, or with why it failed and where (`details.rank`); `details.torn` says that targets of this rank may be
   * half written.
   */
  post(role: Role, options: PostOptions): Promise<TransferResult> {
    const answering = this.#answering.get(role);
    if (answering !== undefined || this.#call?.posters.has(role) === true) {
      const { batch, from, rank } = this.#options;
      const message = `round ${answering ?? this.round} of ${this.#name()} is under way on rank ${rank}`;
      throw new TensorBusError("TB_BUSY", message, { details: { batch, from, rank } });
    }
    const call = this.#call ?? this.#begin();
    const stale = this.#staler(call, role, options);
    if (stale !== undefined) throw stale;
    return new Promise((resolve, reject) => {
      const { deadline, events } = options;
      const ready = this.#ready(call, deadline, events);
      call.posters.set(role, { ...options, ready, resolve, reject });
      this.#cancelWith(call, deadline);
      if (call.posters.size === this.#options.roles.length) {
        this.#start(call);
        return;
      }
      // A lone source shows in the signal already: its rank's other side may wait for that. What is in doubt may end it.
      if (this.doubt === undefined) this.#announce(call);
      this.#awaitOther(call, deadline);
    });
  }

  /** What was moved stands, whether the store says before `end` which version its round carried or not; the call goes on until then. */
  async withVersion(role: Role, result: TransferResult, end: Deadline): Promise<TransferResult> {
    if (result.version !== undefined) return result;
    this.#answering.set(role, result.round);
    const said = await this.#options.names.carried(result.round, end);
    this.#answering.delete(role);
    return { ...result, ...said };
  }

  /** Cancels the round under way, here and elsewhere; resolves when its memory is quiet. */
  cancel(reason: TensorBusError): Promise<void> {
    const call = this.#call;
    if (call !== undefined) {
      call.abort.abort(reason);
      if (!call.started) this.#start(call);
    }
    return this.#idle;
  }

  /** Resolves when no round is under way; if that takes too long, the round is cancelled. */
  async idle(deadline: Deadline): Promise<void> {
    if (this.#call === undefined) return;
    const { rank } = this.#options;
    const drained = new TensorBusError("TB_CANCELLED", "the agent was drained", { details: { rank } });
    const late = setTimeout(() => void this.cancel(drained), deadline.remainingMs);
    await this.#idle;
    clearTimeout(late);
  }

  /**
   * This rank will take part in no round any more: the next one is cancelled as soon as the one under way has ended and `said` tells
   * why, so that nobody waits for it.
   */
  abandon(reason: TensorBusError, said: Promise<void>): void {
    if (this.#call !== undefined && this.#call.posted < this.#call.round) void this.cancel(reason);
    const told = settled("telling others of the end", said, new Deadline({ timeoutMs: graceMs })).catch(
      nothing,
    );
    this.#idle = Promise.all([this.#idle, told]).then(() => this.#join.refuse(reason));
  }

  /**
   * Ends it: nothing prepared is left. Peers hear of that by their channels, which say nothing of the rounds that go on: those are
   * told before, by what `said` waits for.
   */
  async close(reason: TensorBusError, said: Promise<void> = Promise.resolve()): Promise<void> {
    this.#closed = true;
    this.#unlisten();
    this.#options.signal.close();
    await this.cancel(reason);
    await said;
    await this.#options.execution[Symbol.asyncDispose]();
    this.#options.staged?.close();
  }

  get staged(): StagedCommit | undefined {
    return this.#options.staged;
  }

  /** Resolves when nothing of what this rank says of its rounds is under way to the store any more. */
  get written(): Promise<unknown> {
    return Promise.allSettled(this.#writing);
  }

  /** What has to be settled before the memory of this direction can go. */
  get doubt(): StagedCommit | undefined {
    const { staged } = this.#options;
    return staged?.inDoubt === undefined ? undefined : staged;
  }

  /** If two roles name different versions, the one with the older ends alone; says why, if it is this one. */
  #staler(call: Call, role: Role, { version }: PostOptions): TensorBusError | undefined {
    const [other, poster] = [...call.posters].find(([each]) => each !== role) ?? [];
    if (other === undefined || version === undefined || poster?.version === undefined) return undefined;
    if (version === poster.version) return undefined;
    const [older, newer] = version < poster.version ? [version, poster.version] : [poster.version, version];
    const { rank } = this.#options;
    const message = `this call named version ${older}, but rank ${rank}'s call for the other side named ${newer}`;
    const error = new TensorBusError("TB_STALE_VERSION", message, {
      details: { rank, version: older, expected: newer },
    });
    if (version === older) return error;
    call.posters.delete(other);
    poster.reject(error);
    return undefined;
  }

  #begin(): Call {
    const call: Call = {
      abort: new AbortController(),
      posters: new Map(),
      round: this.#join.next,
      started: false,
      posted: 0,
      shown: 0,
      look: undefined,
    };
    this.#call = call;
    this.#options.turn.begin(this.from);
    this.#lookLater(call);
    return call;
  }

  /** Ranks that wait for each other in opposite directions would do so until their deadlines. */
  #lookLater(call: Call): void {
    const { opposition, from } = this.#options;
    const { round } = call;
    clearTimeout(call.look);
    call.look = setTimeout(() => {
      const stands = () => this.#call === call && call.round === round;
      if (call.started && call.posted !== round) {
        // It may end in no round yet. Its note would stand, and end another round of the other direction later.
        if (stands()) this.#lookLater(call);
        return;
      }
      call.shown = round;
      this.#write(opposition.find(from, round, new Deadline({ timeoutMs: tidyMs }))).then(
        (error) => {
          if (error !== undefined && stands()) void this.cancel(error);
        },
        () => {
          // A store that was slow or away once is asked again: nobody else would find out.
          if (stands()) this.#lookLater(call);
        },
      );
    }, lookMs);
  }

  /** The call takes part in that round. */
  #goTo(call: Call, round: number): void {
    if (call.round !== round) {
      call.round = round;
      this.#lookLater(call);
    }
  }

  /** The client of the other side has not asked yet: the round is cancelled if it does not ask in time. */
  #awaitOther(call: Call, deadline: Deadline): void {
    const { rank } = this.#options;
    const timer = setTimeout(() => {
      if (call.started) return;
      const message = `round ${call.round} of ${this.#name()}: the other side of rank ${rank} did not come`;
      call.abort.abort(new TensorBusError("TB_TIMEOUT", message, { details: { rank } }));
      this.#start(call);
    }, deadline.remainingMs);
    call.abort.signal.addEventListener("abort", () => clearTimeout(timer), { once: true });
  }

  /** The caller may take it back: the round ends on all ranks, as any other that is cancelled. */
  #cancelWith(call: Call, { signal }: Deadline): void {
    const onAbort = () => {
      if (this.#call !== call) return;
      const message = `round ${call.round} of ${this.#name()} was cancelled on rank ${this.#options.rank}`;
      const details = { rank: this.#options.rank };
      void this.cancel(new TensorBusError("TB_CANCELLED", message, { details, cause: signal?.reason }));
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted) onAbort();
  }

  /** A source shows in the signal of the round that it is in, once its GPUs have come to it. */
  #announce(call: Call): void {
    const poster = call.posters.get("source");
    if (poster === undefined) return;
    const { signal, tell } = this.#options;
    const announced = poster.ready.then(() => {
      if (this.#call !== call) return undefined;
      call.shown = call.round;
      return this.#write(signal.announce(call.round, poster.version, poster.deadline));
    }, nothing);
    // The signal and the round go on side by side: a store that hangs fails the first one alone.
    announced.catch((error: unknown) => {
      if (error instanceof TensorBusError && error.code !== "TB_CLOSED") tell({ kind: "fault", error });
    });
  }

  /** Another round has failed, or one was completed: signal and waiting call go on to the next one. */
  #moved(): void {
    const { next } = this.#join;
    this.#options.signal.follow(next);
    const call = this.#call;
    if (call === undefined || call.started || next <= call.round) return;
    this.#goTo(call, next);
    this.#announce(call);
  }

  /** Waits for the GPUs of a role's memory. */
  #ready(call: Call, { remainingMs: timeoutMs }: Deadline, events: RegionEvents | undefined): Promise<void> {
    if (events === undefined) return Promise.resolve();
    const ready = events.ready(new Deadline({ timeoutMs, signal: call.abort.signal }));
    // What becomes of it is asked when the round starts.
    ready.catch(nothing);
    return ready;
  }

  #start(call: Call): void {
    call.started = true;
    this.#idle = this.#run(call);
  }

  async #run(call: Call): Promise<void> {
    const posters = [...call.posters.values()];
    const timeoutMs = Math.min(...posters.map(({ deadline }) => deadline.remainingMs));
    const versions = posters.flatMap(({ version }) => (version === undefined ? [] : [version]));
    const predictedSeconds = this.#rate.predict();
    let isTold = 0;
    try {
      const outcome = await this.#join.join({
        deadline: new Deadline({ timeoutMs }),
        abort: call.abort,
        ready: Promise.all(posters.map(({ ready }) => ready)),
        version: versions.length === 0 ? undefined : versions.reduce((a, b) => (a > b ? a : b)),
        onJoined: (round) => this.#goTo(call, round),
        isShown: (round) => call.shown === round,
        onPosted: (round) => {
          call.posted = round;
          this.#announce(call);
          if (isTold++ === 0)
            this.#options.tell({ kind: "roundStarted", predictedSeconds, ...this.#identity(round) });
        },
        onQuiet: () => {
          for (const { events } of posters) events?.recordFree();
        },
      });
      this.#complete(call, outcome, predictedSeconds);
    } catch (thrown) {
      this.#fail(call, thrown);
    }
    this.#moved();
  }

  #complete(
    call: Call,
    { round, report, seconds }: RoundOutcome,
    predictedSeconds: number | undefined,
  ): void {
    const { tell, log, from } = this.#options;
    const { peers } = this.execution.stats;
    const failedBefore = this.#failedBefore(log.lastFailed(from));
    this.#rate.learn(report);
    this.#completed = round;
    this.#tidy(round);
    tell({ kind: "roundCompleted", report, predictedSeconds, seconds, peers, ...this.#identity(round) });
    const { bytesSent, bytesReceived, bytesCopied } = report;
    this.#settle(call, ({ resolve, version }) =>
      resolve({
        round,
        epoch: log.failures(from),
        bytesSent,
        bytesReceived,
        bytesCopied,
        seconds: report.seconds,
        ...(predictedSeconds === undefined ? {} : { predictedSeconds }),
        ...(failedBefore === undefined ? {} : { failedBefore }),
        ...(version === undefined ? {} : { version }),
      }),
    );
  }

  /** A round that has failed since this rank's callers last heard of one. */
  #failedBefore(last: FailedRound | undefined): TransferResult["failedBefore"] {
    if (last === undefined || last.round <= this.#told) return undefined;
    this.#told = last.round;
    return { round: last.round, rank: last.rank, code: last.code };
  }

  #fail(call: Call, thrown: unknown): void {
    const { tell, roles, staged } = this.#options;
    const isIn = !(thrown instanceof NoRound);
    const error = thrown instanceof NoRound ? thrown.error : asBusError(thrown);
    if (isIn) {
      this.#told = Math.max(this.#told, call.round);
      const torn = staged === undefined && roles.includes("target");
      tell({ kind: "roundFailed", error, torn, ...this.#identity(call.round) });
    }
    if (error.code === "TB_IN_DOUBT") void this.#settleDoubt();
    this.#settle(call, ({ reject }, role) => reject(this.#explain(call, error, role, isIn)));
  }

  /** Asks for the decision until the store gives it. What a later round votes for meanwhile is not in doubt. */
  async #settleDoubt(): Promise<void> {
    const { staged } = this.#options;
    const round = staged?.inDoubt;
    if (staged === undefined || round === undefined || round === this.#asked) return;
    this.#asked = round;
    const stands = () => staged.inDoubt === round && !this.#closed;
    while (stands()) {
      await sleep(doubtMs);
      if (stands()) await staged.resolve(new Deadline({ timeoutMs: tidyMs })).catch(nothing);
    }
  }

  #explain({ round, posted }: Call, error: TensorBusError, role: Role, isIn: boolean): TensorBusError {
    const { batch, staged, rank, log, from } = this.#options;
    // A call that was in no round in the end may have been in one that had failed before.
    const torn = posted > 0 && staged === undefined && role === "target";
    const origin = originOf(error, rank);
    const common = { ...error.details, batch, epoch: log.failures(from), rank: origin, torn };
    // If a call was in no round, the round that it would have joined says nothing of it.
    const details = isIn ? { ...common, round } : common;
    const message = `${isIn ? `round ${round}` : "no round"} of ${this.#name()}: ${error.message}`;
    return new TensorBusError(error.code, message, { details, cause: error });
  }

  #settle(call: Call, each: (poster: Poster, role: Role) => void): void {
    this.#call = undefined;
    this.#options.turn.end(this.from);
    // Timers of a role that waited for the other are of no use any more.
    call.abort.abort(nothing);
    clearTimeout(call.look);
    for (const [role, poster] of call.posters) each(poster, role);
  }

  /** Removes what nobody reads any more: no rank is as many rounds behind as there are ranks. */
  #tidy(completed: number): void {
    const { signal, staged, names, tidies, lag, markTidied } = this.#options;
    const upTo = completed - lag;
    const deadline = () => new Deadline({ timeoutMs: tidyMs });
    const forget = (removal: Promise<unknown> | undefined) => {
      if (removal !== undefined) this.#write(removal).catch(nothing);
    };
    forget(names.forget(upTo, deadline()));
    forget(signal.forgetLate(upTo, deadline));
    if (!tidies) return;
    for (; this.#tidied < upTo; this.#tidied++) {
      forget(signal.forget(this.#tidied + 1, deadline()));
      if (names.isUsed) forget(names.remove(this.#tidied + 1, deadline()));
      forget(staged?.forget(this.#tidied + 1, deadline()));
      forget(markTidied(this.#tidied + 1, deadline()));
    }
  }

  #write<T>(writing: Promise<T>): Promise<T> {
    this.#writing.add(writing);
    const done = () => this.#writing.delete(writing);
    writing.then(done, done);
    return writing;
  }

  #identity(round: number): RoundIdentity {
    const { batch, pairs, number, from, to, log } = this.#options;
    return { batch, pairs, number, from, to, round, epoch: log.failures(from) };
  }

  #name(): string {
    return `batch ${String(this.#options.batch)}, ${this.#options.from} to ${this.#options.to}`;
  }
}
