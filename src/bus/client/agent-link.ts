/**
 * A client's tie to one agent, from the moment it is found to its death. The client's identity (its lock, its wake
 * semaphore, its commands' ids) is part of the tie and ends with it: what was queued for an agent that died is dropped by the
 * next one, and what it had registered is freed, since both belong to a client that is gone.
 */
import { Deadline, type DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { EventPort } from "../process/event-port.ts";
import { ownIdentity, randomClientId } from "../process/identity.ts";
import {
  clientOffset,
  type LockFile,
  lockOffsets,
  openPulse,
  type Pulse,
  tryLock,
  type Watch,
  watchLock,
} from "../process/liveness.ts";
import { type Bell, generateSemaphoreName, openBell, openWaker, type Waker } from "../process/semaphore.ts";
import { type ClientIdentity, type CommandType, maxAcknowledged } from "../queue/command-header.ts";
import type { CommandQueue } from "../queue/command-queue.ts";
import type { Command, CommandBody, CommandResult } from "../queue/commands.ts";
import type { AgentRecord, Outcome, State } from "../queue/state.ts";
import { type PendingCall, PendingCalls } from "./pending-calls.ts";

/** What a client keeps open whichever agent there is. */
interface LinkResources {
  readonly port: EventPort;
  readonly queue: CommandQueue;
  readonly state: State;
}

interface SubmitOptions<T extends CommandType> extends DeadlineOptions {
  /** Wait for room in the queue; else a full one is `TB_QUEUE_FULL` at once. Default true. */
  readonly blocking?: boolean;
  /** Milliseconds after the deadline in which the agent's own answer is still waited for. */
  readonly graceMs?: number;
  /** An abort settles the call only with the agent's answer. Default: at once. */
  readonly settlesQuiet?: boolean;
  /** Called with the result of a command whose caller did not wait for it any more. */
  readonly onLate?: (result: CommandResult<T>) => void;
  /** Kept from being collected while the command is under way. */
  readonly keep?: unknown;
}

interface Submitted<T extends CommandType> {
  /** `generateSemaphoreName` of the command. */
  readonly name: string;
  /** Resolves once the command stands in the queue. */
  readonly queued: Promise<void>;
  /** The agent's answer. Handled: a rejection that nobody looks at is no unhandled one. */
  readonly outcome: Promise<CommandResult<T>>;
}

function isMissing(error: unknown): boolean {
  return error instanceof TensorBusError && error.code === "TB_SYSTEM" && error.details["errno"] === 2;
}

/** The agent that wrote itself into the state and beats, or the error that says why there is none. */
export function findAgent(state: State, isAlive: boolean): AgentRecord | TensorBusError {
  const agent = isAlive ? state.agent() : undefined;
  const details = { path: state.environment.path };
  if (agent === undefined) {
    return new TensorBusError("TB_AGENT_LOST", `no agent runs on ${details.path}`, { details });
  }
  if (!agent.ready) {
    return new TensorBusError(
      "TB_AGENT_UNRESPONSIVE",
      `the agent on ${details.path} does not take commands`,
      {
        details: { ...details, pid: agent.pid },
      },
    );
  }
  return agent;
}

export class AgentLink {
  readonly agent: AgentRecord;
  readonly identity: ClientIdentity;
  readonly #resources: LinkResources;
  readonly #onLost: (error: TensorBusError) => void;
  readonly #waker: Waker;
  readonly #life: LockFile;
  readonly #pending: PendingCalls;
  /** The listeners to the end of something of this client, by its number in the agent. */
  readonly #listeners = new Map<bigint, (error: TensorBusError) => void>();
  #listening: NodeJS.Timeout | undefined;
  /** Aborts the enqueues that wait when the link ends. */
  readonly #ended = new AbortController();
  #bell: Bell | undefined;
  #pulse: Pulse | undefined;
  #watch: Watch | undefined;
  #lastId = 0n;

  private constructor(resources: LinkResources, agent: AgentRecord, onLost: (error: TensorBusError) => void) {
    const { port, queue, state } = resources;
    this.agent = agent;
    this.#resources = resources;
    this.#onLost = onLost;
    this.#waker = openWaker(port);
    this.identity = { ...ownIdentity(), id: randomClientId(), wake: this.#waker.name };
    // Nobody else has this random byte.
    this.#life = tryLock(queue.environment.locksPath, clientOffset(this.identity.id))!;
    this.#pending = new PendingCalls({
      rank: agent.rank,
      port,
      first: (id) => state.result(this.identity.id, id),
      all: (from) => state.results(this.identity.id, from),
      silenceMs: () => this.#pulse!.ageMs(),
      examine: () => {
        queue.environment.examine();
        state.environment.examine();
      },
      examineRoom: () => state.environment.examineRoom(),
    });
    this.#waker.onWake(() => {
      this.#pending.collect();
      this.#listenSoon();
    });
  }

  /** Ties this process to an agent that was found. `TB_AGENT_LOST` if it has ended meanwhile. */
  static async open(
    resources: LinkResources,
    agent: AgentRecord,
    onLost: (error: TensorBusError) => void,
    deadline: DeadlineOptions = {},
  ): Promise<AgentLink> {
    const link = new AgentLink(resources, agent, onLost);
    try {
      await link.#attach(deadline);
      return link;
    } catch (error) {
      link.end(error as TensorBusError);
      throw isMissing(error) ? agentLost(agent, error) : error;
    }
  }

  get isOpen(): boolean {
    return !this.#ended.signal.aborted;
  }

  /** Milliseconds since the agent's last heartbeat. */
  silenceMs(): number {
    return this.#pulse!.ageMs();
  }

  /**
   * Queues a command, behind all that were submitted before, and wakes the agent. `context` is what the semaphore's name
   * shows.
   */
  submit<T extends CommandType>(
    type: T,
    context: string | number | bigint,
    body: CommandBody<T>,
    options: SubmitOptions<T> = {},
  ): Submitted<T> {
    this.#lastId += 1n;
    const deadline = new Deadline(options);
    const command = {
      type,
      id: this.#lastId,
      timestamp: Date.now(),
      semaphore: generateSemaphoreName(type, context),
      client: this.identity,
      deadline: { boot: this.identity.boot, ns: process.hrtime.bigint() + deadline.remainingNs },
      acknowledged: this.#pending.takeAcknowledged(maxAcknowledged),
      ...body,
    } as unknown as Command;
    const call = this.#pending.add(type, command.id, command.semaphore, deadline, options);
    const queued = this.#enqueue(command, call, deadline, options.blocking ?? true);
    // Callers that want only the outcome are told through it.
    queued.catch(() => {});
    if (options.signal !== undefined) this.#cancelOnAbort(call, options.signal);
    return { name: command.semaphore, queued, outcome: call.outcome as Promise<CommandResult<T>> };
  }

  /** Has `onEnd` called once the agent tells how the registration of that number has ended. Returns what stops that. */
  listen(instance: bigint, onEnd: (error: TensorBusError) => void): () => void {
    this.#listeners.set(instance, onEnd);
    this.#listenSoon();
    return () => {
      if (this.#listeners.delete(instance)) this.passOver(instance);
    };
  }

  /** An end that nobody listens to any more is taken as read: it would stay in the state for as long as this client lives. */
  passOver(instance: bigint): void {
    if (!this.isOpen) return;
    try {
      if (this.#resources.state.result(this.identity.id, instance) !== undefined)
        this.#pending.acknowledge(instance);
    } catch {
      // A state that is damaged ends the next call.
    }
  }

  /** Ends the tie: calls under way end with `error`. The agent notices by the lock that the client is gone. */
  end(error: TensorBusError): void {
    if (!this.isOpen) return;
    // Answers that the agent gave before still count.
    this.#pending.collect();
    this.#ended.abort(error);
    this.#pending.failAll(error);
    clearTimeout(this.#listening);
    this.#listeners.clear();
    this.#watch?.close();
    this.#bell?.close();
    this.#pulse?.close();
    this.#waker.close();
    this.#life.close();
  }

  /** Takes its leave: the agent frees what this client made. */
  async leave(error: TensorBusError): Promise<void> {
    if (!this.isOpen) return;
    const { queue } = this.#resources;
    try {
      await queue.unregister(this.identity.id);
      this.#bell?.ring();
    } finally {
      this.end(error);
    }
  }

  async #attach(deadline: DeadlineOptions): Promise<void> {
    const { port, queue, state } = this.#resources;
    this.#pulse = openPulse(this.agent.heartbeat);
    this.#bell = openBell(this.agent.wake);
    await queue.register(this.identity, deadline);
    const { locksPath } = queue.environment;
    this.#watch = watchLock(port, locksPath, lockOffsets.agent, () => this.#lost());
    // Another agent may live by now: its lock is not that of the one that was found.
    if (state.agent()?.generation !== this.agent.generation) throw agentLost(this.agent);
    this.#bell.ring();
  }

  /** Answers come first: what nobody waits for is looked at a moment later, once for all wakes until then. */
  #listenSoon(): void {
    if (this.#listeners.size === 0 || this.#listening !== undefined || !this.isOpen) return;
    this.#listening = setTimeout(() => {
      this.#listening = undefined;
      if (this.isOpen) this.#hear();
    }, hearMs).unref();
  }

  #hear(): void {
    const { state } = this.#resources;
    for (const [instance, onEnd] of [...this.#listeners]) {
      let told: Outcome | undefined;
      try {
        told = state.result(this.identity.id, instance);
      } catch {
        // A state that is damaged ends the next call.
        return;
      }
      if (told === undefined || told.ok) continue;
      this.#listeners.delete(instance);
      this.#pending.acknowledge(instance);
      onEnd(told.error);
    }
  }

  #lost(): void {
    if (!this.isOpen) return;
    const error = agentLost(this.agent);
    this.end(error);
    this.#onLost(error);
  }

  async #enqueue(command: Command, call: PendingCall, deadline: Deadline, blocking: boolean): Promise<void> {
    const { signal } = deadline;
    const ended = this.#ended.signal;
    try {
      await this.#resources.queue.enqueue(command, this.#waker, {
        timeoutMs: deadline.remainingMs,
        blocking,
        signal: signal === undefined ? ended : AbortSignal.any([signal, ended]),
      });
    } catch (error) {
      const reason = ended.aborted ? ended.reason : error;
      this.#pending.drop(call, reason);
      throw reason;
    }
    call.isQueued = true;
    this.#bell?.ring();
  }

  /** An abort ends the command where it runs; its answer, which says so, is then waited for as any other's. */
  #cancelOnAbort(call: PendingCall, signal: AbortSignal): void {
    const cancel = () => {
      // A command that is not in the queue yet never gets there.
      if (!this.isOpen || call.isSettled || !call.isQueued) return;
      this.#pending.abort(call, signal);
      this.submit("Cancel", call.name, { command: call.id }, { timeoutMs: cancelMs });
    };
    if (signal.aborted) return;
    signal.addEventListener("abort", cancel, { once: true });
    call.outcome.finally(() => signal.removeEventListener("abort", cancel)).catch(() => {});
  }
}

const cancelMs = 5000;
/** Milliseconds in which wakes are taken together before the ends of registrations are looked for. */
const hearMs = 10;

function agentLost(agent: AgentRecord, cause?: unknown): TensorBusError {
  return new TensorBusError("TB_AGENT_LOST", `the agent of rank ${agent.rank} (process ${agent.pid}) ended`, {
    details: { rank: agent.rank, pid: agent.pid },
    ...(cause === undefined ? {} : { cause }),
  });
}
