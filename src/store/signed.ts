import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Deadline } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { addToCounter, checkValue, sameValue } from "./checks.ts";
import { StoreLife } from "./life.ts";
import type { SetOptions, Store, StoreCallOptions, StoreCapabilities } from "./store.ts";

/** A record that stands in the store and was not written by anyone who knows a secret: it is treated as absent. */
export interface IgnoredRecord {
  readonly namespace: string;
  readonly key: string;
  /** `form`: no signed record at all; `generation`: another generation's; `signature`: nobody's who knows a secret. */
  readonly reason: "form" | "generation" | "signature";
}

export interface SignedStoreOptions {
  /**
   * The shared secrets, each of at least 16 bytes: the first signs, each is accepted. During a rotation there are two:
   * first everyone accepts the new one as the second, then everyone signs with it, then the old one goes.
   */
  readonly secrets: readonly Uint8Array[];
  /** Records of another generation of the same job are ignored: 0 to 2^64 - 1, default 0. */
  readonly generation?: bigint;
  /** Is told of every record that was ignored when it was read. */
  readonly onIgnored?: (record: IgnoredRecord) => void;
}

const leastSecretBytes = 16;
// A record: mark, generation (u64 LE), nonce, signature, value.
const mark = Buffer.from("TBS1");
const generationAt = mark.length;
const nonceAt = generationAt + 8;
const nonceBytes = 16;
const signatureAt = nonceAt + nonceBytes;
const signatureBytes = 32;
const valueAt = signatureAt + signatureBytes;

const unreadable = Symbol("unreadable");

/** Looks again at keys that exist, but hold no valid record: no store tells of a change of a key that exists. */
const lookAgainMs = 50;

/**
 * The same store for those who know a secret: values carry an HMAC-SHA-256 over namespace, key, generation and value, and
 * what does not verify is treated as absent. Whoever can write to the store can still delete, or put an older record of
 * the same key and generation back; nothing in a store can prevent that.
 *
 * A nonce makes each record unique, so that `compareAndSet` tells writers of the same value apart on every store
 * (`capabilities.exactSwap`). Counters are signed too: `add` is a loop of compare-and-set, and plain clients of the same
 * store see no number. Closing it closes `store`. `TB_STORE_OPTIONS` for a secret that is too short.
 */
export function signedStore(store: Store, options: SignedStoreOptions): Store {
  for (const secret of options.secrets) {
    if (secret.length >= leastSecretBytes) continue;
    throw new TensorBusError(
      "TB_STORE_OPTIONS",
      `the secret has ${secret.length} bytes; it needs at least ${leastSecretBytes}`,
    );
  }
  if (options.secrets.length === 0)
    throw new TensorBusError("TB_STORE_OPTIONS", "a signed store needs a secret");
  const generation = options.generation ?? 0n;
  if (BigInt.asUintN(64, generation) !== generation) {
    throw new TensorBusError(
      "TB_STORE_OPTIONS",
      `a generation must be a number from 0 to 2^64 - 1, not ${generation}`,
    );
  }
  return new SignedStore(store, { ...options, generation });
}

class SignedStore implements Store {
  readonly name: string;
  readonly namespace: string;
  readonly capabilities: StoreCapabilities;
  readonly #store: Store;
  readonly #options: SignedStoreOptions & { readonly generation: bigint };
  readonly #life: StoreLife;
  /** The end of the last `add` of each key: one process does not compete with itself. */
  readonly #adding = new Map<string, Promise<unknown>>();

  constructor(store: Store, options: SignedStoreOptions & { readonly generation: bigint }) {
    this.#store = store;
    this.#options = options;
    this.name = `signed ${store.name}`;
    this.namespace = store.namespace;
    this.#life = new StoreLife(`the ${this.name} store`);
    const { capabilities } = store;
    const maxValueBytes = capabilities.maxValueBytes - valueAt;
    this.capabilities = { ...capabilities, exactSwap: true, maxValueBytes };
  }

  async get(key: string, options?: StoreCallOptions): Promise<Uint8Array | undefined> {
    const record = await this.#record(key, options);
    return record === unreadable ? undefined : this.#verified(key, record);
  }

  async set(key: string, value: Uint8Array, options?: SetOptions): Promise<void> {
    checkValue(key, value, this.capabilities);
    await this.#store.set(key, this.#sign(key, value), options);
  }

  async compareAndSet(
    key: string,
    expected: Uint8Array | undefined,
    desired: Uint8Array,
    options?: StoreCallOptions,
  ): Promise<{ swapped: boolean; stored: Uint8Array | undefined }> {
    if (expected !== undefined) checkValue(key, expected, this.capabilities);
    checkValue(key, desired, this.capabilities);
    return this.#replace(key, options, (current) => (sameValue(current, expected) ? desired : undefined));
  }

