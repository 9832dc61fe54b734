/**
 * The memory of shared tensors. Large ones have a memfd of their own; small ones share arenas, so that mappings and descriptors
 * grow with bytes and not with tensors.
 */
import { fstatSync } from "node:fs";
import { maxViewBytes } from "../../ffi/view.ts";
import { SharedMemory } from "../../memory/shared-memory.ts";

/** A memfd of this process, seen as one ArrayBuffer if it is not too large for that. */
export class SharedStorage {
  readonly memory: SharedMemory;
  readonly #bytes: number;
  #buffer: ArrayBuffer | undefined;
  #identity: { readonly device: bigint; readonly inode: bigint } | undefined;

  constructor(bytes: number) {
    this.memory = SharedMemory.create(bytes, "tensorbus-tensor");
    this.#bytes = bytes;
  }

  /** What fstat says of the memfd: what the agent compares. */
  identity(): { readonly device: bigint; readonly inode: bigint } {
    if (this.#identity === undefined) {
      const { dev, ino } = fstatSync(this.memory.descriptor!, { bigint: true });
      this.#identity = { device: dev, inode: ino };
    }
    return this.#identity;
  }

  /** That part of it: an ArrayBuffer, and where the part begins there. `RangeError` for more than 1 GiB. */
  window(offset: number, bytes: number): { readonly buffer: ArrayBuffer; readonly offset: number } {
    if (this.#bytes <= maxViewBytes) return { buffer: this.#whole(), offset };
    const buffer = this.memory.view(Uint8Array, offset, bytes).buffer as ArrayBuffer;
    if (bytes > 0) storages.set(buffer, { storage: this, offset });
    return { buffer, offset: 0 };
  }

  /** One that was transferred to another thread is empty here; the memory is not. */
  #whole(): ArrayBuffer {
    if (this.#buffer === undefined || this.#buffer.byteLength !== this.#bytes) {
      this.#buffer = this.memory.view(Uint8Array).buffer as ArrayBuffer;
      storages.set(this.#buffer, { storage: this, offset: 0 });
    }
    return this.#buffer;
  }
}

/** Whose ArrayBuffers these are. A storage lives as long as any of them, since it has the descriptor. */
const storages = new WeakMap<ArrayBufferLike, { readonly storage: SharedStorage; readonly offset: number }>();

/** The storage behind an ArrayBuffer, and the byte of it where the buffer begins; `undefined` for any other buffer. */
export function storageOf(
  buffer: ArrayBufferLike,
): { readonly storage: SharedStorage; readonly offset: number } | undefined {
  return storages.get(buffer);
}

/** A cache line: no two tensors share one. */
const alignment = 64;
const firstArenaBytes = 2 ** 20;
const largestArenaBytes = 2 ** 26;
/** Arenas of which a tensor would take a larger part than this are not for it. */
const largestShare = 1 / 8;

/** Hands out parts of arenas, each new one twice as large as the last. */
export class SharedArenas {
  #arena: { readonly storage: SharedStorage; readonly bytes: number; used: number } | undefined;
  #nextBytes = firstArenaBytes;

  /** That many bytes, zero. `TB_NO_SPACE` if the system has no room for them. */
  allocate(bytes: number): { readonly storage: SharedStorage; readonly offset: number } {
    if (bytes > this.#nextBytes * largestShare) return { storage: new SharedStorage(bytes), offset: 0 };
    const needed = Math.ceil(bytes / alignment) * alignment;
    if (this.#arena === undefined || this.#arena.used + needed > this.#arena.bytes) {
      const size = this.#nextBytes;
      this.#arena = { storage: new SharedStorage(size), bytes: size, used: 0 };
      this.#nextBytes = Math.min(size * 2, largestArenaBytes);
    }
    const offset = this.#arena.used;
    this.#arena.used += needed;
    return { storage: this.#arena.storage, offset };
  }

  /** What comes next begins an arena of its own: the one in use may be of no use any more. */
  leave(): void {
    this.#arena = undefined;
  }
}
