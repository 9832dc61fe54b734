import { type Mapping, type TypedArrayConstructor, viewRange } from "./mapping.ts";
import type { Memory, MemoryKind } from "./memory.ts";

/** Memory that is forgotten without being closed is closed when it is collected. */
const forgotten = new FinalizationRegistry<Mapping>((mapping) => mapping.close());

/** What memory outside of JavaScript's heap has in common, whoever it is shared with. */
export abstract class NativeMemory implements Memory, AsyncDisposable {
  abstract readonly kind: MemoryKind;
  readonly bytes: bigint;
  readonly #mapping: Mapping;

  protected constructor(mapping: Mapping) {
    this.#mapping = mapping;
    this.bytes = mapping.bytes;
    forgotten.register(this, mapping, this);
  }

  /** `TB_CLOSED` after `close`, unless something still retains it. */
  get address(): bigint {
    return this.#mapping.address;
  }
  /** False once it is gone: closed, released by all, and every view collected. */
  get mapped(): boolean {
    return this.#mapping.mapped;
  }
  retain(): void {
    this.#mapping.retain();
  }
  release(): void {
    this.#mapping.release();
  }

  /**
   * A typed array on the memory itself, without a copy: at `offset` bytes, of `length` elements (unless given, all that
   * follow). At most 1 GiB; `RangeError` outside of the memory, `TB_CLOSED` after `close`. It stays valid after `close`.
   */
  view<T extends TypedArrayConstructor>(
    type: T,
    offset: bigint | number = 0,
    length?: number,
  ): InstanceType<T> {
    const range = viewRange(type, this.bytes, offset, length);
    const buffer = range.bytes === 0 ? new ArrayBuffer(0) : this.#mapping.window(range.start, range.bytes);
    return new type(buffer, 0, range.length) as InstanceType<T>;
  }

  /**
   * Gives the memory up. It is unmapped once nothing retains it and every view of it was collected. A second call does
   * nothing.
   */
  close(): void {
    forgotten.unregister(this);
    this.#mapping.close();
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }
}
