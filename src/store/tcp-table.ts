import { ShardedMap } from "./sharded-map.ts";
import { WireError, wireLimits } from "./tcp-protocol.ts";
import {
  appended,
  counterOf,
  heldBytes,
  isEqual,
  LargeValue,
  type StoredValue,
  storedValue,
} from "./tcp-value.ts";

/** Someone who waits for keys to exist: `missing` are those that have not come, `wake` is called once none is left. */
export interface Waiter {
  readonly missing: Set<string>;
  readonly wake: () => void;
}

/** What an entry of the table takes beside its key and its value: measured with millions of them, and rounded up. */
const entryOverheadBytes = 160;
/** What a key that someone waits for takes beside its text. */
export const awaitedKeyBytes = 512;

/** A write would exceed the memory that the table may take. */
export class TableFull extends Error {
  override readonly name = "TableFull";
}

/** Values of one key, for one taker each: the oldest is taken first, in the same time however many there are. */
interface Queue {
  values: StoredValue[];
  first: number;
}

/**
 * What a TCPStore server holds: values, queues, and who waits. Semantics are those of torch's libuv server, op by op
 * (`docs/stores.md`). Keys are text of one character a byte.
 */
export class StoreTable {
  readonly #maxBytes: number;
  readonly #values = new ShardedMap<StoredValue>();
  readonly #queues = new ShardedMap<Queue>();
  readonly #waiters = new ShardedMap<Set<Waiter>>();
  #bytes = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** Bytes that the contents take, overhead included, and values that were replaced while they are sent to someone. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Keys with a value; queues are not counted. */
  get size(): number {
    return this.#values.size;
  }

  /** All keys with a value, at most as many and as long as one request may name. */
  keys(maxBytes: number): string[] {
    if (this.size > wireLimits.keys) throw new WireError(`LIST_KEYS has ${this.size} keys`);
    const keys: string[] = [];
    let bytes = 0;
    for (const key of this.#values.keys()) {
      bytes += key.length;
      if (bytes > maxBytes) throw new WireError(`LIST_KEYS has more than ${maxBytes} bytes`);
      keys.push(key);
    }
    return keys;
  }

  /** The value, for an answer: `endUse` says that it was sent. */
  use(key: string): StoredValue | undefined {
    const value = this.#values.get(key);
    if (value instanceof LargeValue) value.use();
    return value;
  }

  endUse(value: StoredValue): void {
    if (value instanceof LargeValue && value.endUse()) this.#bytes -= value.heldBytes;
  }

  set(key: string, value: StoredValue): void {
    this.#write(key, value);
    this.#wakeAll(key);
  }

  /** The value that stands afterwards. An absent key takes `desired` only for an empty `expected`, which is else the answer. */
  compareSet(key: string, expected: Buffer, desired: Buffer): StoredValue {
    const current = this.#values.get(key);
    if (current === undefined && expected.length > 0) return storedValue(expected);
    if (current !== undefined && !isEqual(current, expected)) return this.use(key)!;
    this.#write(key, storedValue(desired));
    if (current === undefined) this.#wakeAll(key);
    return this.use(key)!;
  }

  add(key: string, delta: bigint): bigint {
    const sum = this.#increment(key, delta);
    this.#wakeAll(key);
    return sum;
  }

  append(key: string, bytes: Buffer): void {
    const current = this.#values.get(key);
    if (current === undefined) this.#write(key, storedValue(bytes));
    else {
      const grown = appended(current, bytes);
      if (grown !== current) this.#write(key, grown);
    }
    this.#wakeAll(key);
  }

  delete(key: string): boolean {
    const value = this.#values.get(key);
    if (value === undefined) return false;
    this.#values.delete(key);
    this.#bytes -= key.length + entryOverheadBytes;
    this.#letGo(value);
    return true;
  }

  /** A key with a value, or with a queue that is not empty. */
  has(key: string): boolean {
    return this.#values.has(key) || this.#queues.has(key);
  }

