/**
 * The order of one client's commands. An attempt that has to wait, for the write lock or for room, holds up all that come
 * after it, so that none overtakes.
 */
import { type Deadline, type DeadlineOptions, waitUntil } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { EventPort } from "../process/event-port.ts";
import type { Waker } from "../process/semaphore.ts";

/** Tries once; false if there is no room. Aborted, it does nothing any more. */
type Attempt = (options: DeadlineOptions) => Promise<boolean>;

interface Waiting {
  readonly blocking: boolean;
  readonly attempt: () => Promise<boolean>;
  readonly resolve: () => void;
  readonly reject: (error: unknown) => void;
}

interface ClientOrderOptions {
  readonly port: EventPort;
  /** The error that is thrown if there is no room. */
  readonly full: () => TensorBusError;
}

export class ClientOrder {
  readonly #port: EventPort;
  readonly #full: () => TensorBusError;
  readonly #waiting: Waiting[] = [];
  #serving = false;
  #wokenAgain = false;
  #waitsForRoom = false;

  constructor(options: ClientOrderOptions) {
    this.#port = options.port;
    this.#full = options.full;
  }

  /** Nobody waits: a new attempt may try by itself first. */
  get isEmpty(): boolean {
    return this.#waiting.length === 0;
  }

  get length(): number {
    return this.#waiting.length;
  }

  /**
   * Resolves when an attempt has succeeded, those who came before going first. Without `blocking` it waits for its turn,
   * but not for room. What it rejects with did not happen. `waker` tells that there may be room.
   */
  async pass(waker: Waker, attempt: Attempt, blocking: boolean, deadline: Deadline): Promise<void> {
    if (!blocking && this.#waitsForRoom) throw this.#full();
    try {
      await this.#wait(waker, attempt, blocking, deadline);
    } catch (error) {
      const waitedForRoom =
        error instanceof TensorBusError && error.code === "TB_TIMEOUT" && this.#waitsForRoom;
      throw waitedForRoom ? this.#full() : error;
    } finally {
      if (this.isEmpty) this.#waitsForRoom = false;
    }
  }

  #wait(waker: Waker, attempt: Attempt, blocking: boolean, deadline: Deadline): Promise<void> {
    return waitUntil<void>("queueing a command", deadline, (resolve, reject) => {
      const abort = new AbortController();
      const waiting: Waiting = {
        blocking,
        attempt: () => attempt({ ...deadline.rest, signal: abort.signal }),
        resolve: () => resolve(),
        reject,
      };
      const letGo = this.#port.hold();
      const stopListening = waker.onWake(() => void this.#serve());
      this.#waiting.push(waiting);
      if (!this.#waitsForRoom) void this.#serve();
      return () => {
        abort.abort();
        this.#waiting.splice(this.#waiting.indexOf(waiting), 1);
        stopListening();
        letGo();
      };
    });
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
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      try {
        if (await first.attempt()) {
          this.#waitsForRoom = false;
          first.resolve();
          continue;
        }
      } catch (error) {
        this.#rejectAll(first, error);
        continue;
      }
      for (const each of this.#waiting.filter(({ blocking }) => !blocking)) each.reject(this.#full());
      if (this.#waiting[0] !== first) continue;
      this.#waitsForRoom = true;
      return;
    }
  }

  /** Calls that waited behind a write that was stuck have waited as long. */
  #rejectAll(first: Waiting, error: unknown): void {
    const stuck = error instanceof TensorBusError && error.code === "TB_QUEUE_STUCK";
    for (const each of stuck ? [...this.#waiting] : [first]) each.reject(error);
  }
}
