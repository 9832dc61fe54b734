/**
 * An agent's way to the others: the store, and the session of the transport. A store that is lost takes the session with it;
 * if the agent knows how to open another one, it goes on with that.
 */
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Deadline, type DeadlineOptions, waitUntil } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import { createExecutor, type Executor } from "../../exec/executor.ts";
import type { Store, StoreCallOptions } from "../../store/store.ts";
import type { Transport, TransportEvent, TransportSession } from "../../transport/transport.ts";
import { Presence } from "./presence.ts";
import { type Distrust, Rendezvous } from "./rendezvous.ts";

/** A store, and what closes it and all that was opened with it: what `openStore` gives. */
interface StoreHandle {
  readonly store: Store;
  close(): Promise<void>;
}

/** Opens a store. It is asked again once that one was lost. */
export type StoreFactory = (options: StoreCallOptions) => Store | StoreHandle | Promise<Store | StoreHandle>;

export interface UplinkOptions {
  readonly rank: number;
  readonly world: number;
  readonly generation: bigint;
  /** That of the agent before it on its paths, which is known to have ended. */
  readonly predecessor?: bigint | undefined;
  /** A store of the caller's is never closed here, and not replaced when it is lost. */
  readonly store: Store | StoreFactory;
  readonly transport: Transport;
  readonly distrust?: Distrust | undefined;
  readonly onTransport: (event: TransportEvent) => void;
  /** The store is gone: all that was agreed over it has ended. Resolves when nothing uses the session any more. */
  readonly onLost: (error: TensorBusError) => Promise<void>;
  readonly onFound: (connection: StoreConnection) => void;
}

export interface StoreConnection {
  readonly store: Store;
  /** Closes a store that was opened here. */
  readonly closeStore: () => Promise<void>;
  readonly rendezvous: Rendezvous;
  readonly presence: Presence;
  /** The life of the store: another one if it has forgotten what stood in it. */
  readonly life: string;
  readonly session: TransportSession;
  readonly executor: Executor;
}

const firstRetryMs = 50;
const longestRetryMs = 2000;

export class Uplink implements AsyncDisposable {
  readonly #options: UplinkOptions;
  readonly #stop = new AbortController();
  readonly #waiting = new Set<() => void>();
  #connection: StoreConnection | undefined;
  #lost: TensorBusError | undefined;
  #watching: Promise<void> = Promise.resolve();

  private constructor(options: UplinkOptions) {
    this.#options = options;
  }

  static async open(options: UplinkOptions, deadline: DeadlineOptions): Promise<Uplink> {
    const uplink = new Uplink(options);
    uplink.#use(await uplink.#connect(new Deadline(deadline)));
    return uplink;
  }

  /** `TB_STORE_LOST` while there is no store. */
  get connection(): StoreConnection {
    if (this.#connection !== undefined) return this.#connection;
    throw this.#lost ?? closedError();
  }

  /** `undefined` while there is no store. */
  get current(): StoreConnection | undefined {
    return this.#connection;
  }

  isConnected(connection: StoreConnection): boolean {
    return this.#connection === connection;
  }

  /** The connection, as soon as there is one again. */
  async connected(options: DeadlineOptions): Promise<StoreConnection> {
    if (this.#connection !== undefined) return this.#connection;
    if (typeof this.#options.store !== "function" || this.#stop.signal.aborted)
      throw this.#lost ?? closedError();
    try {
      return await waitUntil<StoreConnection>("finding a store", new Deadline(options), (resolve) => {
        const look = () => {
          if (this.#connection !== undefined) resolve(this.#connection);
        };
        this.#waiting.add(look);
        return () => this.#waiting.delete(look);
      });
    } catch (error) {
      const late = error instanceof TensorBusError && error.code === "TB_TIMEOUT";
      throw late ? (this.#lost ?? error) : error;
    }
  }

  /** All that used it has been released. */
  async close(): Promise<void> {
    if (this.#stop.signal.aborted) return;
    this.#stop.abort();
    const connection = this.#connection;
    this.#connection = undefined;
    // An answer that is being given is taken back with the others.
    await this.#watching;
    if (connection !== undefined) await this.#leave(connection);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #connect(deadline: Deadline): Promise<StoreConnection> {
    const { rank, world, generation, predecessor, transport, onTransport, distrust } = this.#options;
    const given = this.#options.store;
    const opened =
      typeof given === "function" ? await given(deadline.rest) : { store: given, close: async () => {} };
    const store = "store" in opened ? opened.store : opened;
    const closeStore = () => opened.close();
    let session: TransportSession | undefined;
    try {
      const rendezvous = new Rendezvous(store, distrust);
      const presence = new Presence(rendezvous, { rank, generation });
      await presence.claim(predecessor, deadline.rest);
      session = await transport.open({ rank, world, store, ...deadline.rest });
      session.events$.subscribe(onTransport);
      const life = await lifeOf(store, deadline);
      return { store, closeStore, rendezvous, presence, life, session, executor: createExecutor(session) };
    } catch (error) {
      await session?.close().catch(() => {});
      await closeStore();
      throw error;
    }
  }

  #use(connection: StoreConnection): void {
    this.#connection = connection;
    this.#lost = undefined;
    this.#watching = this.#watch(connection);
    for (const look of [...this.#waiting]) look();
  }

  async #watch(connection: StoreConnection): Promise<void> {
    const { signal } = this.#stop;
    try {
      await connection.presence.answer(signal);
    } catch (error) {
      if (!signal.aborted) await this.#lose(connection, error);
    }
  }

  async #lose(connection: StoreConnection, cause: unknown): Promise<void> {
    const why = cause instanceof Error ? cause.message : String(cause);
    const error = new TensorBusError("TB_STORE_LOST", `the store was lost: ${why}`, {
      details: { rank: this.#options.rank },
      cause,
    });
    this.#lost = error;
    this.#connection = undefined;
    await this.#options.onLost(error);
    await connection.session.close().catch(() => {});
    if (typeof this.#options.store !== "function") return;
    await connection.closeStore().catch(() => {});
    void this.#find();
  }

  async #find(): Promise<void> {
    const { signal } = this.#stop;
    for (let pauseMs = firstRetryMs; !signal.aborted; pauseMs = Math.min(2 * pauseMs, longestRetryMs)) {
      try {
        const connection = await this.#connect(new Deadline({ signal }));
        if (signal.aborted) {
          await this.#leave(connection);
          return;
        }
        this.#use(connection);
        this.#options.onFound(connection);
        return;
      } catch {
        await sleep(pauseMs, undefined, { signal }).catch(() => {});
      }
    }
  }

  async #leave({ session, closeStore, presence }: StoreConnection): Promise<void> {
    // A session that does not come to rest keeps its memory. What others read of this rank goes all the same, and the
    // connection to the store, which would keep this process alive.
    await session
      .close()
      .finally(() => presence.leave())
      .finally(closeStore);
  }
}

function closedError(): TensorBusError {
  return new TensorBusError("TB_CLOSED", "the agent was closed");
}

/** A random number that the first agent of all has written there. */
async function lifeOf(store: Store, deadline: Deadline): Promise<string> {
  const own = randomBytes(16);
  const { stored } = await store.compareAndSet("bus/life", undefined, own, deadline.rest);
  return Buffer.from(stored ?? own).toString("hex");
}