  async add(key: string, delta: bigint, options?: StoreCallOptions): Promise<bigint> {
    const deadline = new Deadline(options);
    return this.#life.run(`add to ${key}`, deadline, async (signal) => {
      const before = this.#adding.get(key) ?? Promise.resolve();
      const turn = before.then(async () => {
        signal.throwIfAborted();
        const replaced = await this.#replace(key, { ...deadline.rest, signal }, (current) =>
          Buffer.from(String(addToCounter(key, current, delta))),
        );
        return BigInt(Buffer.from(replaced.stored!).toString("latin1"));
      });
      const end = turn.catch(() => {});
      this.#adding.set(key, end);
      try {
        return await turn;
      } finally {
        if (this.#adding.get(key) === end) this.#adding.delete(key);
      }
    });
  }

  async wait(keys: readonly string[], options?: StoreCallOptions): Promise<void> {
    const deadline = new Deadline(options);
    return this.#life.run(`wait for ${keys.length} keys`, deadline, async (signal) => {
      const rest = () => ({ ...deadline.rest, signal });
      let missing = keys;
      while (missing.length > 0) {
        await this.#store.wait(missing, rest());
        const seen = await Promise.all(missing.map((key) => this.get(key, rest())));
        missing = missing.filter((_, index) => seen[index] === undefined);
        // Only a forged or stale record, or a key deleted at once, gets here.
        if (missing.length > 0) await sleep(lookAgainMs, undefined, { signal });
      }
    });
  }

  async delete(key: string, options?: StoreCallOptions): Promise<boolean> {
    const deadline = new Deadline(options);
    const was = await this.get(key, deadline.rest);
    return (await this.#store.delete(key, deadline.rest)) && was !== undefined;
  }

  async close(): Promise<void> {
    this.#life.close();
    await this.#store.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Replaces the valid value by what `next` makes of it, unless that is `undefined`; again until nobody was faster. */
  async #replace(
    key: string,
    options: StoreCallOptions | undefined,
    next: (current: Uint8Array | undefined) => Uint8Array | undefined,
  ): Promise<{ swapped: boolean; stored: Uint8Array | undefined }> {
    const deadline = new Deadline(options);
    let record = await this.#record(key, deadline.rest);
    for (;;) {
      if (record === unreadable) {
        // Nobody can expect it underneath: it goes, as what nobody believes may.
        await this.#store.delete(key, deadline.rest);
        record = undefined;
      }
      const current = this.#verified(key, record);
      const value = next(current);
      if (value === undefined) return { swapped: false, stored: current };
      // A record that is ignored is what has to be expected underneath all the same.
      const swap = await this.#store.compareAndSet(key, record, this.#sign(key, value), deadline.rest);
      if (swap.swapped) return { swapped: true, stored: value };
      record = swap.stored;
    }
  }

  /** What stands in the store; a stranger may have made it so long that the store's client gives no such value. */
  async #record(
    key: string,
    options: StoreCallOptions | undefined,
  ): Promise<Uint8Array | undefined | typeof unreadable> {
    try {
      return await this.#store.get(key, options);
    } catch (error) {
      const tooLong =
        error instanceof TensorBusError &&
        error.code === "TB_STORE_VALUE" &&
        "maxValueBytes" in error.details;
      if (!tooLong) throw error;
      this.#options.onIgnored?.({ namespace: this.namespace, key, reason: "form" });
      return unreadable;
    }
  }

  #sign(key: string, value: Uint8Array): Uint8Array {
    const head = Buffer.allocUnsafe(valueAt);
    mark.copy(head);
    head.writeBigUInt64LE(this.#options.generation, generationAt);
    randomBytes(nonceBytes).copy(head, nonceAt);
    this.#signature(this.#options.secrets[0]!, key, head, value).copy(head, signatureAt);
    return Buffer.concat([head, value]);
  }

  /** The value of a record; `undefined` for none, or one that is not to be believed. */
  #verified(key: string, record: Uint8Array | undefined): Uint8Array | undefined {
    if (record === undefined) return undefined;
    const bytes = Buffer.from(record.buffer, record.byteOffset, record.length);
    const reason = this.#distrust(key, bytes);
    if (reason === undefined) return bytes.subarray(valueAt);
    this.#options.onIgnored?.({ namespace: this.namespace, key, reason });
    return undefined;
  }

  #distrust(key: string, record: Buffer): IgnoredRecord["reason"] | undefined {
    if (record.length <= valueAt || !record.subarray(0, mark.length).equals(mark)) return "form";
    const signature = record.subarray(signatureAt, valueAt);
    const known = this.#options.secrets.some((secret) =>
      timingSafeEqual(this.#signature(secret, key, record, record.subarray(valueAt)), signature),
    );
    if (!known) return "signature";
    return record.readBigUInt64LE(generationAt) === this.#options.generation ? undefined : "generation";
  }

  /** Over mark, generation and nonce (which begin `head`), namespace, key and value, each of the texts with its length. */
  #signature(secret: Uint8Array, key: string, head: Buffer, value: Uint8Array): Buffer {
    const hmac = createHmac("sha256", secret).update(head.subarray(0, signatureAt));
    for (const text of [this.namespace, key]) {
      const bytes = Buffer.from(text);
      const length = Buffer.allocUnsafe(4);
      length.writeUInt32LE(bytes.length);
      hmac.update(length).update(bytes);
    }
    return hmac.update(value).digest();
  }
}
