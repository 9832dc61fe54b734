import { setTimeout as sleep } from "node:timers/promises";
import { Deadline } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { addToCounter, checkKey, checkValue, defaultNamespace, keyPrefix } from "./checks.ts";
import { checkAnswer, deleteAnswer, type EtcdKeyValue, rangeAnswer, swapAnswer } from "./etcd-answers.ts";
import {
  EtcdGateway,
  type EtcdMessage,
  EtcdRefusal,
  type EtcdTls,
  EtcdUnreachable,
  isLeaseGone,
  isUnauthenticated,
} from "./etcd-gateway.ts";
import { EtcdLease } from "./etcd-lease.ts";
import { EtcdWaits } from "./etcd-waits.ts";
import { StoreLife } from "./life.ts";
import type { SetOptions, Store, StoreCallOptions, StoreCapabilities } from "./store.ts";

export interface EtcdStoreOptions extends StoreCallOptions {
  /** `http://host:port` or `https://host:port`: one or several members of one cluster. */
  readonly endpoints: readonly string[];
  /** Default `tensorbus`. */
  readonly namespace?: string;
  /** Seconds that leased keys outlive a writer that died; default 10. etcd may round it up. */
  readonly leaseSeconds?: number;
  /** For clusters with authentication. The role needs to read and write the keys under `/namespace/`. */
  readonly auth?: { readonly username: string; readonly password: string };
  readonly tls?: EtcdTls;
  /** Milliseconds that an endpoint may take to answer before the next one is asked; default 10,000. */
  readonly silenceMs?: number;
  /** The most bytes of a value; default 1 MiB, which etcd's own default limit on a request (1.5 MiB) leaves room for. */
  readonly maxValueBytes?: number;
}

/** Longer than an election of a leader, and than etcd's own patience with a request (7 s). */
const defaultSilenceMs = 10_000;
const defaultLeaseSeconds = 10;
const defaultMaxValueBytes = 2 ** 20;
const maxKeyBytes = 8 * 1024;
/** A longer one could not be renewed in time: timers count milliseconds in 31 bits. */
const maxLeaseSeconds = 20 * 24 * 3600;
const firstRetryMs = 20;
const longestRetryMs = 1000;
/** How long closing tries to give the lease back; it runs out by itself all the same. */
const revokeMs = 2000;

/**
 * A client of an etcd v3 cluster, over the JSON gateway that each member serves beside gRPC on its client port. Tries to
 * reach one until its deadline (`timeoutMs`, default 30,000): `TB_CONNECT` then; `TB_AUTH` for a wrong password.
 *
 * Reads and waits go on with another endpoint when one fails; a change that was under way does not, since nobody can know
 * whether it was made: the client is lost then, as it is without endpoints, or without its lease.
 */
export async function etcdStore(options: EtcdStoreOptions): Promise<Store> {
  if (options.endpoints.length === 0)
    throw new TensorBusError("TB_STORE_OPTIONS", "etcd needs at least one endpoint");
  const { leaseSeconds = defaultLeaseSeconds } = options;
  if (!(leaseSeconds > 0 && leaseSeconds <= maxLeaseSeconds)) {
    const message = `a lease must last more than 0 and at most ${maxLeaseSeconds} seconds (20 days), not ${leaseSeconds}`;
    throw new TensorBusError("TB_STORE_OPTIONS", message, { details: { leaseSeconds, maxLeaseSeconds } });
  }
  const store = new EtcdStore(options, keyPrefix(options.namespace ?? defaultNamespace));
  await store[connectFirst](new Deadline(options));
  return store;
}

const connectFirst = Symbol("connectFirst");

class EtcdStore implements Store {
  readonly name = "etcd";
  readonly capabilities: StoreCapabilities;
  readonly namespace: string;
  readonly #endpoints: readonly string[];
  readonly #prefix: string;
  readonly #life: StoreLife;
  readonly #gateway: EtcdGateway;
  readonly #lease: EtcdLease;
  readonly #waits: EtcdWaits;

