import { TensorBusError } from "../../errors.ts";
import {
  cudaAllocate,
  cudaClose,
  cudaExport,
  cudaFree,
  cudaOpen,
  cudaRead,
  cudaWrite,
  ipcHandleBytes,
  parseUuid,
} from "../../ffi/cuda.ts";
import type { Memory } from "../memory.ts";

/** Says where memory of a GPU lies, for another process of the same host: a legacy IPC handle of its allocation. */
export interface CudaIpcHandle {
  /** The UUID of the GPU. */
  readonly device: string;
  /** 64 bytes; they stand for the beginning of the allocation. */
  readonly handle: Uint8Array;
  /** Bytes from there. */
  readonly offset: bigint;
  readonly bytes: bigint;
}

type Release = (uuid: Uint8Array, address: bigint) => void;

/** What memory that was forgotten without being closed still holds. */
const forgotten = new FinalizationRegistry<Holding>((holding) => holding.close());

/** What is to be given back once nobody uses it. Nothing here refers to the memory object. */
class Holding {
  readonly #release: () => void;
  #retained = 0;
  #closed = false;
  #released = false;

  constructor(release: () => void) {
    this.#release = release;
  }

  check(): void {
    if (this.#closed && this.#retained === 0) throw new TensorBusError("TB_CLOSED", "this memory was closed");
  }
  retain(): void {
    this.check();
    this.#retained++;
  }
  release(): void {
    if (this.#retained === 0) throw new TypeError("this memory was released more often than it was retained");
    this.#retained--;
    this.#end();
  }
  close(): void {
    this.#closed = true;
    this.#end();
  }
  #end(): void {
    if (!this.#closed || this.#retained > 0 || this.#released) return;
    this.#released = true;
    this.#release();
  }
}

/** Memory of a GPU. The processor cannot address it: `read` and `write` copy. */
export class DeviceMemory implements Memory, AsyncDisposable {
  readonly kind = "cuda";
  readonly bytes: bigint;
  /** The UUID of the GPU. */
  readonly device: string;
  readonly #uuid: Uint8Array;
  readonly #address: bigint;
  readonly #holding: Holding;

  private constructor(device: string, place: { address: bigint; bytes: bigint }, release?: Release) {
    const uuid = parseUuid(device);
    this.device = device;
    this.bytes = place.bytes;
    this.#uuid = uuid;
    this.#address = place.address;
    const { address } = place;
    this.#holding = new Holding(() => release?.(uuid, address));
    forgotten.register(this, this.#holding, this);
  }

  /** That many bytes, not zero. `TB_NO_MEMORY`, `TB_DEVICE` if there is no such GPU, `TB_LIBRARY` without a driver. */
  static allocate(device: string, bytes: bigint | number): DeviceMemory {
    const size = BigInt(bytes);
    const address = cudaAllocate(parseUuid(device), size);
    return new DeviceMemory(device, { address, bytes: size }, cudaFree);
  }

  /** Memory of this process that others own: a tensor of a library in it. They keep it until this is closed. */
  static over(device: string, address: bigint, bytes: bigint | number): DeviceMemory {
    return new DeviceMemory(device, { address, bytes: BigInt(bytes) });
  }

  /**
   * Memory of another process, which must keep it until this is closed. `TB_REGION` if it leaves its allocation.
   * CUDA refuses a handle in the process that made it.
   */
  static open({ device, handle, offset, bytes }: CudaIpcHandle): DeviceMemory {
    const uuid = parseUuid(device);
    if (handle.length !== ipcHandleBytes) {
      throw new TensorBusError(
        "TB_REGION",
        `an IPC handle has ${ipcHandleBytes} bytes, not ${handle.length}`,
      );
    }
    const opened = cudaOpen(uuid, handle);
    if (offset < 0n || bytes < 0n || offset + bytes > opened.bytes) {
      cudaClose(uuid, opened.address);
      throw new TensorBusError(
        "TB_REGION",
        `bytes ${offset} to ${offset + bytes} of CUDA memory of ${opened.bytes}`,
        { details: { offset, bytes, allocation: opened.bytes } },
      );
    }
    const close: Release = (of) => cudaClose(of, opened.address);
    return new DeviceMemory(device, { address: opened.address + offset, bytes }, close);
  }

  get address(): bigint {
    this.#holding.check();
    return this.#address;
  }
  retain(): void {
    this.#holding.retain();
  }
  release(): void {
    this.#holding.release();
  }

  /** How another process opens it. `TB_UNSUPPORTED` for memory without such a handle, as of expandable segments. */
  export(): CudaIpcHandle {
    const { handle, offset } = cudaExport(this.#uuid, this.address, this.bytes);
    return { device: this.device, handle, offset, bytes: this.bytes };
  }

  /** Copies bytes to the GPU, at `offset`. Blocks until they are there. */
  write(from: Uint8Array, offset: bigint | number = 0): void {
    this.#checkRange(from, BigInt(offset));
    if (from.byteLength > 0) cudaWrite(this.#uuid, this.address + BigInt(offset), from);
  }
  /** Copies bytes from the GPU. Blocks until they are here; what streams still write is not waited for. */
  read(to: Uint8Array, offset: bigint | number = 0): void {
    this.#checkRange(to, BigInt(offset));
    if (to.byteLength > 0) cudaRead(this.#uuid, this.address + BigInt(offset), to);
  }

  /** Gives it up; it goes once nothing retains it. A second call does nothing. */
  close(): void {
    forgotten.unregister(this);
    this.#holding.close();
  }
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  #checkRange({ byteLength }: Uint8Array, offset: bigint): void {
    if (offset < 0n || offset + BigInt(byteLength) > this.bytes) {
      throw new RangeError(
        `${byteLength} bytes at offset ${offset} do not fit into a memory of ${this.bytes} bytes`,
      );
    }
  }
}
