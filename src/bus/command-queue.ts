/**
 * The commands of one rank, first in, first out, in an LMDB environment of their own. A command is queued, started, done:
 * `enqueue` puts it into `queue`; `dequeue` moves its header to `started`, in one transaction; once its result has been
 * written to the state, `finish` removes it. What a killed agent left behind is told apart by where it stands.
 */
import { Deadline, type DeadlineOptions } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import {
  type Command,
  type CommandHeader,
  checkCommand,
  encodeCommand,
  pack,
  readHeader,
  unpack,
} from "./commands.ts";
import { type BinaryDatabase, type Environment, openEnvironment } from "./environment.ts";
import { hasPassed } from "./identity.ts";
import { clientOffset, LockView } from "./liveness.ts";
import type { Port } from "./port.ts";
import { RoomWaits } from "./room.ts";
import type { Waker } from "./semaphore.ts";

export interface CommandQueueOptions {
  /** A folder; made where it is missing. */
  readonly path: string;
  readonly port: Port;
  /** Commands that wait to be started, at most; default 1,024. The same for all who open it. */
  readonly capacity?: number;
  /** Bytes of them, at most; default 256 MiB. */
  readonly maxBytes?: number;
  readonly stuckMs?: number;
}

export interface EnqueueOptions extends DeadlineOptions {
  /** Wait for room; else a full queue is `TB_QUEUE_FULL` at once. Default true. */
  readonly blocking?: boolean;
}

/** A command taken off the queue. */
export interface StartedCommand {
  /** Its place in the queue, larger than those before it. */
  readonly position: bigint;
  readonly header: CommandHeader;
  /** The command, where it is to be run. */
  readonly command?: Command;
  /** Why it is not to be run: its body is malformed (`TB_COMMAND`), or its deadline has passed (`TB_TIMEOUT`). */
  readonly error?: TensorBusError;
}

export interface DequeuedBatch {
  /** In the order of the queue. All of them are started, and end with `finish` once their result stands. */
  readonly started: readonly StartedCommand[];
  /** Commands that were dropped, since their client has ended or can not be told. */
  readonly dropped: readonly { readonly position: bigint; readonly error: TensorBusError }[];
}

interface Meta {
  next: bigint;
  count: number;
  bytes: number;
}

const defaultCapacity = 1024;
const defaultMaxBytes = 256 * 2 ** 20;
/** Freed pages of large messages lie scattered: room for several times what is queued. */
const mapBytes = 4 * 2 ** 30;
const metaKey = Buffer.from("meta");

export async function openCommandQueue(
  options: CommandQueueOptions,
  deadline: DeadlineOptions = {},
): Promise<CommandQueue> {
  const databases = ["queue", "started", "meta", "waiters"];
  const { path, port, stuckMs } = options;
  const environment = await openEnvironment(
    { path, port, kind: "queue", databases, mapBytes, ...(stuckMs === undefined ? {} : { stuckMs }) },
    deadline,
  );
  return new CommandQueue(environment, options);
}

export class CommandQueue implements AsyncDisposable {
  readonly environment: Environment;
  readonly capacity: number;
  readonly maxBytes: number;
  readonly #queue: BinaryDatabase;
  readonly #started: BinaryDatabase;
  readonly #meta: BinaryDatabase;
  readonly #room: RoomWaits;
  readonly #locks: LockView;

  constructor(environment: Environment, options: CommandQueueOptions) {
    this.environment = environment;
    this.capacity = options.capacity ?? defaultCapacity;
    this.maxBytes = options.maxBytes ?? defaultMaxBytes;
    this.#queue = environment.database("queue");
    this.#started = environment.database("started");
    this.#meta = environment.database("meta");
    this.#room = new RoomWaits(environment.database("waiters"), options.port);
    this.#locks = new LockView(environment.locksPath);
  }

