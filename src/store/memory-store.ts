import { Deadline, waitUntil } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { addToCounter, checkKey, checkValue, defaultNamespace, keyPrefix, sameValue } from "./checks.ts";
import type { SetOptions, Store, StoreCallOptions, StoreCapabilities } from "./store.ts";

interface Entry {
  readonly value: Uint8Array;
  /** The client whose end deletes the entry. */
  readonly lease: object | undefined;
}

/** What the clients of one `memoryStores` share: entries, and who waits for a key to exist. */
interface Shared {
  readonly entries: Map<string, Entry>;
  readonly waiters: Map<string, Set<() => void>>;
}

export interface MemoryStoreOptions {
  /** Keys of different namespaces do not meet; default `tensorbus`. */
  readonly namespace?: string;
}

const capabilities: StoreCapabilities = {
  lease: true,
  exactSwap: true,
  maxValueBytes: 2 ** 30,
  maxKeyBytes: 4096,
};

/**
 * Stores within one process: each call of what it returns is a client of the same keys and values. For ranks that live
 * in one process (the memory transport), and for tests; it needs no server and no clean-up.
 */
export function memoryStores(): (options?: MemoryStoreOptions) => Store {
  const shared: Shared = { entries: new Map(), waiters: new Map() };
  return (options = {}) => new MemoryStore(shared, options.namespace ?? defaultNamespace);
}

class MemoryStore implements Store {
  readonly name = "memory";
  readonly capabilities = capabilities;
  readonly namespace: string;
  readonly #prefix: string;
  readonly #shared: Shared;
  /** Ends the waits of this client when it is closed. */
  readonly #waits = new Set<(error: TensorBusError) => void>();
  #closed = false;

  constructor(shared: Shared, namespace: string) {
    this.#prefix = keyPrefix(namespace);
    this.#shared = shared;
    this.namespace = namespace;
  }

  async get(key: string, options?: StoreCallOptions): Promise<Uint8Array | undefined> {
    this.#check("get", [key], options);
    return this.#read(key);
  }

  async set(key: string, value: Uint8Array, options?: SetOptions): Promise<void> {
    this.#check("set", [key], options);
    checkValue(key, value, capabilities);
    this.#write(key, value, options?.leased === true ? this : undefined);
  }

  async compareAndSet(
    key: string,
    expected: Uint8Array | undefined,
    desired: Uint8Array,
    options?: StoreCallOptions,
  ): Promise<{ swapped: boolean; stored: Uint8Array | undefined }> {
    this.#check("compareAndSet", [key], options);
    checkValue(key, desired, capabilities);
    const current = this.#shared.entries.get(this.#full(key));
    const swapped = sameValue(expected, current?.value);
    if (swapped) this.#write(key, desired, current?.lease);
    return { swapped, stored: this.#read(key) };
  }

  async add(key: string, delta: bigint, options?: StoreCallOptions): Promise<bigint> {
    this.#check("add", [key], options);
    const current = this.#shared.entries.get(this.#full(key));
    const sum = addToCounter(key, current?.value, delta);
    this.#write(key, Buffer.from(String(sum)), current?.lease);
    return sum;
  }

  async wait(keys: readonly string[], options?: StoreCallOptions): Promise<void> {
    this.#check("wait", keys, options);
    const deadline = new Deadline(options);
    const missing = keys.filter((key) => !this.#shared.entries.has(this.#full(key)));
    await Promise.all(missing.map((key) => this.#appearance(key, deadline)));
  }

  async delete(key: string, options?: StoreCallOptions): Promise<boolean> {
    this.#check("delete", [key], options);
    return this.#shared.entries.delete(this.#full(key));
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const [key, entry] of this.#shared.entries) {
      if (entry.lease === this) this.#shared.entries.delete(key);
    }
    for (const end of [...this.#waits]) end(closedError());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Resolves when the key is next written. */
  #appearance(key: string, deadline: Deadline): Promise<void> {
    const full = this.#full(key);
    return waitUntil<void>(`waiting for ${key}`, deadline, (resolve, reject) => {
      const { waiters } = this.#shared;
      const waiting = waiters.get(full) ?? new Set();
      waiters.set(full, waiting);
      const written = () => resolve();
      waiting.add(written);
      this.#waits.add(reject);
      return () => {
        this.#waits.delete(reject);
        waiting.delete(written);
        if (waiting.size === 0 && waiters.get(full) === waiting) waiters.delete(full);
      };
    });
  }

  #full(key: string): string {
    return this.#prefix + key;
  }

  #read(key: string): Uint8Array | undefined {
    return this.#shared.entries.get(this.#full(key))?.value.slice();
  }

  #write(key: string, value: Uint8Array, lease: object | undefined): void {
    const full = this.#full(key);
    this.#shared.entries.set(full, { value: Uint8Array.from(value), lease });
    for (const written of [...(this.#shared.waiters.get(full) ?? [])]) written();
  }

  #check(operation: string, keys: readonly string[], options: StoreCallOptions | undefined): void {
    if (this.#closed) throw closedError();
    if (options?.signal?.aborted) {
      throw new TensorBusError("TB_CANCELLED", `${operation} was cancelled`, {
        cause: options.signal.reason,
      });
    }
    for (const key of keys) checkKey(key, capabilities);
  }
}

function closedError(): TensorBusError {
  return new TensorBusError("TB_CLOSED", "the store was closed");
}
