/** The place where the native threads of the bus report to an event loop: a pipe that Node.js watches, and the tokens behind it. */
import { Socket } from "node:net";
import { nativeBus } from "../../ffi/bus.ts";

/**
 * One for each event loop that takes part in the bus. It keeps the event loop alive only while somebody holds it, so that
 * an idle client never keeps its process from ending.
 */
export class EventPort implements AsyncDisposable {
  readonly handle: bigint;
  readonly #socket: Socket;
  readonly #listeners = new Map<bigint, () => void>();
  #lastToken = 0n;
  #holders = 0;
  #closed = false;

  constructor() {
    const [handle, fd] = nativeBus.tb_port_open();
    this.handle = handle;
    // The bytes that are read are thrown away: one small buffer serves for ever.
    const onread = { buffer: Buffer.alloc(64), callback: () => this.#drain() };
    const options = { fd, readable: true, writable: false, onread };
    this.#socket = new Socket(options);
    this.#socket.unref();
  }

  /** A new token, and what is called on this event loop each time that it is raised. */
  listen(listener: () => void): bigint {
    this.#lastToken += 1n;
    this.#listeners.set(this.#lastToken, listener);
    return this.#lastToken;
  }

  unlisten(token: bigint): void {
    this.#listeners.delete(token);
  }

  /** Keeps the event loop alive until the returned function is called. */
  hold(): () => void {
    if (this.#holders++ === 0) this.#socket.ref();
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      if (--this.#holders === 0) this.#socket.unref();
    };
  }

  /** All that reports to it has been closed; else `TB_BUSY`. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    nativeBus.tb_port_close(this.handle);
    this.#closed = true;
    const gone = new Promise<void>((resolve) => this.#socket.once("close", () => resolve()));
    this.#socket.destroy();
    await gone;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #drain(): boolean {
    while (!this.#closed) {
      const [token, found] = nativeBus.tb_port_next(this.handle);
      if (found === 0) break;
      this.#listeners.get(token)?.();
    }
    return true;
  }
}

/** Opens a port on this thread's event loop. `TB_SYSTEM` if the process has no descriptors left. */
export function openEventPort(): EventPort {
  return new EventPort();
}
