import { closeSync } from "node:fs";
import { nativeKernels } from "../ffi/kernels.ts";
import { Mapping } from "./mapping.ts";
import { NativeMemory } from "./native-memory.ts";

/**
 * Memory that other processes can map: a memfd, sealed against shrinking and growing, its space reserved, so that no
 * access through any mapping of it can fail.
 */
export class SharedMemory extends NativeMemory {
  readonly kind = "shared";
  readonly #descriptor: number | undefined;
  #closed = false;

  private constructor(mapping: Mapping, descriptor: number | undefined) {
    super(mapping);
    this.#descriptor = descriptor;
  }

  /**
   * That many bytes, zero. `name` is what `/proc/PID/maps` shows. `TB_NO_SPACE` if the system has no room for them,
   * `TB_REGION` for a size out of range.
   */
  static create(bytes: bigint | number, name = "tensorbus"): SharedMemory {
    const size = BigInt(bytes);
    const [descriptor, address] = nativeKernels.tb_shared_create(name, size);
    const release = { unmap: nativeKernels.tb_shared_unmap, closed: () => closeSync(descriptor) };
    return new SharedMemory(new Mapping(address, size, release), descriptor);
  }

  /**
   * Maps the first `bytes` of a memfd, which may be another process's. The descriptor stays the caller's, who may close
   * it at once. `TB_SEAL` if it is smaller, or may still shrink.
   */
  static map(descriptor: number, bytes: bigint | number): SharedMemory {
    const size = BigInt(bytes);
    const address = nativeKernels.tb_shared_map(descriptor, size);
    return new SharedMemory(new Mapping(address, size, { unmap: nativeKernels.tb_shared_unmap }), undefined);
  }

  /** The memfd of memory that was created here, open until `close`; `undefined` after it, and for what was mapped. */
  get descriptor(): number | undefined {
    return this.#closed ? undefined : this.#descriptor;
  }

  override close(): void {
    this.#closed = true;
    super.close();
  }
}
