/** The socket beside the door over which clients hand their descriptors to the agent: `native/src/host/handover.c`. */
import { closeSync } from "node:fs";
import { nativeBus } from "../../ffi/bus.ts";

/** Descriptors in one hand-over, at most: `TB_HANDOVER_MAX`. */
export const descriptorsPerHandOver = 253;

export class DescriptorSocket implements Disposable {
  readonly #heartbeat: string;
  #handle: bigint | undefined;

  /** `heartbeat`: the name of the agent's own, which clients are lent. */
  constructor(path: string, mode: number, heartbeat: string) {
    this.#heartbeat = heartbeat;
    this.#handle = nativeBus.tb_handover_open(path, mode);
  }

  /** A client of that user may come with this secret of 16 bytes. */
  expect(secret: Uint8Array, uid: number): void {
    nativeBus.tb_handover_expect(this.#handle!, secret, uid);
  }

  /** Ends the client's connection, if it has one. */
  forget(secret: Uint8Array): void {
    if (this.#handle !== undefined) nativeBus.tb_handover_forget(this.#handle, secret);
  }

  /**
   * The descriptors of some of its hand-overs, one behind the other; the caller's to close. `TB_TENSOR_MISSING` if one has
   * not come, `TB_PROTOCOL` if something else has.
   */
  take(secret: Uint8Array, first: number, count: number): number[] {
    const taken: number[] = [];
    const some = new Int32Array(descriptorsPerHandOver);
    try {
      for (let number = first; number < first + count; number++) {
        const found = nativeBus.tb_handover_take(
          this.#handle!,
          secret,
          BigInt(number),
          some,
          descriptorsPerHandOver,
        );
        taken.push(...some.subarray(0, found));
      }
    } catch (error) {
      closeDescriptors(taken);
      throw error;
    }
    return taken;
  }

  /** Sends the client a read-only descriptor of the heartbeat. `TB_PROTOCOL` if it has not come. */
  lend(secret: Uint8Array): void {
    nativeBus.tb_handover_lend(this.#handle!, secret, this.#heartbeat);
  }

  close(): void {
    const handle = this.#handle;
    this.#handle = undefined;
    if (handle !== undefined) nativeBus.tb_handover_close(handle);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

export function closeDescriptors(descriptors: readonly number[]): void {
  for (const descriptor of descriptors) closeSync(descriptor);
}
