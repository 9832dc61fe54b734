/**
 * A store server and the connections of its clients. What a client asks arrives some time later, takes effect at once, and
 * is answered some time later; it may take effect and never be answered. The server can be slow, stop, end, and come back
 * with or without what it held.
 */
import { Deadline, waitUntil } from "../../../src/deadline.ts";
import { TensorBusError } from "../../../src/errors.ts";
import { addToCounter, checkKey, checkValue, sameValue } from "../../../src/store/checks.ts";
import type { SetOptions, Store, StoreCallOptions, StoreCapabilities } from "../../../src/store/store.ts";
import type { Random } from "../../kit/random.ts";
import type { Process, Scheduler } from "./scheduler.ts";

interface StoreServerOptions {
  readonly scheduler: Scheduler;
  readonly random: Random;
  /** Milliseconds of one way, at least and at most. */
  readonly latencyMs: readonly [number, number];
  /** Keys can vanish with their writer. */
  readonly lease: boolean;
  /** Milliseconds after which a client, or a server, of which nothing is heard is lost. */
  readonly silenceMs: number;
}

interface Entry {
  readonly value: Uint8Array;
  readonly lease: StoreClient | undefined;
}

interface Waiter {
  readonly client: StoreClient;
  readonly missing: Set<string>;
  readonly answer: () => void;
}

const refusedMs = 5;

export class StoreServer {
  readonly options: StoreServerOptions;
  readonly entries = new Map<string, Entry>();
  readonly clients = new Set<StoreClient>();
  /** How often it has forgotten everything: numbers of batches begin anew then. */
  life = 0;
  /** Each way takes so many times as long. */
  slowness = 1;
  state: "up" | "stalled" | "down" = "up";
  readonly #waiters = new Set<Waiter>();
  /** Those that wait for a key, in the order in which they came. */
  readonly #waitersOf = new Map<string, Set<Waiter>>();
  /** What happens once something is written. */
  readonly #armed: { readonly what: string; readonly run: () => void }[] = [];
  /** What has come while it was stalled. */
  readonly #parked: (() => void)[] = [];

  constructor(options: StoreServerOptions) {
    this.options = options;
  }

  get waiting(): number {
    return this.#waiters.size;
  }

  /** A connection of a process; fails while the server is down. */
  async open(process: Process, options: StoreCallOptions): Promise<StoreClient> {
    const { scheduler } = this.options;
    return waitUntil<StoreClient>("connecting with the store", new Deadline(options), (resolve, reject) => {
      const timer = scheduler.after(refusedMs, () => {
        if (this.state === "up") {
          const client = new StoreClient(this, process);
          this.clients.add(client);
          resolve(client);
        } else if (this.state === "down") {
          reject(new TensorBusError("TB_CONNECT", "nobody listens at the store's address"));
        }
      });
      return () => timer.cancel();
    });
  }

  stall(): void {
    if (this.state === "up") this.state = "stalled";
  }