  constructor(options: EtcdStoreOptions, prefix: string) {
    const silenceMs = options.silenceMs ?? defaultSilenceMs;
    const maxValueBytes = options.maxValueBytes ?? defaultMaxValueBytes;
    this.capabilities = { lease: true, exactSwap: true, maxValueBytes, maxKeyBytes };
    this.namespace = options.namespace ?? defaultNamespace;
    this.#endpoints = options.endpoints;
    this.#prefix = prefix;
    this.#life = new StoreLife(`the etcd at ${options.endpoints.join(", ")}`);
    this.#gateway = new EtcdGateway({ ...options, silenceMs });
    const lose = (error: unknown) => this.#lose(error);
    this.#lease = new EtcdLease(this.#gateway, options.leaseSeconds ?? defaultLeaseSeconds, lose);
    this.#waits = new EtcdWaits(this.#gateway, this.#encode(""), silenceMs / 2, lose);
  }

  async [connectFirst](deadline: Deadline): Promise<void> {
    let last: unknown;
    try {
      await this.#life.run("connecting to etcd", deadline, async (signal) => {
        for (let pauseMs = firstRetryMs; ; pauseMs = Math.min(2 * pauseMs, longestRetryMs)) {
          try {
            await this.#gateway.ask("/v3/kv/range", { key: this.#encode(""), count_only: true }, signal);
            return;
          } catch (error) {
            if (!(error instanceof EtcdUnreachable)) throw asStoreError(error);
            last = error;
            await sleep(pauseMs, undefined, { signal });
          }
        }
      });
    } catch (error) {
      await this.close();
      if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") throw error;
      const why = last instanceof Error ? last.message : "no answer";
      const message = `no etcd could be reached at ${this.#endpoints.join(", ")}: ${why}`;
      throw new TensorBusError("TB_CONNECT", message, {
        cause: last ?? error,
        details: { endpoints: this.#endpoints },
      });
    }
  }

  async get(key: string, options?: StoreCallOptions): Promise<Uint8Array | undefined> {
    const name = this.#key(key);
    return this.#call(`get of ${key}`, options, async (signal) => {
      const current = await this.#read(name, signal);
      return current && bytesOf(current.value);
    });
  }

  async set(key: string, value: Uint8Array, options?: SetOptions): Promise<void> {
    const put = { key: this.#key(key), value: this.#value(key, value) };
    return this.#call(`set of ${key}`, options, async (signal) => {
      const lease = options?.leased === true ? { lease: await this.#lease.id() } : {};
      await this.#gateway.change("/v3/kv/put", { ...put, ...lease }, signal);
    });
  }

  async compareAndSet(
    key: string,
    expected: Uint8Array | undefined,
    desired: Uint8Array,
    options?: StoreCallOptions,
  ): Promise<{ swapped: boolean; stored: Uint8Array | undefined }> {
    const name = this.#key(key);
    const value = this.#value(key, desired);
    const compare =
      expected === undefined
        ? { key: name, target: "CREATE", result: "EQUAL", create_revision: "0" }
        : { key: name, target: "VALUE", result: "EQUAL", value: this.#value(key, expected) };
    return this.#call(`compareAndSet of ${key}`, options, async (signal) => {
      const { swapped, current } = await this.#swap(
        compare,
        { key: name, value },
        expected !== undefined,
        signal,
      );
      return { swapped, stored: swapped ? Uint8Array.from(desired) : current && bytesOf(current.value) };
    });
  }

  async add(key: string, delta: bigint, options?: StoreCallOptions): Promise<bigint> {
    const name = this.#key(key);
    return this.#call(`add to ${key}`, options, async (signal) => {
      let current = await this.#read(name, signal);
      for (;;) {
        const sum = addToCounter(key, current && bytesOf(current.value), delta);
        const put = { key: name, value: this.#encode64(Buffer.from(String(sum))) };
        const revision = String(current?.mod_revision ?? 0n);
        const compare = { key: name, target: "MOD", result: "EQUAL", mod_revision: revision };
        const swap = await this.#swap(compare, put, current !== undefined, signal);
        if (swap.swapped) return sum;
        current = swap.current;
      }
    });
  }

  async wait(keys: readonly string[], options?: StoreCallOptions): Promise<void> {
    const names = keys.map((key) => this.#key(key));
    return this.#call(`wait for ${keys.length} keys`, options, (signal) => this.#waits.wait(names, signal));
  }

  async delete(key: string, options?: StoreCallOptions): Promise<boolean> {
    const name = this.#key(key);
    return this.#call(`delete of ${key}`, options, async (signal) => {
      const answer = await this.#gateway.change("/v3/kv/deleterange", { key: name }, signal);
      return checkAnswer(deleteAnswer, "deleterange", answer).deleted > 0;
    });
  }

  async close(): Promise<void> {
    const wasOpen = this.#life.close();
    const lease = this.#lease.end();
    if (wasOpen) await lease(AbortSignal.timeout(revokeMs)).catch(() => {});
    this.#gateway.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #read(name: string, signal: AbortSignal): Promise<EtcdKeyValue | undefined> {
    const answer = await this.#gateway.ask("/v3/kv/range", { key: name }, signal);
    return checkAnswer(rangeAnswer, "range", answer).kvs[0];
  }

  /** Puts if the comparison holds; else says what stands there. The put keeps the lease of a key that `exists`. */
  async #swap(
    compare: EtcdMessage,
    put: EtcdMessage,
    exists: boolean,
    signal: AbortSignal,
  ): Promise<{ swapped: boolean; current: EtcdKeyValue | undefined }> {
    const answer = await this.#gateway.change(
      "/v3/kv/txn",
      {
        compare: [compare],
        success: [{ request_put: exists ? { ...put, ignore_lease: true } : put }],
        failure: [{ request_range: { key: put.key } }],
      },
      signal,
    );
    const { succeeded, responses } = checkAnswer(swapAnswer, "txn", answer);
    if (succeeded) return { swapped: true, current: undefined };
    return { swapped: false, current: responses[0]?.response_range?.kvs[0] };
  }

  /** One call; what makes the client as a whole useless ends it for every call. */
  #call<T>(
    what: string,
    options: StoreCallOptions | undefined,
    start: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    return this.#life.run(what, options, async (signal) => {
      try {
        return await start(signal);
      } catch (error) {
        if (!signal.aborted && (error instanceof EtcdUnreachable || isLeaseGone(error))) this.#lose(error);
        throw asStoreError(error);
      }
    });
  }

  #lose(error: unknown): void {
    this.#life.lose(error);
    this.#lease.end();
    this.#gateway.close();
  }

  #key(key: string): string {
    checkKey(key, this.capabilities);
    return this.#encode(key);
  }

  #encode(key: string): string {
    return this.#encode64(Buffer.from(this.#prefix + key));
  }

  #value(key: string, value: Uint8Array): string {
    checkValue(key, value, this.capabilities);
    return this.#encode64(value);
  }

  #encode64(bytes: Uint8Array): string {
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("base64");
  }
}

function bytesOf(base64: string): Uint8Array {
  return Buffer.from(base64, "base64");
}

/** Errors leave as `TensorBusError`: what etcd refused without a reason of the caller's is outside of what is asked here. */
function asStoreError(error: unknown): unknown {
  if (!(error instanceof EtcdRefusal)) return error;
  return new TensorBusError(
    isUnauthenticated(error) ? "TB_AUTH" : "TB_STORE_PROTOCOL",
    `etcd refused: ${error.message}`,
    {
      cause: error,
      details: { code: error.code },
    },
  );
}
