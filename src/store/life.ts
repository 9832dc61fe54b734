import { setMaxListeners } from "node:events";
import { Deadline, waitUntil } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import type { StoreCallOptions } from "./store.ts";

/**
 * The life of a store's client: open until it is closed or lost, which then ends every call under way and refuses every
 * later one. A lost client stays lost: what it waited for or wrote may have been missed, so that only its owner can know
 * what to do again.
 */
export class StoreLife {
  readonly #store: string;
  readonly #underWay = new Set<(error: TensorBusError) => void>();
  #end: (() => TensorBusError) | undefined;

  /** `store` names the store in messages. */
  constructor(store: string) {
    this.#store = store;
  }

  get open(): boolean {
    return this.#end === undefined;
  }

  /**
   * Runs one call: refused once ended, failed by its deadline, its signal, or the end of the client. `start` gets a signal
   * that fires as soon as nobody waits for its result any more.
   */
  run<T>(
    what: string,
    options: StoreCallOptions | Deadline | undefined,
    start: (signal: AbortSignal, deadline: Deadline) => Promise<T>,
  ): Promise<T> {
    if (this.#end !== undefined) return Promise.reject(this.#end());
    const deadline = options instanceof Deadline ? options : new Deadline(options);
    return waitUntil<T>(what, deadline, (resolve, reject) => {
      const settled = new AbortController();
      // A call made of hundreds hands its signal on to each of them, which Node.js would take for a leak.
      setMaxListeners(0, settled.signal);
      this.#underWay.add(reject);
      start(settled.signal, deadline).then(resolve, reject);
      return () => {
        this.#underWay.delete(reject);
        settled.abort();
      };
    });
  }

  /**
   * The server is gone, no longer knows this client (`TB_STORE_LOST`), or cannot be understood (`TB_STORE_PROTOCOL`).
   * Only the first end counts.
   */
  lose(cause: unknown, code: "TB_STORE_LOST" | "TB_STORE_PROTOCOL" = "TB_STORE_LOST"): void {
    const why = cause instanceof Error ? cause.message : String(cause);
    this.#finish(() => new TensorBusError(code, `${this.#store} was lost: ${why}`, { cause }));
  }

  /** False if it was closed or lost before. A store that was lost can still be closed: its calls then say so. */
  close(): boolean {
    const wasOpen = this.open;
    if (!wasOpen && this.#end!().code === "TB_CLOSED") return false;
    this.#end = undefined;
    this.#finish(() => new TensorBusError("TB_CLOSED", `the client of ${this.#store} was closed`));
    return wasOpen;
  }

  #finish(end: () => TensorBusError): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    for (const reject of [...this.#underWay]) reject(end());
  }
}
