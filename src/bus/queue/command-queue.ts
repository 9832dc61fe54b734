/**
 * The commands of one rank, first in, first out, in an LMDB environment of their own. A command is queued, started, done:
 * `enqueue` puts it into `queue`; `dequeue` moves its header to `started`, in one transaction; once its result has been
 * written to the state, `finish` removes it. What a killed agent left behind is told apart by where it stands.
 */
import { Deadline, type DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { EventPort } from "../process/event-port.ts";
import { hasPassed } from "../process/identity.ts";
import { clientOffset, LockFile } from "../process/liveness.ts";
import type { Waker } from "../process/semaphore.ts";
import { ClientOrder } from "./client-order.ts";
import { type ClientIdentity, type CommandHeader, isClient } from "./command-header.ts";
import { type Command, checkCommand, encodeCommand, headerOf, pack, readHeader, unpack } from "./commands.ts";
import { type BinaryDatabase, type Environment, keyOf, openEnvironment, rangeOf } from "./environment.ts";
import { RoomWaits } from "./room-waits.ts";

interface CommandQueueOptions {
  /** A folder; made if it is missing. */
  readonly path: string;
  readonly port: EventPort;
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
  /** The command, if it is to be run. */
  readonly command?: Command;
  /** Why it is not to be run: its body is malformed (`TB_COMMAND`), or its deadline has passed (`TB_TIMEOUT`). */
  readonly error?: TensorBusError;
}

interface DequeuedBatch {
  /** In the order of the queue. All of them are started, and end with `finish` once their result stands. */
  readonly started: readonly StartedCommand[];
  /** Commands that were dropped, since their client has ended or cannot be told. */
  readonly dropped: readonly { readonly position: bigint; readonly error: TensorBusError }[];
  /** Clients have come or gone since the last time: `clients` tells who is there. */
  readonly clientsChanged: boolean;
}

interface Meta {
  /** The position of the next command; those that wait stand right before it. */
  next: bigint;
  count: number;
  bytes: number;
  /** Somebody may wait for room. */
  waited: boolean;
  /** The agent has not yet been told that clients have come or gone. */
  clientsChanged: boolean;
}

/** A question is far smaller: what is larger is not decoded to find out. */
const maxQuestionBytes = 4096;
const defaultCapacity = 1024;
const defaultMaxBytes = 256 * 2 ** 20;
/** Freed pages of large messages lie scattered: room for several times what is queued. */
const mapBytes = 4 * 2 ** 30;
/** First bytes of the keys. */
const kinds = { meta: 1, waiting: 2, started: 3, room: 4, client: 5 } as const;
const metaKey = keyOf(kinds.meta);

/** The position of the first command that waits: no position between it and the next one is missing. */
function headOf({ next, count }: Meta): bigint {
  return next - BigInt(count);
}

export async function openCommandQueue(
  options: CommandQueueOptions,
  deadline: DeadlineOptions = {},
): Promise<CommandQueue> {
  const { path, port, stuckMs } = options;
  const environment = await openEnvironment(
    { path, port, kind: "queue", mapBytes, ...(stuckMs === undefined ? {} : { stuckMs }) },
    deadline,
  );
  return new CommandQueue(environment, options);
}

export class CommandQueue implements AsyncDisposable {
  readonly environment: Environment;
  readonly capacity: number;
  readonly maxBytes: number;
  readonly #commands: BinaryDatabase;
  readonly #room: RoomWaits;
  readonly #order: ClientOrder;
  readonly #locks: LockFile;

  constructor(environment: Environment, options: CommandQueueOptions) {
    this.environment = environment;
    this.capacity = options.capacity ?? defaultCapacity;
    this.maxBytes = options.maxBytes ?? defaultMaxBytes;
    this.#commands = environment.root;
    this.#room = new RoomWaits(environment.root, kinds.room);
    this.#order = new ClientOrder({ port: options.port, full: () => this.#full() });
    this.#locks = new LockFile(environment.locksPath);
  }

  /**
   * Checks and queues a command, behind all that this client queued before. Without `blocking`, a queue that is full, or
   * that earlier commands of this client wait for, is `TB_QUEUE_FULL` at once; with it, at the deadline. `waker` is this
   * client's: the agent posts it when there is room again. A command that ends in an error was not queued.
   */
  async enqueue(command: Command, waker: Waker, options: EnqueueOptions = {}): Promise<void> {
    const bytes = encodeCommand(command);
    const blocking = options.blocking ?? true;
    const put = () => this.#put(bytes, command.client, blocking);
    if (this.#order.isEmpty && options.signal?.aborted !== true) {
      const done = this.environment.tryWrite(put);
      if (done?.value === true) return;
      if (done?.value === false && !blocking) throw this.#full();
    }
    const attempt = (rest: DeadlineOptions) => this.environment.write("queueing a command", put, rest);
    await this.#order.pass(waker, attempt, blocking, new Deadline(options));
  }

  /** The first commands that wait, without taking them. */
  peek(max = 1): readonly Command[] {
    const values = this.environment.read(() => this.#head(this.#readMeta(), max));
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
        for (const { key } of this.#head(meta, meta.count)) this.#commands.remove(key);
        const waiters = this.#waiters(meta);
        this.#writeMeta({ ...meta, count: 0, bytes: 0 });
        return { count, waiters };
      },
      deadline,
    );
    this.#room.tell(cleared.waiters);
    return cleared.count;
  }

  /**
   * What waits, if all of it are questions behind position `after`: they change nothing, so that they may be answered
   * where they stand, and are removed as `finished` by the next `dequeue`. Empty if anything else is to be done first. An
   * agent that dies between the two leaves them to the next one, whose answer comes second and is not kept.
   */
  questions(max: number, after: bigint): readonly StartedCommand[] {
    return this.environment.read(() => {
      const meta = this.#readMeta();
      if (meta.count > max || meta.clientsChanged || headOf(meta) <= after) return [];
      // They keep their places until they are removed: a queue that is half full needs those at once.
      if (2 * meta.count > this.capacity || 2 * meta.bytes > this.maxBytes) return [];
      const questions: StartedCommand[] = [];
      for (const { position, bytes } of this.#head(meta, max)) {
        if (bytes.length > maxQuestionBytes) return [];
        const verdict = this.#judge(position, bytes);
        if (verdict instanceof TensorBusError || verdict.command?.type !== "QueryStatus") return [];
        questions.push(verdict);
      }
      return questions;
    });
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
        const meta = this.#readMeta();
        const waited = meta.count;
        this.#removeFinished(meta, finished);
        const batch = { ...this.#start(meta, max), clientsChanged: meta.clientsChanged };
        const taken = meta.count < waited;
        const waiters = taken ? this.#waiters(meta) : [];
        if (taken || meta.clientsChanged) this.#writeMeta({ ...meta, clientsChanged: false });
        return { batch, waiters };
      },
      deadline,
    );
    this.#room.tell(waiters);
    return batch;
  }

  /** Removes commands whose results have been written. */
  async finish(positions: readonly bigint[], deadline?: DeadlineOptions): Promise<void> {
    if (positions.length === 0) return;
    await this.environment.write(
      "removing finished commands",
      () => {
        const meta = this.#readMeta();
        this.#removeFinished(meta, positions);
        this.#writeMeta(meta);
      },
      deadline,
    );
  }

  /**
   * For an agent that has claimed these paths: the commands that its predecessor had started. Each whose result stands
   * already only wants `finish`; each other one ends as `TB_AGENT_LOST` and never runs again.
   */
  leftovers(): readonly { readonly position: bigint; readonly header: CommandHeader | undefined }[] {
    return this.environment.read(() =>
      [...this.#commands.getRange(rangeOf(kinds.started))].map(({ key, value }) => ({
        position: key.readBigUInt64BE(1),
        header: readHeader(unpack(value)),
      })),
    );
  }

  /** Wakes all who wait for room, and others, so that they look for themselves: an agent's first act. */
  tellWaiters(others: readonly string[] = []): void {
    const waiting = this.environment.read(() => this.#room.names());
    this.#room.tell([...new Set([...waiting, ...others])]);
  }

  /** Writes a client down, so that the agent watches it; before its first command, once it holds its lock. */
  async register(client: ClientIdentity, deadline?: DeadlineOptions): Promise<void> {
    const record = pack(client);
    await this.#changeClients("registering a client", deadline, () => {
      this.#commands.put(keyOf(kinds.client, client.id), record);
    });
  }

  /** Removes a client that has ended or signs off. */
  async unregister(client: bigint, deadline?: DeadlineOptions): Promise<void> {
    await this.#changeClients("striking out a client", deadline, () => {
      this.#commands.remove(keyOf(kinds.client, client));
      this.#room.remove(client);
    });
  }

  /** The clients that are written down; those that have ended since are among them. */
  clients(): ClientIdentity[] {
    const entries = this.environment.read(() => [...this.#commands.getRange(rangeOf(kinds.client))]);
    return entries.flatMap(({ value }) => {
      const client = unpack(value);
      return isClient(client) ? [client] : [];
    });
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
    return new TensorBusError(
      "TB_QUEUE_FULL",
      `the queue in ${this.environment.path} is full: ${count} commands wait`,
      {
        details: { count, bytes, capacity: this.capacity, maxBytes: this.maxBytes },
      },
    );
  }

  /** Inside of a transaction: false if there is no room; `register` then has the client told of it. */
  #put(bytes: Buffer, client: Command["client"], register: boolean): boolean {
    const meta = this.#readMeta();
    // One command always fits an empty queue.
    if (meta.count >= this.capacity || (meta.count > 0 && meta.bytes + bytes.length > this.maxBytes)) {
      if (!register) return false;
      this.#room.add(client.id, client.wake);
      if (!meta.waited) this.#writeMeta({ ...meta, waited: true });
      return false;
    }
    this.#commands.put(keyOf(kinds.waiting, meta.next), bytes);
    meta.next += 1n;
    meta.count += 1;
    meta.bytes += bytes.length;
    this.#writeMeta(meta);
    if (this.#order.length <= 1) this.#room.served(client.id);
    return true;
  }

  /** The first commands that wait: their positions have no gaps. Inside of a transaction. */
  #head(meta: Meta, max: number): { position: bigint; key: Buffer; bytes: Buffer }[] {
    const first = headOf(meta);
    return Array.from({ length: Math.max(0, Math.min(meta.count, max)) }, (_, i) => {
      const position = first + BigInt(i);
      const key = keyOf(kinds.waiting, position);
      return { position, key, bytes: this.#commands.get(key)! };
    });
  }

  /** Takes commands off the head; what that makes of the counts is for the caller to write. */
  #start(meta: Meta, max: number): Pick<DequeuedBatch, "started" | "dropped"> {
    const started: StartedCommand[] = [];
    const dropped: { position: bigint; error: TensorBusError }[] = [];
    for (const { position, key, bytes } of this.#head(meta, max)) {
      this.#commands.remove(key);
      meta.count -= 1;
      meta.bytes -= bytes.length;
      const verdict = this.#judge(position, bytes);
      if (verdict instanceof TensorBusError) {
        dropped.push({ position, error: verdict });
        continue;
      }
      this.#commands.put(keyOf(kinds.started, position), pack(verdict.header));
      started.push(verdict);
    }
    return { started, dropped };
  }

  #changeClients(what: string, deadline: DeadlineOptions | undefined, change: () => void): Promise<void> {
    return this.environment.write(
      what,
      () => {
        change();
        this.#writeMeta({ ...this.#readMeta(), clientsChanged: true });
      },
      deadline,
    );
  }

  /** The clients that must be told that there is room; call it inside of the transaction that makes room. */
  #waiters(meta: Meta): string[] {
    const waiters = meta.waited ? this.#room.names() : [];
    meta.waited = waiters.length > 0;
    return waiters;
  }

  /** Decides about a command at the head of the queue; an error drops it. */
  #judge(position: bigint, bytes: Buffer): StartedCommand | TensorBusError {
    let message: unknown;
    let command: Command | undefined;
    let error: TensorBusError | undefined;
    try {
      message = unpack(bytes);
      command = checkCommand(message);
    } catch (thrown) {
      error = thrown as TensorBusError;
    }
    // A command whose body is malformed is answered all the same, if it says whose it is.
    const header = command === undefined ? readHeader(message) : headerOf(command);
    if (header === undefined) return error!;
    if (!this.isClientAlive(header.client.id)) {
      return new TensorBusError("TB_CLIENT_LOST", `the client of ${header.semaphore} has ended`);
    }
    if (hasPassed(header.deadline)) {
      error = new TensorBusError("TB_TIMEOUT", `${header.semaphore} was not begun before its deadline`);
    }
    return { position, header, ...(error === undefined ? { command: command! } : { error }) };
  }

  /** Removes commands that were started, and questions that were answered at the head of the queue. */
  #removeFinished(meta: Meta, positions: readonly bigint[]): void {
    for (const position of positions) {
      if (meta.count === 0 || position !== headOf(meta)) {
        this.#commands.remove(keyOf(kinds.started, position));
        continue;
      }
      const key = keyOf(kinds.waiting, position);
      meta.count -= 1;
      meta.bytes -= this.#commands.get(key)!.length;
      this.#commands.remove(key);
    }
  }

  #readMeta(): Meta {
    const bytes = this.#commands.get(metaKey);
    if (bytes === undefined) return { next: 1n, count: 0, bytes: 0, waited: false, clientsChanged: false };
    return {
      next: bytes.readBigUInt64BE(0),
      count: bytes.readUInt32BE(8),
      bytes: Number(bytes.readBigUInt64BE(12)),
      waited: (bytes[20]! & 1) !== 0,
      clientsChanged: (bytes[20]! & 2) !== 0,
    };
  }

  #writeMeta({ next, count, bytes, waited, clientsChanged }: Meta): void {
    const value = Buffer.allocUnsafe(21);
    value.writeBigUInt64BE(next, 0);
    value.writeUInt32BE(count, 8);
    value.writeBigUInt64BE(BigInt(bytes), 12);
    value[20] = (waited ? 1 : 0) | (clientsChanged ? 2 : 0);
    this.#commands.put(metaKey, value);
  }
}