  /**
   * Checks and queues a command, behind all that this client queued before. Without `blocking`, a queue that is full, or
   * that earlier commands of this client wait for, is `TB_QUEUE_FULL` at once; with it, at the deadline. `waker` is this
   * client's: the agent posts it when there is room again. A command that ends in an error was not queued.
   */
  async enqueue(command: Command, waker: Waker, options: EnqueueOptions = {}): Promise<void> {
    const bytes = encodeCommand(command);
    const deadline = new Deadline(options);
    const attempt = (register: boolean, rest: DeadlineOptions) =>
      this.#put(bytes, command.client, register, rest);
    const blocking = options.blocking ?? true;
    if (!this.#room.isWaitedFor && (await attempt(blocking, deadline.rest))) return;
    if (!blocking) throw this.#full();
    try {
      await this.#room.wait(waker, (rest) => attempt(true, rest), deadline);
    } catch (error) {
      throw error instanceof TensorBusError && error.code === "TB_TIMEOUT" ? this.#full() : error;
    }
  }

  /** The first commands that wait, without taking them. */
  peek(max = 1): readonly Command[] {
    const values = this.environment.read(() => this.#head(max));
    return values.map(({ bytes }) => checkCommand(unpack(bytes)));
  }

  /** Commands that wait to be started. */
  size(): number {
    return this.environment.read(() => this.#readMeta().count);
  }

  /** Removes all commands that wait, without running them; how many there were. Their clients are not told. */
  async clear(deadline?: DeadlineOptions): Promise<number> {
    const cleared = await this.environment.write(
      "clearing the queue",
      () => {
        const meta = this.#readMeta();
        const count = meta.count;
        for (const key of [...this.#queue.getKeys()]) this.#queue.remove(key);
        this.#writeMeta({ next: meta.next, count: 0, bytes: 0 });
        return { count, waiters: this.#room.names() };
      },
      deadline,
    );
    this.#room.tell(cleared.waiters);
    return cleared.count;
  }

  /**
   * Takes up to `max` commands off the queue and marks them started, all in one transaction; `finished` are the positions
   * of earlier ones whose results stand, and are removed with it. One whose client has ended is dropped.
   */
  async dequeue(
    max: number,
    finished: readonly bigint[] = [],
    deadline?: DeadlineOptions,
  ): Promise<DequeuedBatch> {
    const { batch, waiters } = await this.environment.write(
      "taking commands off the queue",
      () => {
        this.#removeStarted(finished);
        return { batch: this.#start(max), waiters: this.#room.names() };
      },
      deadline,
    );
    this.#room.tell(waiters);
    return batch;
  }

  /** Removes started commands whose results have been written. */
  async finish(positions: readonly bigint[], deadline?: DeadlineOptions): Promise<void> {
    if (positions.length === 0) return;
    await this.environment.write(
      "removing finished commands",
      () => this.#removeStarted(positions),
      deadline,
    );
  }

  /**
   * For an agent that has claimed these paths: the commands that its predecessor had started. Each whose result stands
   * already only wants `finish`; each other one ends as `TB_AGENT_LOST` and never runs again.
   */
  leftovers(): readonly { readonly position: bigint; readonly header: CommandHeader | undefined }[] {
    return this.environment.read(() =>
      [...this.#started.getRange()].map(({ key, value }) => ({
        position: key.readBigUInt64BE(),
        header: readHeader(unpack(value)),
      })),
    );
  }

  /** Wakes all who wait for room, so that they look for themselves: an agent's first act. */
  tellWaiters(): void {
    this.#room.tell(this.environment.read(() => this.#room.names()));
  }

  /** Forgets that a client that has ended waits for room. */
  async forgetClient(client: bigint, deadline?: DeadlineOptions): Promise<void> {
    await this.environment.write("forgetting a client", () => this.#room.remove(client), deadline);
  }

  /** True while that client's process holds its lock. */
  isClientAlive(client: bigint): boolean {
    return this.#locks.isHeld(clientOffset(client));
  }

  /** Frees what this process holds; the commands stay. */
  async close(): Promise<void> {
    this.#room.close();
    this.#locks.close();
    await this.environment.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #full(): TensorBusError {
    const { count, bytes } = this.environment.read(() => this.#readMeta());
    return new TensorBusError("TB_QUEUE_FULL", `${count} commands wait in ${this.environment.path}`, {
      details: { count, bytes, capacity: this.capacity, maxBytes: this.maxBytes },
    });
  }

  /** False where there is no room; `register` then has the client told of it. */
  #put(
    bytes: Buffer,
    client: Command["client"],
    register: boolean,
    deadline: DeadlineOptions,
  ): Promise<boolean> {
    return this.environment.write(
      "queueing a command",
      () => {
        const meta = this.#readMeta();
        // One command always fits an empty queue.
        if (meta.count >= this.capacity || (meta.count > 0 && meta.bytes + bytes.length > this.maxBytes)) {
          if (register) this.#room.add(client.id, client.wake);
          return false;
        }
        this.#queue.put(positionKey(meta.next), bytes);
        this.#writeMeta({ next: meta.next + 1n, count: meta.count + 1, bytes: meta.bytes + bytes.length });
        this.#room.served(client.id);
        return true;
      },
      deadline,
    );
  }

  #head(max: number): { key: Buffer; bytes: Buffer }[] {
    return [...this.#queue.getRange({ limit: max })].map(({ key, value }) => ({ key, bytes: value }));
  }

  #start(max: number): DequeuedBatch {
    const started: StartedCommand[] = [];
    const dropped: { position: bigint; error: TensorBusError }[] = [];
    const meta = this.#readMeta();
    for (const { key, bytes } of meta.count === 0 ? [] : this.#head(max)) {
      const position = key.readBigUInt64BE();
      this.#queue.remove(key);
      meta.count -= 1;
      meta.bytes -= bytes.length;
      const verdict = this.#judge(position, bytes);
      if (verdict instanceof TensorBusError) {
        dropped.push({ position, error: verdict });
        continue;
      }
      this.#started.put(key, pack(verdict.header));
      started.push(verdict);
    }
    if (started.length + dropped.length > 0) this.#writeMeta(meta);
    return { started, dropped };
  }

  /** What is to become of a command at the head of the queue; an error drops it. */
  #judge(position: bigint, bytes: Buffer): StartedCommand | TensorBusError {
    let message: unknown;
    let header: CommandHeader | undefined;
    try {
      message = unpack(bytes);
      header = readHeader(message);
    } catch (error) {
      return error as TensorBusError;
    }
    if (header === undefined) return new TensorBusError("TB_COMMAND", "a command does not say whose it is");
    if (!this.isClientAlive(header.client.id)) {
      return new TensorBusError("TB_CLIENT_LOST", `the client of ${header.semaphore} has ended`);
    }
    if (hasPassed(header.deadline)) {
      const error = new TensorBusError("TB_TIMEOUT", `${header.semaphore} was not begun before its deadline`);
      return { position, header, error };
    }
    try {
      return { position, header, command: checkCommand(message) };
    } catch (error) {
      return { position, header, error: error as TensorBusError };
    }
  }

  #removeStarted(positions: readonly bigint[]): void {
    for (const position of positions) this.#started.remove(positionKey(position));
  }

  #readMeta(): Meta {
    const bytes = this.#meta.get(metaKey);
    if (bytes === undefined) return { next: 1n, count: 0, bytes: 0 };
    return {
      next: bytes.readBigUInt64BE(0),
      count: bytes.readUInt32BE(8),
      bytes: Number(bytes.readBigUInt64BE(12)),
    };
  }

  #writeMeta({ next, count, bytes }: Meta): void {
    const value = Buffer.allocUnsafe(20);
    value.writeBigUInt64BE(next, 0);
    value.writeUInt32BE(count, 8);
    value.writeBigUInt64BE(BigInt(bytes), 12);
    this.#meta.put(metaKey, value);
  }
}

function positionKey(position: bigint): Buffer {
  const key = Buffer.allocUnsafe(8);
  key.writeBigUInt64BE(position);
  return key;
}
