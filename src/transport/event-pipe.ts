import { Socket } from "node:net";

/**
 * The pipe through which native threads wake this event loop. It keeps the process alive only while something holds it:
 * an idle session does not stop a program from ending, a transfer that is awaited does.
 */
export class EventPipe {
  readonly #socket: Socket;
  #holds = 0;

  /** Owns the descriptor. `drain` reads all events that are there; `lost` is called if the pipe itself breaks. */
  constructor(descriptor: number, drain: () => void, lost: (error: Error) => void) {
    this.#socket = new Socket({ fd: descriptor, readable: true, writable: false });
    this.#socket.on("data", drain);
    this.#socket.on("error", lost);
    this.#socket.unref();
  }

  hold(): void {
    if (this.#holds++ === 0) this.#socket.ref();
  }

  unhold(): void {
    if (--this.#holds === 0) this.#socket.unref();
  }

  close(): void {
    this.#socket.removeAllListeners("data");
    this.#socket.destroy();
  }
}
