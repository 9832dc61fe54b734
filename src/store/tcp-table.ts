import { WireError } from "./tcp-protocol.ts";

/** Someone who waits for keys to exist: `missing` are those that have not come, `wake` is called once none is left. */
export interface Waiter {
  readonly missing: Set<string>;
  readonly wake: () => void;
}

/** What an entry, a queued value or a waiter's key takes beside its bytes, estimated generously. */
export const overheadBytes = 128;

/** A write would exceed the memory that the table may take. */
export class TableFull extends Error {
  override readonly name = "TableFull";
}

/**
 * What a TCPStore server holds: values, queues, and who waits. Semantics are those of torch's libuv server, op by op
 * (`docs/stores.md`). Keys are text of one character a byte.
 */
export class StoreTable {
  readonly #maxBytes: number;
  readonly #values = new Map<string, Buffer>();
  readonly #queues = new Map<string, Buffer[]>();
  readonly #waiters = new Map<string, Set<Waiter>>();
  #bytes = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** Bytes that the contents take, overhead included. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Keys with a value; queues are not counted. */
  get size(): number {
    return this.#values.size;
  }

  keys(): string[] {
    return [...this.#values.keys()];
  }

  get(key: string): Buffer | undefined {
    return this.#values.get(key);
  }

  set(key: string, value: Buffer): void {
    this.#write(key, value);
    this.#wakeAll(key);
  }

  /** The value that stands afterwards. An absent key takes `desired` only for an empty `expected`, which is else the answer. */
  compareSet(key: string, expected: Buffer, desired: Buffer): Buffer {
    const current = this.#values.get(key);
    if (current === undefined && expected.length > 0) return expected;
    if (current !== undefined && !current.equals(expected)) return current;
    this.#write(key, desired);
    if (current === undefined) this.#wakeAll(key);
    return desired;
  }

  add(key: string, delta: bigint): bigint {
    const sum = this.#increment(key, delta);
    this.#wakeAll(key);
    return sum;
  }

  append(key: string, value: Buffer): void {
    const current = this.#values.get(key);
    this.set(key, current === undefined ? value : Buffer.concat([current, value]));
  }

  delete(key: string): boolean {
    const value = this.#values.get(key);
    if (value === undefined) return false;
    this.#bytes -= entryBytes(key, value);
    return this.#values.delete(key);
  }

  /** A key with a value, or with a queue that is not empty. */
  has(key: string): boolean {
    return this.#values.has(key) || this.#queues.has(key);
  }

  pushQueue(key: string, value: Buffer): void {
    this.#take(entryBytes(key, value));
    const queue = this.#queues.get(key);
    if (queue === undefined) this.#queues.set(key, [value]);
    else queue.push(value);
    // A queued value is for one taker, so one waiter hears of it: the one that has waited longest.
    const [first] = this.#waiters.get(key) ?? [];
    if (first !== undefined) this.#arrived(key, first);
  }

  /** The length of the queue before, and its oldest value. */
  popQueue(key: string): { length: number; value: Buffer | undefined } {
    const queue = this.#queues.get(key);
    if (queue === undefined) return { length: 0, value: undefined };
    const length = queue.length;
    const value = queue.shift()!;
    if (queue.length === 0) this.#queues.delete(key);
    this.#bytes -= entryBytes(key, value);
    return { length, value };
  }

  queueLength(key: string): number {
    return this.#queues.get(key)?.length ?? 0;
  }

  /** Counts one arrival in the counter `key`; true if with it all have arrived, and whoever waits for the key is woken. */
  arrive(key: string, worldSize: bigint): boolean {
    const complete = this.#increment(key, 1n) >= worldSize;
    if (complete) this.#wakeAll(key);
    return complete;
  }

  /** Calls `wake` once each of the keys has come; its `missing` shrinks as they do. */
  park(waiter: Waiter): void {
    for (const key of waiter.missing) {
      const waiting = this.#waiters.get(key);
      if (waiting === undefined) this.#waiters.set(key, new Set([waiter]));
      else waiting.add(waiter);
    }
  }

  unpark(waiter: Waiter): void {
    for (const key of waiter.missing) this.#forget(key, waiter);
  }

  /** Keys that someone waits for. */
  get awaitedKeys(): number {
    return this.#waiters.size;
  }

  #increment(key: string, delta: bigint): bigint {
    const current = this.#values.get(key);
    const sum = BigInt.asIntN(64, (current === undefined ? 0n : parseCounter(current)) + delta);
    this.#write(key, Buffer.from(String(sum)));
    return sum;
  }

  #write(key: string, value: Buffer): void {
    const current = this.#values.get(key);
    this.#take(entryBytes(key, value) - (current === undefined ? 0 : entryBytes(key, current)));
    this.#values.set(key, value);
  }

  #take(bytes: number): void {
    if (bytes > 0 && this.#bytes + bytes > this.#maxBytes) {
      throw new TableFull(`the store holds ${this.#bytes} bytes of at most ${this.#maxBytes}`);
    }
    this.#bytes += bytes;
  }

  #wakeAll(key: string): void {
    for (const waiter of [...(this.#waiters.get(key) ?? [])]) this.#arrived(key, waiter);
  }

  #arrived(key: string, waiter: Waiter): void {
    waiter.missing.delete(key);
    this.#forget(key, waiter);
    if (waiter.missing.size === 0) waiter.wake();
  }

  #forget(key: string, waiter: Waiter): void {
    const waiting = this.#waiters.get(key);
    waiting?.delete(waiter);
    if (waiting?.size === 0) this.#waiters.delete(key);
  }
}

function entryBytes(key: string, value: Buffer): number {
  return key.length + value.length + overheadBytes;
}

/**
 * A counter's text as C reads a number: leading white space, a sign, digits, and whatever follows is not looked at. No
 * number, or one beyond 64 bits, ends the connection, as it does in torch.
 */
function parseCounter(value: Buffer): bigint {
  const match = /^[ \t\n\v\f\r]*([+-]?)(\d+)/.exec(value.toString("latin1"));
  if (match === null) throw new WireError("ADD to a value that is no number");
  const number = match[1] === "-" ? -BigInt(match[2]!) : BigInt(match[2]!);
  if (BigInt.asIntN(64, number) !== number) throw new WireError("ADD to a number beyond 64 bits");
  return number;
}
