import { TensorBusError } from "../errors.ts";
import { maxViewBytes, viewOf } from "../ffi/view.ts";

/** The typed arrays that memory can be seen as. 16- and 8-bit floats are seen as integers of their size. */
export type TypedArrayConstructor =
  | Uint8ArrayConstructor
  | Int8ArrayConstructor
  | Uint8ClampedArrayConstructor
  | Uint16ArrayConstructor
  | Int16ArrayConstructor
  | Uint32ArrayConstructor
  | Int32ArrayConstructor
  | Float32ArrayConstructor
  | Float64ArrayConstructor
  | BigInt64ArrayConstructor
  | BigUint64ArrayConstructor;

/** What the end of a mapping means. Neither refers to the memory object, or that would never be collected. */
interface MappingRelease {
  readonly unmap: (address: bigint, bytes: bigint) => void;
  /** At once when it is closed, even if it stays mapped. */
  readonly closed?: () => void;
}

/**
 * Pages of this process that are not JavaScript's own. They are unmapped when their owner has closed them, nobody
 * retains them, and no ArrayBuffer on them is left: an access through a view never meets memory that went away.
 */
export class Mapping {
  readonly #address: bigint;
  readonly #bytes: bigint;
  readonly #release: MappingRelease;
  #retained = 0;
  #views = 0;
  #closed = false;
  #mapped = true;

  constructor(address: bigint, bytes: bigint, release: MappingRelease) {
    this.#address = address;
    this.#bytes = bytes;
    this.#release = release;
  }

  get bytes(): bigint {
    return this.#bytes;
  }
  /** `TB_CLOSED` once it was closed and nobody retains it, whether or not views keep it mapped. */
  get address(): bigint {
    this.#check();
    return this.#address;
  }
  get mapped(): boolean {
    return this.#mapped;
  }

  retain(): void {
    this.#check();
    this.#retained++;
  }
  release(): void {
    if (this.#retained === 0) throw new TypeError("this memory was released more often than it was retained");
    this.#retained--;
    this.#unmapIfUnused();
  }
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#release.closed?.();
    this.#unmapIfUnused();
  }

  /** A window of at most 1 GiB. Its bounds were checked. */
  window(offset: bigint, bytes: number): ArrayBuffer {
    this.#check();
    this.#views++;
    return viewOf(this.#address + offset, bytes, () => {
      this.#views--;
      this.#unmapIfUnused();
    });
  }

  #check(): void {
    if (this.#closed && this.#retained === 0) throw new TensorBusError("TB_CLOSED", "this memory was closed");
  }
  #unmapIfUnused(): void {
    if (this.#mapped && this.#closed && this.#retained === 0 && this.#views === 0) {
      this.#mapped = false;
      this.#release.unmap(this.#address, this.#bytes);
    }
  }
}

/** Says where a view lies in memory of that many bytes; `RangeError` if JavaScript's own views would say so. */
export function viewRange(
  type: TypedArrayConstructor,
  total: bigint,
  offset: bigint | number,
  length: number | undefined,
): { readonly start: bigint; readonly bytes: number; readonly length: number } {
  const item = type.BYTES_PER_ELEMENT;
  const start = BigInt(offset);
  if (start < 0n || start > total || start % BigInt(item) !== 0n) {
    throw new RangeError(`a ${type.name} cannot begin at byte ${start} of a memory of ${total} bytes`);
  }
  const rest = (total - start) / BigInt(item);
  const elements = length ?? Number(rest);
  if (!Number.isSafeInteger(elements) || elements < 0 || BigInt(elements) > rest) {
    throw new RangeError(
      `a ${type.name} of ${elements} elements at byte ${start} does not fit into a memory of ${total} bytes`,
    );
  }
  if (elements * item > maxViewBytes) {
    throw new RangeError(
      `a view of ${elements * item} bytes; windows of at most ${maxViewBytes} are to be had`,
    );
  }
  return { start, bytes: elements * item, length: elements };
}
