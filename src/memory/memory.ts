/**
 * Memory that transports and kernels can address. What the seam knows of it: a kind, an address, a size. Who owns it and
 * how long it lives is the implementation's matter (`HostMemory`, `SharedMemory`).
 */
export type MemoryKind = "host" | "shared" | "cuda";

export interface Memory {
  readonly kind: MemoryKind;
  /** The first byte, as an address of this process; stable for as long as `retain` holds it. */
  readonly address: bigint;
  readonly bytes: bigint;
  /** Keeps the memory mapped until the matching `release`; a transport retains what it registered. */
  retain(): void;
  release(): void;
}

/** One local tensor: where its first element lies, and how its elements lie from there. */
export interface TensorMemory {
  readonly memory: Memory;
  /** Bytes from the start of the memory to element (0, …, 0); a multiple of the element size. */
  readonly offset: bigint;
}
