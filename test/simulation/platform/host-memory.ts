/** In place of `src/memory/host-memory.ts`: bytes of this heap, under addresses that nothing else has. */
import type { Memory } from "../../../src/memory/memory.ts";

const pageBytes = 4096n;
let nextAddress = pageBytes;

export class HostMemory implements Memory {
  readonly kind = "host";
  readonly address: bigint;
  readonly bytes: bigint;
  readonly #content: Uint8Array;
  #users = 1;

  private constructor(bytes: bigint) {
    this.bytes = bytes;
    this.address = nextAddress;
    nextAddress += ((bytes + pageBytes - 1n) / pageBytes + 1n) * pageBytes;
    this.#content = new Uint8Array(Number(bytes));
  }

  static allocate(bytes: bigint | number): HostMemory {
    return new HostMemory(BigInt(bytes));
  }

  /** Nothing may touch it once its last user has let go of it. */
  get content(): Uint8Array {
    if (this.#users > 0) return this.#content;
    throw new Error("memory was touched after it had been freed");
  }

  get isFree(): boolean {
    return this.#users === 0;
  }

  retain(): void {
    this.#users += 1;
  }

  release(): void {
    if (this.#users === 0) throw new TypeError("this memory was released more often than it was retained");
    this.#users -= 1;
  }

  close(): void {
    this.release();
  }
}
