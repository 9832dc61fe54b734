/**
 * Waiting for room in a full queue without asking again and again: who waits leaves the name of its wake semaphore in the
 * queue, in the transaction that found it full; who makes room posts them all, after its own has been committed.
 */

import { isPrivateName } from "../process/names.ts";
import { type Bell, openBell } from "../process/semaphore.ts";
import { type BinaryDatabase, keyOf, rangeOf } from "./environment.ts";

export class RoomWaits {
  readonly #database: BinaryDatabase;
  readonly #kind: number;
  readonly #registered = new Set<bigint>();
  readonly #bells = new Map<string, Bell>();

  /** Those who wait stand under keys of that kind. */
  constructor(database: BinaryDatabase, kind: number) {
    this.#database = database;
    this.#kind = kind;
  }

  /** Inside of a write transaction that found no room. */
  add(client: bigint, wake: string): void {
    this.#database.put(keyOf(this.#kind, client), Buffer.from(wake));
    this.#registered.add(client);
  }

  /** Inside of a write transaction that found room, for the last one of this client that waited. */
  served(client: bigint): void {
    if (this.#registered.delete(client)) this.remove(client);
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

  close(): void {
    for (const bell of this.#bells.values()) bell.close();
    this.#bells.clear();
  }
}
