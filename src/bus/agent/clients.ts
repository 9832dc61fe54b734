/**
 * The agent's view of its clients. Each has written itself into the queue and holds a lock; a native thread waits for that
 * lock, so that a client's death is known at once, and what it left behind goes with it.
 */

import type { EventPort } from "../process/event-port.ts";
import { clientOffset, type Watch, watchLock } from "../process/liveness.ts";
import { unlinkSemaphore } from "../process/semaphore.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import type { CommandQueue } from "../queue/command-queue.ts";
import type { State } from "../queue/state.ts";

interface ClientKeeperOptions {
  readonly queue: CommandQueue;
  readonly state: State;
  readonly port: EventPort;
  /**
   * A client has ended, or has taken its leave: its rounds are to be cancelled, its memory to be given back. Its
   * semaphore, results and places in the queue are gone already.
   */
  readonly onGone: (client: ClientIdentity) => void;
  /** The clients that could not be cleaned up; each is tried again at the next change. */
  readonly onFault: (error: unknown) => void;
}

interface Kept {
  readonly client: ClientIdentity;
  readonly watch: Watch;
}

export class ClientKeeper implements Disposable {
  readonly #options: ClientKeeperOptions;
  readonly #kept = new Map<bigint, Kept>();

  constructor(options: ClientKeeperOptions) {
    this.#options = options;
  }

  /** The clients that live, as far as is known. */
  get clients(): readonly ClientIdentity[] {
    return [...this.#kept.values()].map(({ client }) => client);
  }

  /** Looks at who has come and gone: at the agent's start, and whenever the queue says that it has changed. */
  update(): void {
    const { queue, port } = this.#options;
    const registered = new Map(queue.clients().map((client) => [client.id, client]));
    for (const [id, kept] of [...this.#kept]) {
      if (!registered.has(id)) this.#leave(kept);
    }
    for (const [id, client] of registered) {
      if (this.#kept.has(id)) continue;
      // One that has ended meanwhile is noticed by its watch, like any other.
      const watch = watchLock(port, queue.environment.locksPath, clientOffset(id), () => void this.#bury(id));
      this.#kept.set(id, { client, watch });
    }
  }

  close(): void {
    for (const { watch } of this.#kept.values()) watch.close();
    this.#kept.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** It took its leave: it has removed its own semaphore. */
  #leave(kept: Kept): void {
    kept.watch.close();
    this.#kept.delete(kept.client.id);
    void this.#forget(kept.client);
    this.#options.onGone(kept.client);
  }

  async #bury(id: bigint): Promise<void> {
    const kept = this.#kept.get(id);
    if (kept === undefined) return;
    kept.watch.close();
    this.#kept.delete(id);
    try {
      unlinkSemaphore(kept.client.wake);
      await this.#options.queue.unregister(id);
      await this.#options.queue.environment.readerCheck();
      await this.#options.state.environment.readerCheck();
    } catch (error) {
      this.#options.onFault(error);
    }
    await this.#forget(kept.client);
    this.#options.onGone(kept.client);
  }

  async #forget(client: ClientIdentity): Promise<void> {
    const { state, onFault } = this.#options;
    try {
      await state.write("forgetting a client's results", () => state.removeClient(client.id));
    } catch (error) {
      onFault(error);
    }
  }
}