  pushQueue(key: string, bytes: Buffer): void {
    const value = storedValue(bytes);
    this.#take(key.length + entryOverheadBytes + heldBytes(value));
    const queue = this.#queues.get(key);
    if (queue === undefined) this.#queues.set(key, { values: [value], first: 0 });
    else queue.values.push(value);
    // A queued value is for one taker, so one waiter hears of it: the one that has waited longest.
    const [first] = this.#waiters.get(key) ?? [];
    if (first !== undefined) this.#arrived(key, first);
  }

  /** The length of the queue before, and its oldest value, which is the caller's: `endUse` says that it was sent. */
  popQueue(key: string): { length: number; value: StoredValue | undefined } {
    const queue = this.#queues.get(key);
    if (queue === undefined) return { length: 0, value: undefined };
    const length = queue.values.length - queue.first;
    const value = queue.values[queue.first]!;
    queue.values[queue.first] = "";
    queue.first += 1;
    if (length === 1) this.#queues.delete(key);
    else if (queue.first > 1024 && 2 * queue.first > queue.values.length) {
      queue.values = queue.values.slice(queue.first);
      queue.first = 0;
    }
    this.#bytes -= key.length + entryOverheadBytes;
    if (typeof value === "string") this.#bytes -= heldBytes(value);
    return { length, value };
  }

  queueLength(key: string): number {
    const queue = this.#queues.get(key);
    return queue === undefined ? 0 : queue.values.length - queue.first;
  }

  /** Counts one arrival in the counter `key`; true if with it all have arrived, and whoever waits for the key is woken. */
  arrive(key: string, worldSize: bigint): boolean {
    const complete = this.#increment(key, 1n) >= worldSize;
    if (complete) this.#wakeAll(key);
    return complete;
  }

  /** Calls `wake` once the key has come, and all others that `waiter.missing` names, from which those that come go. */
  park(key: string, waiter: Waiter): void {
    const waiting = this.#waiters.get(key);
    if (waiting === undefined) this.#waiters.set(key, new Set([waiter]));
    else waiting.add(waiter);
  }

  /** Keys that someone waits for. */
  get awaitedKeys(): number {
    return this.#waiters.size;
  }

  #increment(key: string, delta: bigint): bigint {
    const current = this.#values.get(key);
    const sum = BigInt.asIntN(64, (current === undefined ? 0n : counterOf(current)) + delta);
    this.#write(key, String(sum));
    return sum;
  }

  #write(key: string, value: StoredValue): void {
    const current = this.#values.get(key);
    if (current === undefined) this.#take(key.length + entryOverheadBytes + heldBytes(value));
    else {
      // The old value may be on its way to someone; then both are held.
      const goes = typeof current === "string" || current.isLastUse;
      this.#take(heldBytes(value), goes ? heldBytes(current) : 0);
      this.#letGo(current);
    }
    this.#values.set(key, value);
  }

  /** The table no longer stores the value. */
  #letGo(value: StoredValue): void {
    if (typeof value === "string") this.#bytes -= heldBytes(value);
    else this.endUse(value);
  }

  /** Counts `bytes`; `freed` of what is counted goes with the same step. */
  #take(bytes: number, freed = 0): void {
    if (bytes > freed && this.#bytes + bytes - freed > this.#maxBytes) {
      throw new TableFull(`the store holds ${this.#bytes} bytes, and at most ${this.#maxBytes} are allowed`);
    }
    this.#bytes += bytes;
  }

  #wakeAll(key: string): void {
    for (const waiter of [...(this.#waiters.get(key) ?? [])]) this.#arrived(key, waiter);
  }

  #arrived(key: string, waiter: Waiter): void {
    waiter.missing.delete(key);
    this.unpark(key, waiter);
    if (waiter.missing.size === 0) waiter.wake();
  }

  unpark(key: string, waiter: Waiter): void {
    const waiting = this.#waiters.get(key);
    waiting?.delete(waiter);
    if (waiting?.size === 0) this.#waiters.delete(key);
  }
}
