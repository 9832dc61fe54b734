/** A minimal client for the tests and the benchmark: commands that are echoed, and their results in order. */

import { type EventPort, openEventPort } from "../../../src/bus/process/event-port.ts";
import { momentIn, ownIdentity, randomClientId } from "../../../src/bus/process/identity.ts";
import {
  clientOffset,
  LockFile,
  lockOffsets,
  tryLock,
  type Watch,
  watchLock,
} from "../../../src/bus/process/liveness.ts";
import {
  type Bell,
  generateSemaphoreName,
  openBell,
  openWaker,
  type Waker,
} from "../../../src/bus/process/semaphore.ts";
import type { ClientIdentity, CommandType } from "../../../src/bus/queue/command-header.ts";
import {
  type CommandQueue,
  type EnqueueOptions,
  openCommandQueue,
} from "../../../src/bus/queue/command-queue.ts";
import type { Command } from "../../../src/bus/queue/commands.ts";
import { openState, type State } from "../../../src/bus/queue/state.ts";
import { TensorBusError } from "../../../src/errors.ts";

export interface BusPaths {
  readonly queue: string;
  readonly state: string;
}

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
}

export class EchoClient {
  readonly port: EventPort;
  readonly queue: CommandQueue;
  readonly state: State;
  readonly waker: Waker;
  readonly identity: ClientIdentity;
  readonly #life: LockFile;
  readonly #locks: LockFile;
  readonly #pending = new Map<bigint, Pending>();
  #bell: Bell | undefined;
  #watch: Watch | undefined;
  #failsWithAgent = false;
  #letGo: (() => void) | undefined;
  #acknowledged: bigint[] = [];
  #lastId = 0n;

  private constructor(port: EventPort, queue: CommandQueue, state: State) {
    this.port = port;
    this.queue = queue;
    this.state = state;
    this.waker = openWaker(port);
    this.identity = { ...ownIdentity(), id: randomClientId(), wake: this.waker.name };
    this.#locks = new LockFile(queue.environment.locksPath);
    this.#life = tryLock(queue.environment.locksPath, clientOffset(this.identity.id))!;
    this.waker.onWake(() => this.#collect());
  }

  static async connect(
    paths: BusPaths,
    options: { capacity?: number; stuckMs?: number } = {},
  ): Promise<EchoClient> {
    const port = openEventPort();
    const queue = await openCommandQueue({ path: paths.queue, port, ...options });
    const stuck = options.stuckMs === undefined ? {} : { stuckMs: options.stuckMs };
    const client = new EchoClient(port, queue, await openState({ path: paths.state, port, ...stuck }));
    await queue.register(client.identity);
    client.ring();
    return client;
  }

  /** From now on, what waits ends with `TB_AGENT_LOST` when the agent's process ends. */
  failWithAgent(): void {
    this.#failsWithAgent = true;
  }

  get lastId(): bigint {
    return this.#lastId;
  }

  makeCommand(batch: string | number | bigint, timeoutMs = 30_000): Command {
    return {
      type: "CleanupBatch",
      ...this.#makeHeader("CleanupBatch", batch, timeoutMs),
      batch,
      instance: 0n,
    };
  }

  /** A command that changes nothing. */
  makeQuestion(batch: string | number | bigint): Command {
    return { type: "QueryStatus", ...this.#makeHeader("QueryStatus", batch, 30_000), batch };
  }

  /** Queues a command and wakes the agent, if there is one. */
  async send(command: Command, options: EnqueueOptions = {}): Promise<void> {
    await this.queue.enqueue(command, this.waker, options);
    this.ring();
  }

  /** Wakes the agent, if it lives; one that comes later looks at the queue by itself. */
  ring(): void {
    if (this.#bell === undefined && this.#locks.isHeld(lockOffsets.agent)) {
      this.#bell = openBell(this.state.agent()!.wake);
      const { locksPath } = this.queue.environment;
      this.#watch = watchLock(this.port, locksPath, lockOffsets.agent, () => this.#agentEnded());
    }
    this.#bell?.ring();
  }

  /** Sends a command and waits for its result. */
  query(batch: string | number | bigint, options: EnqueueOptions = {}): Promise<unknown> {
    return this.request(this.makeCommand(batch), options);
  }

  request(command: Command, options: EnqueueOptions = {}): Promise<unknown> {
    const result = this.expect(command.id);
    this.send(command, options).catch((error) => {
      this.#pending.get(command.id)?.reject(error);
      this.#pending.delete(command.id);
      this.#rest();
    });
    return result;
  }

  /** Waits for the result of a command that was or will be queued. */
  expect(id: bigint): Promise<unknown> {
    this.#letGo ??= this.port.hold();
    return new Promise((resolve, reject) => this.#pending.set(id, { resolve, reject }));
  }

  async close(): Promise<void> {
    this.#watch?.close();
    this.#rest();
    await this.queue.unregister(this.identity.id);
    this.ring();
    this.#bell?.close();
    this.waker.close();
    this.#life.close();
    this.#locks.close();
    await this.state.close();
    await this.queue.close();
    await this.port.close();
  }

  #makeHeader(type: CommandType, batch: string | number | bigint, timeoutMs: number) {
    this.#lastId += 1n;
    return {
      id: this.#lastId,
      timestamp: Date.now(),
      semaphore: generateSemaphoreName(type, batch),
      client: this.identity,
      deadline: momentIn(timeoutMs),
      acknowledged: this.#acknowledged.splice(0),
    };
  }

  #agentEnded(): void {
    this.#watch?.close();
    this.#bell?.close();
    this.#bell = undefined;
    this.#collect();
    if (!this.#failsWithAgent) return;
    for (const { reject } of this.#pending.values())
      reject(new TensorBusError("TB_AGENT_LOST", "the agent ended"));
    this.#pending.clear();
    this.#rest();
  }

  #collect(): void {
    if (this.#pending.size === 1) {
      // The common case, without a cursor.
      const [id] = this.#pending.keys();
      const outcome = this.state.result(this.identity.id, id!);
      if (outcome !== undefined) this.#settle(id!, outcome);
    } else if (this.#pending.size > 1) {
      for (const [id, outcome] of this.state.results(this.identity.id)) this.#settle(id, outcome);
    }
    this.#rest();
  }

  #settle(id: bigint, outcome: NonNullable<ReturnType<State["result"]>>): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    this.#acknowledged.push(id);
    if (outcome.ok) pending.resolve(outcome.value);
    else pending.reject(outcome.error);
  }

  #rest(): void {
    if (this.#pending.size > 0) return;
    this.#letGo?.();
    this.#letGo = undefined;
  }
}