  goOn(): void {
    if (this.state !== "stalled") return;
    this.state = "up";
    for (const run of this.#parked.splice(0)) run();
  }

  /** The server's process ends, and all connections with it. */
  end(): void {
    this.state = "down";
    this.#parked.length = 0;
    this.#waiters.clear();
    this.#waitersOf.clear();
    for (const client of [...this.clients]) client.lose("the server has ended");
    this.clients.clear();
  }

  /** It is there again, with what it held or with nothing. */
  start(keeps: boolean): void {
    if (this.state === "stalled") this.goOn();
    this.state = "up";
    if (keeps) return;
    this.entries.clear();
    this.life += 1;
  }

  /** A connection is no more: what was bound to it goes, and nobody waits on it. */
  drop(client: StoreClient): void {
    if (!this.clients.delete(client)) return;
    for (const [key, { lease }] of this.entries) if (lease === client) this.entries.delete(key);
    for (const waiter of this.#waiters) if (waiter.client === client) this.#stopWaiting(waiter);
  }

  /** Something that a client has said arrives. */
  receive(client: StoreClient, act: () => void): void {
    if (this.state === "down" || !this.clients.has(client)) return;
    if (this.state === "stalled") this.#parked.push(() => this.receive(client, act));
    else act();
  }

  /** What stands there, for all who read it. */
  read(key: string): Uint8Array | undefined {
    return this.entries.get(key)?.value;
  }

  /** Something happens right after the next record of that kind has been written. */
  upon(what: string, run: () => void): void {
    this.#armed.push({ what, run });
  }

  write(key: string, value: Uint8Array, lease: StoreClient | undefined): void {
    if (this.#armed.length > 0) this.#fire(key);
    this.entries.set(key, { value: new Uint8Array(value), lease });
    const waiters = this.#waitersOf.get(key);
    if (waiters === undefined) return;
    this.#waitersOf.delete(key);
    for (const waiter of waiters) {
      waiter.missing.delete(key);
      if (waiter.missing.size > 0) continue;
      this.#waiters.delete(waiter);
      waiter.answer();
    }
  }

  #fire(key: string): void {
    const parts = key.split("/");
    const armed = this.#armed.find(({ what }) => parts.at(-1) === what || parts.at(-2) === what);
    if (armed === undefined) return;
    this.#armed.splice(this.#armed.indexOf(armed), 1);
    this.options.scheduler.afterFor(undefined, 0, armed.run);
  }

  wait(client: StoreClient, keys: readonly string[], answer: () => void): () => void {
    const missing = new Set(keys.filter((key) => !this.entries.has(key)));
    if (missing.size === 0) {
      answer();
      return () => {};
    }
    const waiter = { client, missing, answer };
    this.#waiters.add(waiter);
    for (const key of missing) {
      const known = this.#waitersOf.get(key);
      if (known === undefined) this.#waitersOf.set(key, new Set([waiter]));
      else known.add(waiter);
    }
    return () => this.#stopWaiting(waiter);
  }

  #stopWaiting(waiter: Waiter): void {
    if (!this.#waiters.delete(waiter)) return;
    for (const key of waiter.missing) {
      const others = this.#waitersOf.get(key);
      others?.delete(waiter);
      if (others?.size === 0) this.#waitersOf.delete(key);
    }
  }

  wayMs(): number {
    const { random, latencyMs } = this.options;
    const [least, most] = latencyMs;
    return this.slowness * (least + ((most - least) * random.integer(0, 1000)) / 1000);
  }
}

export class StoreClient implements Store {
  readonly name = "virtual";
  readonly namespace = "simulation";
  readonly capabilities: StoreCapabilities;
  readonly #server: StoreServer;
  readonly #process: Process;
  readonly #pending = new Set<(error: TensorBusError) => void>();
  #error: TensorBusError | undefined;
  /** Which ways are cut. */
  #cut = { there: false, back: false };
  /** What is held up by a cut, in its order. */
  readonly #held: (() => void)[] = [];

  constructor(server: StoreServer, process: Process) {
    const { lease } = server.options;
    this.capabilities = { lease, exactSwap: true, maxValueBytes: 2 ** 20, maxKeyBytes: 4096 };
    this.#server = server;
    this.#process = process;
  }

  get process(): Process {
    return this.#process;
  }

  get(key: string, options?: StoreCallOptions): Promise<Uint8Array | undefined> {
    return this.#ask(`get ${key}`, [key], options, () => this.#server.read(key));
  }

  async set(key: string, value: Uint8Array, options?: SetOptions): Promise<void> {
    checkValue(key, value, this.capabilities);
    const lease = options?.leased === true ? this : undefined;
    await this.#ask(`set ${key}`, [key], options, () => this.#server.write(key, value, lease));
  }

  async compareAndSet(
    key: string,
    expected: Uint8Array | undefined,
    desired: Uint8Array,
    options?: StoreCallOptions,
  ): Promise<{ swapped: boolean; stored: Uint8Array | undefined }> {
    checkValue(key, desired, this.capabilities);
    return this.#ask(`compare and set ${key}`, [key], options, () => {
      const current = this.#server.entries.get(key);
      const swapped = sameValue(expected, current?.value);
      if (swapped) this.#server.write(key, desired, current?.lease);
      return { swapped, stored: this.#server.read(key) };
    });
  }

  add(key: string, delta: bigint, options?: StoreCallOptions): Promise<bigint> {
    return this.#ask(`add to ${key}`, [key], options, () => {
      const current = this.#server.entries.get(key);
      const sum = addToCounter(key, current?.value, delta);
      this.#server.write(key, Buffer.from(String(sum)), current?.lease);
      return sum;
    });
  }

  wait(keys: readonly string[], options?: StoreCallOptions): Promise<void> {
    this.#check(keys);
    return waitUntil<void>(`waiting for ${keys.join()}`, new Deadline(options), (resolve, reject) => {
      let stop = () => {};
      let isOver = false;
      this.#pending.add(reject);
      this.#travel("there", () => {
        if (!isOver) stop = this.#server.wait(this, keys, () => this.#travel("back", () => resolve()));
      });
      return () => {
        isOver = true;
        this.#pending.delete(reject);
        stop();
      };
    });
  }

  delete(key: string, options?: StoreCallOptions): Promise<boolean> {
    return this.#ask(`delete ${key}`, [key], options, () => this.#server.entries.delete(key));
  }

  async close(): Promise<void> {
    if (this.#error !== undefined) return;
    this.#error = new TensorBusError("TB_CLOSED", "the store was closed");
    for (const end of [...this.#pending]) end(this.#error);
    this.#travel("there", () => this.#server.drop(this));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** The connection breaks; its process learns of it. */
  lose(why: string): void {
    const { scheduler } = this.#server.options;
    this.#server.drop(this);
    scheduler.afterFor(this.#process, this.#server.wayMs(), () => {
      if (this.#error !== undefined) return;
      this.#error = new TensorBusError("TB_STORE_LOST", why);
      for (const end of [...this.#pending]) end(this.#error);
    });
  }

  /** Nothing goes those ways; after long enough, each end takes the other for lost. */
  cut(ways: { readonly there: boolean; readonly back: boolean }): void {
    this.#cut = { ...ways };
    const { scheduler, silenceMs } = this.#server.options;
    scheduler.afterFor(undefined, silenceMs, () => {
      if (this.#cut.there || this.#cut.back) this.lose("the store is silent");
    });
  }

  mend(): void {
    this.#cut = { there: false, back: false };
    for (const goOn of this.#held.splice(0)) goOn();
  }

  #ask<T>(
    what: string,
    keys: readonly string[],
    options: StoreCallOptions | undefined,
    act: () => T,
  ): Promise<T> {
    try {
      this.#check(keys);
    } catch (error) {
      return Promise.reject(error);
    }
    return waitUntil<T>(what, new Deadline(options), (resolve, reject) => {
      this.#pending.add(reject);
      this.#travel("there", () => {
        let answer: () => void;
        try {
          const value = act();
          answer = () => resolve(value);
        } catch (error) {
          answer = () => reject(error);
        }
        this.#travel("back", answer);
      });
      return () => this.#pending.delete(reject);
    });
  }

  #travel(way: "there" | "back", arrive: () => void): void {
    const { scheduler } = this.#server.options;
    if (way === "there") {
      const arrived = () => this.#server.receive(this, arrive);
      scheduler.afterFor(undefined, this.#server.wayMs(), () => {
        if (this.#cut.there) this.#held.push(arrived);
        else arrived();
      });
      return;
    }
    scheduler.afterFor(this.#process, this.#server.wayMs(), () => {
      if (this.#cut.back) this.#held.push(() => scheduler.afterFor(this.#process, 0, arrive));
      else arrive();
    });
  }

  #check(keys: readonly string[]): void {
    if (this.#error !== undefined) throw this.#error;
    for (const key of keys) checkKey(key, this.capabilities);
  }
}
