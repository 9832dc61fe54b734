/** Commands of a client that are under way, and how each of them ends: by its answer, its deadline, an abort, or the agent's end. */
import { cancelledError, type Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { EventPort } from "../process/event-port.ts";
import { beatMs, unresponsiveMs } from "../process/liveness.ts";
import type { CommandType } from "../queue/command-header.ts";
import { type CommandResult, resultSchemas } from "../queue/commands.ts";
import type { Outcome } from "../queue/state.ts";

interface PendingCallsOptions {
  /** The rank of the agent. */
  readonly rank: number;
  readonly port: EventPort;
  /** The result of one command, and all results from a command on, as far as they stand in the state. */
  readonly first: (id: bigint) => Outcome | undefined;
  readonly all: (from: bigint) => readonly [bigint, Outcome][];
  /** Milliseconds since the agent's last heartbeat. */
  readonly silenceMs: () => number;
  /** Throws if no answer can come: queue or state is damaged. */
  readonly examine: () => void;
  /** Throws if the agent may not be able to answer: the file system is full. */
  readonly examineRoom: () => void;
}

interface CallOptions {
  /** Milliseconds after the deadline, or after an abort, in which the agent's own answer is still waited for. */
  readonly graceMs?: number;
  /** An abort settles the call only with the agent's answer: until then the agent uses the caller's memory. */
  readonly settlesQuiet?: boolean;
  // biome-ignore lint/suspicious/noExplicitAny: the type of the result is that of the command.
  readonly onLate?: (result: any) => void;
  readonly keep?: unknown;
}

/** An agent that lives answers right at the deadline; one that does not beat is told apart after this long. */
const defaultGraceMs = unresponsiveMs + 5 * beatMs;

/** The result of a command of that type. `TB_COMMAND` if the value is not such a result. */
function checkResult<T extends CommandType>(type: T, value: unknown): CommandResult<T> {
  const parsed = resultSchemas[type].safeParse(value);
  if (parsed.success) return parsed.data as CommandResult<T>;
  const issue = parsed.error.issues[0];
  const path = issue?.path.join(".") || "it";
  throw new TensorBusError("TB_COMMAND", `the answer to a ${type} is malformed: ${path}: ${issue?.message}`, {
    details: { type, path },
  });
}

export class PendingCall {
  readonly type: CommandType;
  readonly id: bigint;
  readonly name: string;
  readonly deadline: Deadline;
  readonly options: CallOptions;
  readonly outcome: Promise<unknown>;
  /** It stands in the queue, as far as is known. */
  isQueued = false;
  isSettled = false;
  /** When the agent's answer is no longer waited for: a reading of `performance.now()`, known once the call is overdue. */
  graceEnd: number | undefined;
  /** Set by an abort that waits for the agent's answer. */
  aborted: TensorBusError | undefined;
  timer: NodeJS.Timeout | undefined;
  /** What must not be collected before the call is settled. */
  keep: unknown;
  #resolve!: (value: unknown) => void;
  #reject!: (error: unknown) => void;

  constructor(type: CommandType, id: bigint, name: string, deadline: Deadline, options: CallOptions) {
    this.type = type;
    this.id = id;
    this.name = name;
    this.deadline = deadline;
    const { keep, ...rest } = options;
    this.options = rest;
    this.keep = keep;
    this.outcome = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.outcome.catch(() => {});
  }

  get graceMs(): number {
    return this.options.graceMs ?? defaultGraceMs;
  }

  settle(outcome: Outcome): void {
    if (this.isSettled) return;
    this.isSettled = true;
    // An answer that never comes must not keep the client that nobody else knows any more.
    this.keep = undefined;
    clearTimeout(this.timer);
    if (outcome.ok) this.#resolve(outcome.value);
    else this.#reject(outcome.error);
  }
}

export class PendingCalls {
  readonly #options: PendingCallsOptions;
  /** In the order of their ids. Those that are settled without an answer stay until it comes. */
  readonly #calls = new Map<bigint, PendingCall>();
  #unsettled = 0;
  #letGo: (() => void) | undefined;
  #acknowledged: bigint[] = [];

  constructor(options: PendingCallsOptions) {
    this.#options = options;
  }

  add(type: CommandType, id: bigint, name: string, deadline: Deadline, options: CallOptions): PendingCall {
    const call = new PendingCall(type, id, name, deadline, options);
    this.#calls.set(id, call);
    if (this.#unsettled++ === 0) this.#letGo = this.#options.port.hold();
    call.timer = setTimeout(() => this.#overdue(call), deadline.remainingMs);
    return call;
  }

  /** Takes the answers that have come. */
  collect(): void {
    try {
      const answers = this.#answers();
      // Woken for nothing: the agent may have found damage.
      if (answers.length === 0 && this.#calls.size > 0) this.#options.examine();
      for (const [id, outcome] of answers) this.#answer(id, outcome);
    } catch (error) {
      // The state cannot be read: no answer will ever be.
      this.failAll(error as TensorBusError);
    }
  }

  /** Forgets a command that does not stand in the queue. */
  drop(call: PendingCall, error: unknown): void {
    this.#calls.delete(call.id);
    this.#settle(call, { ok: false, error: error as TensorBusError });
  }

  /** The caller gave up. */
  abort(call: PendingCall, signal: AbortSignal): void {
    const error = cancelledError(call.name, signal);
    if (!call.options.settlesQuiet) {
      this.#settle(call, { ok: false, error });
      return;
    }
    call.aborted = error;
    clearTimeout(call.timer);
    this.#overdue(call);
  }

  /** Ends all with an error; nothing is waited for any more. */
  failAll(error: TensorBusError): void {
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const call of calls) this.#settle(call, { ok: false, error });
  }

  /** What stands under that number has been read, and was no command's answer. */
  acknowledge(id: bigint): void {
    this.#acknowledged.push(id);
  }

  /** Ids of commands whose results were read: the next command takes them to the agent. */
  takeAcknowledged(max: number): bigint[] {
    return this.#acknowledged.splice(0, max);
  }

  #answers(): readonly (readonly [bigint, Outcome])[] {
    const [oldest] = this.#calls.keys();
    if (oldest === undefined) return [];
    if (this.#calls.size > 1) return this.#options.all(oldest);
    // The common case, without a cursor.
    const outcome = this.#options.first(oldest);
    return outcome === undefined ? [] : [[oldest, outcome]];
  }

  #answer(id: bigint, answered: Outcome): void {
    const call = this.#calls.get(id);
    if (call === undefined) return;
    this.#calls.delete(id);
    this.#acknowledged.push(id);
    const outcome = answered.ok ? checked(call.type, answered.value) : answered;
    if (call.isSettled && outcome.ok) call.options.onLate?.(outcome.value);
    this.#settle(call, outcome);
  }

  #settle(call: PendingCall, outcome: Outcome): void {
    if (call.isSettled) return;
    call.settle(outcome);
    if (--this.#unsettled > 0) return;
    this.#letGo?.();
    this.#letGo = undefined;
  }

  /**
   * The agent knows the deadline and says itself what has become of the command; who only looked at the clock would not
   * know whether its memory is quiet. So its answer is waited for as long as its heart beats, and a while at most.
   */
  #overdue(call: PendingCall): void {
    this.collect();
    if (call.isSettled) return;
    const now = performance.now();
    call.graceEnd ??= now + call.graceMs;
    const { rank } = this.#options;
    const silence = this.#options.silenceMs();
    const waitMs = Math.min(call.graceEnd - now, unresponsiveMs - silence);
    if (waitMs > 0) {
      call.timer = setTimeout(() => this.#overdue(call), waitMs + 1);
      return;
    }
    const error =
      silence >= unresponsiveMs
        ? unresponsive(call, silence, rank)
        : (call.aborted ?? this.#unanswered(call));
    this.#settle(call, { ok: false, error });
  }

  #unanswered(call: PendingCall): TensorBusError {
    try {
      this.#options.examineRoom();
      return timedOut(call, this.#options.rank);
    } catch (error) {
      return error as TensorBusError;
    }
  }
}

function checked(type: CommandType, value: unknown): Outcome {
  try {
    return { ok: true, value: checkResult(type, value) };
  } catch (error) {
    return { ok: false, error: error as TensorBusError };
  }
}

function unresponsive(call: PendingCall, silenceMs: number, rank: number): TensorBusError {
  const seconds = (silenceMs / 1000).toFixed(1);
  return new TensorBusError(
    "TB_AGENT_UNRESPONSIVE",
    `${call.name}: the agent has not responded for ${seconds} s`,
    { details: { rank, silenceMs } },
  );
}

function timedOut(call: PendingCall, rank: number): TensorBusError {
  return new TensorBusError("TB_TIMEOUT", `${call.name} was not answered before its deadline`, {
    details: { rank },
  });
}
