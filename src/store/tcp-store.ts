import { setTimeout as sleep } from "node:timers/promises";
import { Deadline } from "../deadline.ts";
import { explained, TensorBusError } from "../errors.ts";
import { addToCounter, checkKey, checkValue, defaultNamespace, keyPrefix, sameValue } from "./checks.ts";
import { StoreLife } from "./life.ts";
import type { SetOptions, Store, StoreCallOptions, StoreCapabilities } from "./store.ts";
import { type TcpAddress, TcpConnection } from "./tcp-connection.ts";
import { frames, readI64, readU8, readValue, ready, tooLong, WireError, wireLimits } from "./tcp-protocol.ts";

export interface TcpStoreOptions extends StoreCallOptions {
  readonly host: string;
  readonly port: number;
  /** Default `tensorbus`; `""` is the whole store, as a plain torch client sees it. */
  readonly namespace?: string;
  /** Milliseconds that the server may be silent while an answer is due before it counts as lost; default 10,000. */
  readonly silenceMs?: number;
}

const defaultSilenceMs = 10_000;
/** Between attempts to connect: a server that starts later than its clients is found quickly, one far away not flooded. */
const firstRetryMs = 20;
const longestRetryMs = 1000;
/** Connections that waits have left behind are kept for the next ones, this many. */
const idleWaitConnections = 8;
/** The keys of one CHECK or WAIT, at most: far below a server's limits on a request as a whole. */
const listBytes = 8 * 1024 * 1024;

const nothing = Buffer.alloc(0);

/**
 * A client of a TCPStore server, tensorbus's (`serveTcpStore`) or torch's. Tries to connect until its deadline
 * (`timeoutMs`, default 30,000), so that it may start before the server: `TB_CONNECT` then.
 *
 * Keys stand in the server as `/namespace/key`. `capabilities.exactSwap` is false: the protocol answers a compare-and-set
 * with the value that stands afterwards, which is the same for two writers of the same bytes.
 */
export async function tcpStore(options: TcpStoreOptions): Promise<Store> {
  const prefix = keyPrefix(options.namespace ?? defaultNamespace);
  const store = new TcpStore(options, prefix);
  await store[connectFirst](new Deadline(options));
  return store;
}

const connectFirst = Symbol("connectFirst");

class TcpStore implements Store {
  readonly name = "tcp";
  readonly capabilities: StoreCapabilities;
  readonly namespace: string;
  readonly #prefix: string;
  readonly #address: TcpAddress;
  readonly #silenceMs: number;
  readonly #life: StoreLife;
  /** The line of everything but waits; undefined until connected. */
  #main: TcpConnection | undefined;
  /** Lines of waits: a WAIT holds its line until it is answered. */
  readonly #busy = new Set<TcpConnection>();
  readonly #idle: TcpConnection[] = [];
  /** Lines whose wait was given up, until the server has said so. */
  readonly #returning = new Set<Promise<void>>();
  /** Asks for a sign of life while all that is under way is parked in the server. */
  #heartbeat: NodeJS.Timeout | undefined;
  #waits = 0;

  constructor(options: TcpStoreOptions, prefix: string) {
    this.#prefix = prefix;
    this.namespace = options.namespace ?? defaultNamespace;
    this.#address = { host: options.host, port: options.port };
    this.#silenceMs = options.silenceMs ?? defaultSilenceMs;
    this.#life = new StoreLife(`the store at ${options.host}:${options.port}`);
    this.capabilities = {
      lease: false,
      exactSwap: false,
      maxValueBytes: wireLimits.valueBytes,
      maxKeyBytes: wireLimits.keyBytes - Buffer.byteLength(prefix),
    };
  }

