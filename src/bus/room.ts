/**
 * Waiting for room in a full queue without asking again and again: who waits leaves the name of its wake semaphore in the
 * queue, in the transaction that found it full; who makes room posts them all, after its own has been committed.
 */
import { type Deadline, type DeadlineOptions, waitUntil } from "../deadline.ts";
import { type BinaryDatabase, keyOf, rangeOf } from "./environment.ts";
import type { Port } from "./port.ts";
import { type Bell, isPrivateName, openBell, type Waker } from "./semaphore.ts";

/** Tries once; false where there is no room yet. Aborted, it does nothing any more. */
export type Attempt = (options: DeadlineOptions) => Promise<boolean>;

interface Wait {
  readonly attempt: () => Promise<boolean>;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

export class RoomWaits {
  readonly #database: BinaryDatabase;
  readonly #kind: number;
  readonly #port: Port;
  readonly #waits: Wait[] = [];
  readonly #registered = new Set<bigint>();
  readonly #bells = new Map<string, Bell>();
  #serving = false;
  #wokenAgain = false;

  /** Those who wait stand under keys of that kind. */
  constructor(database: BinaryDatabase, kind: number, port: Port) {
    this.#database = database;
    this.#kind = kind;
    this.#port = port;
  }

  /** Somebody of this process waits: whoever comes now goes behind. */
  get isWaitedFor(): boolean {
    return this.#waits.length > 0;
  }

  /** Inside of a write transaction that found no room. */
  add(client: bigint, wake: string): void {
    this.#database.put(keyOf(this.#kind, client), Buffer.from(wake));
    this.#registered.add(client);
  }

  /** Inside of a write transaction that found room: nobody needs to be told any more, if this was the last to wait. */
  served(client: bigint): void {
    if (this.#waits.length > 1 || !this.#registered.delete(client)) return;
    this.remove(client);
  }

  /** Inside of a write transaction. */
  remove(client: bigint): void {
    this.#database.remove(keyOf(this.#kind, client));
  }

  /** Inside of any transaction: the wake semaphores of all who wait. */
  names(): string[] {
    return [...this.#database.getRange(rangeOf(this.#kind))]
      .map(({ value }) => value.toString())
      .filter(isPrivateName);
  }

  /** Posts them. One that is gone has nobody left to wake. */
  tell(names: readonly string[]): void {
    for (const name of names) {
      try {
        let bell = this.#bells.get(name);
        if (bell === undefined) {
          bell = openBell(name);
          this.#bells.set(name, bell);
        }
        bell.ring();
      } catch {
        // Its process has ended and its name is removed, or it was never ours to post.
      }
    }
    for (const [name, bell] of this.#bells) {
      if (names.includes(name)) continue;
      bell.close();
      this.#bells.delete(name);
    }
  }

  /** Resolves when an attempt has succeeded, those who waited before going first. What it rejects with did not happen. */
  wait(waker: Waker, attempt: Attempt, deadline: Deadline): Promise<void> {
    return waitUntil<void>("room in the command queue", deadline, (resolve, reject) => {
      const abort = new AbortController();
      const wait: Wait = {
        attempt: () => attempt({ ...deadline.rest, signal: abort.signal }),
        resolve: () => resolve(),
        reject,
      };
      const letGo = this.#port.hold();
      const stopListening = waker.onWake(() => void this.#serve());
      this.#waits.push(wait);
      return () => {
        abort.abort();
        this.#waits.splice(this.#waits.indexOf(wait), 1);
        stopListening();
        letGo();
      };
    });
  }

  close(): void {
    for (const bell of this.#bells.values()) bell.close();
    this.#bells.clear();
  }

  async #serve(): Promise<void> {
    if (this.#serving) {
      this.#wokenAgain = true;
      return;
    }
    this.#serving = true;
    do {
      this.#wokenAgain = false;
      await this.#serveInTurn();
    } while (this.#wokenAgain);
    this.#serving = false;
  }

  async #serveInTurn(): Promise<void> {
    for (let wait = this.#waits[0]; wait !== undefined; wait = this.#waits[0]) {
      try {
        if (!(await wait.attempt())) return;
        wait.resolve();
      } catch (error) {
        wait.reject(error);
      }
    }
  }
}
