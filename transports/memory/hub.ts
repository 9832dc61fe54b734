import { createHub, destroyHub } from "../../src/ffi/session.ts";

/** The native hub of one transport: there while a session is, so that an unused transport holds nothing. */
export class SharedHub {
  #handle = 0n;
  #sessions = 0;

  /** Hands the hub to `make`, with what it must call, once, when its session is gone. */
  open<T>(make: (hub: bigint, closed: () => void) => T): T {
    if (this.#sessions === 0) this.#handle = createHub();
    this.#sessions += 1;
    try {
      return make(this.#handle, () => this.#release());
    } catch (error) {
      this.#release();
      throw error;
    }
  }

  #release(): void {
    this.#sessions -= 1;
    if (this.#sessions === 0) destroyHub(this.#handle);
  }
}