  async [connectFirst](deadline: Deadline): Promise<void> {
    const { host, port } = this.#address;
    let last: unknown;
    try {
      await this.#life.run(`connecting to the store at ${host}:${port}`, deadline, async (signal) => {
        for (
          let pauseMs = firstRetryMs;
          this.#main === undefined;
          pauseMs = Math.min(2 * pauseMs, longestRetryMs)
        ) {
          try {
            this.#main = await this.#open(signal);
          } catch (error) {
            signal.throwIfAborted();
            // Something else listens there, and will not become a store by waiting.
            if (error instanceof WireError) throw this.#foreign(error);
            last = explained(error);
            // Nor will descriptors come back by it.
            if (last instanceof TensorBusError) throw last;
            await sleep(pauseMs, undefined, { signal });
          }
        }
      });
    } catch (error) {
      await this.close();
      if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") throw error;
      const why = last instanceof Error ? last.message : "no answer";
      throw new TensorBusError("TB_CONNECT", `no store could be reached at ${host}:${port}: ${why}`, {
        cause: last ?? error,
        details: { host, port },
      });
    }
  }

  async get(key: string, options?: StoreCallOptions): Promise<Uint8Array | undefined> {
    const wire = this.#key(key);
    return this.#life.run(`get of ${key}`, options, () => this.#get(key, wire));
  }

  async set(key: string, value: Uint8Array, options?: SetOptions): Promise<void> {
    const wire = this.#key(key);
    checkValue(key, value, this.capabilities);
    if (options?.leased === true) {
      throw new TensorBusError("TB_UNSUPPORTED", "this store has no leases", { details: { key } });
    }
    // SET has no answer of its own; the PING behind it says that it was done.
    return this.#life.run(`set of ${key}`, options, () => this.#line.ping(frames.set(wire, value)));
  }

  async compareAndSet(
    key: string,
    expected: Uint8Array | undefined,
    desired: Uint8Array,
    options?: StoreCallOptions,
  ): Promise<{ swapped: boolean; stored: Uint8Array | undefined }> {
    const wire = this.#key(key);
    if (expected !== undefined) checkValue(key, expected, this.capabilities);
    checkValue(key, desired, this.capabilities);
    return this.#life.run(`compareAndSet of ${key}`, options, async () => {
      // COMPARE_SET answers `desired` to who stored it and to who found it there, and `expected` for an absent key. The GET
      // before it, in the same write, tells those apart; a server that handles both at once leaves no gap between them.
      const [before, after] = await Promise.all([
        this.#get(key, wire),
        this.#value(key, frames.compareSet(wire, expected ?? nothing, desired)),
      ]);
      if (sameValue(expected, desired)) {
        const stored = before === undefined && sameValue(after, expected) ? undefined : after;
        return { swapped: sameValue(before, desired), stored };
      }
      if (sameValue(after, expected)) return { swapped: false, stored: undefined };
      return { swapped: sameValue(after, desired) && !sameValue(before, desired), stored: after };
    });
  }

  async add(key: string, delta: bigint, options?: StoreCallOptions): Promise<bigint> {
    const wire = this.#key(key);
    return this.#life.run(`add to ${key}`, options, async (signal) => {
      // The server would close the connection over a value that is no number.
      addToCounter(key, await this.#get(key, wire), delta);
      signal.throwIfAborted();
      return this.#line.send(frames.add(wire, BigInt.asIntN(64, delta)), readI64);
    });
  }

  async wait(keys: readonly string[], options?: StoreCallOptions): Promise<void> {
    const lists = this.#lists(keys);
    return this.#life.run(`wait for ${keys.length} keys`, options, async (signal) => {
      for (const list of lists) {
        const answer = await this.#line.send(frames.check(list), readU8);
        signal.throwIfAborted();
        if (answer !== ready) await this.#park(list, signal);
      }
    });
  }

  async delete(key: string, options?: StoreCallOptions): Promise<boolean> {
    const wire = this.#key(key);
    return this.#life.run(`delete of ${key}`, options, async () => {
      return (await this.#line.send(frames.deleteKey(wire), readI64)) > 0n;
    });
  }

  async close(): Promise<void> {
    this.#life.close();
    this.#disconnect(new Error("the client was closed"));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get #line(): TcpConnection {
    return this.#main!;
  }

  async #get(key: string, wire: Buffer): Promise<Buffer | undefined> {
    // An absent key reads as an empty payload, at once; torch's own client waits for the key before it asks.
    const value = await this.#value(key, frames.get(wire));
    return value.length === 0 ? undefined : value;
  }

  /** Asks for a value. One that someone has made longer than any may be fails this call, and no other. */
  async #value(key: string, frame: Buffer): Promise<Buffer> {
    const value = await this.#line.send(frame, readValue);
    if (value !== tooLong) return value;
    const message = `the value of ${key} is longer than ${wireLimits.valueBytes} bytes`;
    throw new TensorBusError("TB_STORE_VALUE", message, {
      details: { key, maxValueBytes: wireLimits.valueBytes },
    });
  }

  /** One WAIT in the server, given up when the signal fires. */
  async #park(list: readonly Buffer[], signal: AbortSignal): Promise<void> {
    this.#beat(1);
    try {
      const connection = await this.#borrow(signal);
      const { answered, over, cancel } = connection.wait(frames.wait(list));
      const returned = over.then(
        () => this.#giveBack(connection),
        () => {},
      );
      const giveUp = () => {
        this.#returning.add(returned);
        returned.then(() => this.#returning.delete(returned));
        cancel();
      };
      signal.addEventListener("abort", giveUp, { once: true });
      if (signal.aborted) giveUp();
      await Promise.race([answered, over]);
      signal.removeEventListener("abort", giveUp);
    } finally {
      this.#beat(-1);
    }
  }

  async #borrow(signal: AbortSignal): Promise<TcpConnection> {
    let connection = this.#idle.pop();
    // One that is about to be free is there sooner than a new one.
    for (const returned of connection === undefined ? [...this.#returning] : []) {
      await returned;
      signal.throwIfAborted();
      connection = this.#idle.pop();
      if (connection !== undefined) break;
    }
    connection ??= await this.#openWaitLine(signal);
    this.#busy.add(connection);
    return connection;
  }

  async #openWaitLine(signal: AbortSignal): Promise<TcpConnection> {
    try {
      return await this.#open(signal);
    } catch (error) {
      if (!signal.aborted) this.#lose(error);
      throw error;
    }
  }

  #giveBack(connection: TcpConnection): void {
    this.#busy.delete(connection);
    if (this.#life.open && this.#idle.length < idleWaitConnections) this.#idle.push(connection);
    else connection.end(new Error("the line is not needed any more"));
  }

  #open(signal: AbortSignal): Promise<TcpConnection> {
    return TcpConnection.open(this.#address, this.#silenceMs, signal, (connection, why) => {
      const idle = this.#idle.indexOf(connection);
      if (idle >= 0) this.#idle.splice(idle, 1);
      if (connection === this.#main || this.#busy.delete(connection)) this.#lose(why);
    });
  }

  #lose(why: unknown): void {
    this.#life.lose(why, why instanceof WireError ? "TB_STORE_PROTOCOL" : "TB_STORE_LOST");
    this.#disconnect(new Error("the store was lost", { cause: why }));
  }

  #foreign(cause: WireError): TensorBusError {
    const { host, port } = this.#address;
    const message = `the server at ${host}:${port} is not a TCPStore: ${cause.message}`;
    return new TensorBusError("TB_STORE_PROTOCOL", message, { cause, details: { host, port } });
  }

  #disconnect(why: Error): void {
    clearInterval(this.#heartbeat);
    for (const connection of [this.#main, ...this.#busy, ...this.#idle]) connection?.end(why);
  }

  /** Parked waits expect no bytes, so that a host that has gone silent would go unnoticed: PINGs do expect an answer. */
  #beat(change: 1 | -1): void {
    this.#waits += change;
    if (change === -1 && this.#waits === 0) clearInterval(this.#heartbeat);
    if (change === 1 && this.#waits === 1) {
      this.#heartbeat = setInterval(() => {
        if (this.#line.pending === 0) this.#line.ping().catch(() => {});
      }, this.#silenceMs / 2);
    }
  }

  #key(key: string): Buffer {
    checkKey(key, this.capabilities);
    return Buffer.from(this.#prefix + key);
  }

  /** The keys in lists that a server takes. */
  #lists(keys: readonly string[]): Buffer[][] {
    const lists: Buffer[][] = [];
    let bytes = Number.POSITIVE_INFINITY;
    for (const key of keys) {
      const wire = this.#key(key);
      bytes += wire.length + 8;
      if (bytes > listBytes || lists.at(-1)!.length === wireLimits.keys) {
        lists.push([]);
        bytes = wire.length + 8;
      }
      lists.at(-1)!.push(wire);
    }
    return lists;
  }
}
