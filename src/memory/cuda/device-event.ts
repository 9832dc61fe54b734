import { TensorBusError } from "../../errors.ts";
import {
  cudaEventClose,
  cudaEventCreate,
  cudaEventExport,
  cudaEventIsOver,
  cudaEventOpen,
  cudaEventRecord,
  cudaEventUnwatch,
  cudaEventWatch,
  ipcHandleBytes,
  parseUuid,
} from "../../ffi/cuda.ts";

/** One wait for what an event stands for. */
export class EventWatch {
  readonly #watch: bigint;

  constructor(watch: bigint) {
    this.#watch = watch;
  }

  /** `TB_CUDA` if it cannot be known any more: the GPU has failed. */
  isOver(): boolean {
    return cudaEventIsOver(this.#watch);
  }

  close(): void {
    cudaEventUnwatch(this.#watch);
  }
}

/** An event of a GPU that several processes share: one records it, others wait until what was before it has happened. */
export class DeviceEvent implements Disposable {
  /** The UUID of the GPU. */
  readonly device: string;
  readonly #uuid: Uint8Array;
  #event: bigint | undefined;

  private constructor(device: string, uuid: Uint8Array, event: bigint) {
    this.device = device;
    this.#uuid = uuid;
    this.#event = event;
  }

  /** Errors are those of `DeviceMemory.allocate`. */
  static create(device: string): DeviceEvent {
    const uuid = parseUuid(device);
    return new DeviceEvent(device, uuid, cudaEventCreate(uuid));
  }

  /** Another process's, by the 64 bytes of `cuIpcGetEventHandle`; it must keep the event until this is closed. */
  static open(device: string, handle: Uint8Array): DeviceEvent {
    const uuid = parseUuid(device);
    if (handle.length !== ipcHandleBytes) {
      throw new TensorBusError(
        "TB_REGION",
        `an event's handle has ${ipcHandleBytes} bytes, not ${handle.length}`,
      );
    }
    return new DeviceEvent(device, uuid, cudaEventOpen(uuid, handle));
  }

  /** What the native calls know it by. */
  get address(): bigint {
    if (this.#event === undefined) throw new TensorBusError("TB_CLOSED", "this event was closed");
    return this.#event;
  }

  /** What other processes open it by; only of one that was created here. */
  export(): Uint8Array {
    return cudaEventExport(this.#uuid, this.address);
  }

  /** Puts it behind all that this process's rounds have done to the GPU's memory so far. */
  record(): void {
    cudaEventRecord(this.#uuid, this.address);
  }

  /** Raises `token` at a port of the bus, once, when what was recorded last has happened; closed before the event is. */
  watch(port: bigint, token: bigint): EventWatch {
    return new EventWatch(cudaEventWatch(port, token, this.#uuid, this.address));
  }

  /** A second call does nothing. */
  close(): void {
    const event = this.#event;
    this.#event = undefined;
    if (event !== undefined) cudaEventClose(this.#uuid, event);
  }
  [Symbol.dispose](): void {
    this.close();
  }
}
