import { TensorBusError } from "../../errors.ts";
import type { Memory } from "../../memory/memory.ts";

/**
 * Plain memory that clients of an embedded agent hand over by number: both live in one process, and nothing is mapped.
 * A number is never given twice.
 */
export class HostRegions {
  readonly #memories = new Map<bigint, Memory>();
  #last = 0n;

  /** The number of the memory, until it is removed. It stays the caller's. */
  add(memory: Memory): bigint {
    this.#last += 1n;
    this.#memories.set(this.#last, memory);
    return this.#last;
  }

  remove(key: bigint): void {
    this.#memories.delete(key);
  }

  /** `TB_TENSOR_MISSING` for a number that stands for no memory any more. */
  get(key: bigint): Memory {
    const memory = this.#memories.get(key);
    if (memory !== undefined) return memory;
    throw new TensorBusError("TB_TENSOR_MISSING", `there is no plain memory with the number ${key}`, {
      details: { key },
    });
  }
}

/** The regions of this process: an agent and the clients that it serves without mapping meet here. */
export const hostRegions = new HostRegions();
