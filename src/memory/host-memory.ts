import { TensorBusError } from "../errors.ts";
import { nativeKernels } from "../ffi/kernels.ts";
import { addressOf } from "../ffi/koffi.ts";
import { Mapping } from "./mapping.ts";
import type { Memory } from "./memory.ts";
import { NativeMemory } from "./native-memory.ts";

/** Pages of this process alone: zero, not taken from the system before they are touched. */
export class HostMemory extends NativeMemory {
  readonly kind = "host";

  /** That many bytes, page-aligned. `TB_NO_MEMORY`, `TB_REGION` for a size out of range. */
  static allocate(bytes: bigint | number): HostMemory {
    const size = BigInt(bytes);
    const address = nativeKernels.tb_host_allocate(size);
    return new HostMemory(new Mapping(address, size, { unmap: nativeKernels.tb_host_free }));
  }

  /** See `BufferMemory`. */
  static over(bytes: ArrayBufferLike | ArrayBufferView): BufferMemory {
    return new BufferMemory(bytes);
  }
}

/**
 * A caller's ArrayBuffer, or what a view shows of one, as memory. It is held by reference, and lives as long as this
 * object or whoever retains it. It must keep its place: a resizable or detached buffer is a `TypeError`, and one that was
 * detached later (transferred to another thread) is `TB_REGION` when its address is asked for; so is an empty one.
 */
export class BufferMemory implements Memory {
  readonly kind = "host";
  readonly bytes: bigint;
  readonly #view: Uint8Array;
  readonly #address: bigint;

  constructor(bytes: ArrayBufferLike | ArrayBufferView) {
    const view = ArrayBuffer.isView(bytes)
      ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)
      : new Uint8Array(bytes);
    const buffer = view.buffer as { resizable?: boolean; growable?: boolean };
    if (buffer.resizable || buffer.growable) {
      throw new TypeError("a resizable ArrayBuffer cannot be the memory of a tensor: it may move or shrink");
    }
    if (view.byteLength === 0) {
      throw new TensorBusError("TB_REGION", "an empty ArrayBuffer cannot be the memory of a tensor");
    }
    this.#view = view;
    this.#address = addressOf(view);
    this.bytes = BigInt(view.byteLength);
  }

  get address(): bigint {
    // A detached buffer's views are empty.
    if (this.#view.byteLength === 0) {
      throw new TensorBusError("TB_REGION", "the ArrayBuffer behind this memory was detached");
    }
    return this.#address;
  }
  retain(): void {
    held.set(this, (held.get(this) ?? 0) + 1);
  }
  release(): void {
    const count = held.get(this) ?? 0;
    if (count === 0) throw new TypeError("this memory was released more often than it was retained");
    if (count === 1) held.delete(this);
    else held.set(this, count - 1);
  }
}

/** What is retained must not be collected, even if the caller forgets it: C holds its address. */
const held = new Map<BufferMemory, number>();
