/** CUDA: GPUs by their UUIDs, and memory on them. "CUDA" of `native/include/tensorbus.h`. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { TensorBusError } from "../errors.ts";
import { declareNative } from "./native.ts";

const native = declareNative({
  tb_cuda_kernels: ["string"],
  tb_cuda_count: ["out u32", "out u32"],
  tb_cuda_device: ["u32", "pointer", "pointer", "u32"],
  tb_cuda_allocate: ["pointer", "u64", "out u64"],
  tb_cuda_free: ["pointer", "u64"],
  tb_cuda_write: ["pointer", "u64", "pointer", "u64"],
  tb_cuda_read: ["pointer", "u64", "pointer", "u64"],
  tb_cuda_export: ["pointer", "u64", "u64", "pointer", "out u64"],
  tb_cuda_open: ["pointer", "pointer", "out u64", "out u64"],
  tb_cuda_close: ["pointer", "u64"],
  tb_cuda_event_create: ["pointer", "out u64"],
  tb_cuda_event_open: ["pointer", "pointer", "out u64"],
  tb_cuda_event_export: ["pointer", "u64", "pointer"],
  tb_cuda_event_record: ["pointer", "u64"],
  tb_cuda_event_close: ["pointer", "u64"],
  tb_cuda_event_watch: ["u64", "u64", "pointer", "u64", "out u64"],
  tb_cuda_event_watched: ["u64", "out u32"],
  tb_cuda_event_unwatch: ["u64"],
  tb_cuda_time_copies: ["pointer", "u64", "u64", "u64", "u32", "out u64"],
  tb_cuda_info: ["pointer", "out u64", "out u64"],
});

/** Names the file of the kernels, before that of the package. */
export const kernelsVariable = "TENSOR_BUS_CUDA_KERNELS";
export const ipcHandleBytes = 64;
const nameBytes = 128;

export interface CudaDevice {
  /** The UUID in the form of `nvidia-smi -L`: `GPU-` and 32 digits. */
  readonly uuid: string;
  readonly name: string;
}

/** The package's kernels; they are missing if it was built without nvcc. */
export function kernelsPath(environment: Readonly<Record<string, string | undefined>> = process.env): string {
  const named = environment[kernelsVariable];
  if (named !== undefined && named !== "") return named;
  const here = dirname(fileURLToPath(import.meta.url));
  for (let folder = here; ; folder = dirname(folder)) {
    if (existsSync(join(folder, "native/include/tensorbus.h")) || folder === dirname(folder)) {
      return join(folder, "dist/cuda/kernels.ptx");
    }
  }
}

/** The 16 bytes of a UUID in text, with or without `GPU-` or `MIG-`. `TB_DEVICE` if the text is not a UUID. */
export function parseUuid(text: string): Uint8Array {
  const digits = text.replace(/^(GPU|MIG)-/, "").replaceAll("-", "");
  if (!/^[0-9a-f]{32}$/i.test(digits)) {
    throw new TensorBusError(
      "TB_DEVICE",
      `"${text}" is not the UUID of a GPU; \`nvidia-smi -L\` prints those of this machine`,
      {
        details: { device: text },
      },
    );
  }
  return Uint8Array.from(Buffer.from(digits, "hex"));
}

function formatUuid(bytes: Uint8Array): string {
  const digits = Buffer.from(bytes).toString("hex");
  return `GPU-${digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5")}`;
}

/** The GPUs that this process sees, and the version of the driver. `TB_LIBRARY` without one, `TB_DEVICE` without a GPU. */
export function cudaDevices(): { readonly driver: string; readonly devices: readonly CudaDevice[] } {
  const [count, version] = native.tb_cuda_count();
  const devices = Array.from({ length: count }, (_, index) => {
    const uuid = new Uint8Array(16);
    const name = Buffer.alloc(nameBytes);
    native.tb_cuda_device(index, uuid, name, nameBytes);
    return { uuid: formatUuid(uuid), name: name.toString("utf8", 0, name.indexOf(0)) };
  });
  return { driver: `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`, devices };
}

/** To be called before a device is used: says where the kernels are. */
export function useKernels(): void {
  native.tb_cuda_kernels(kernelsPath());
}

export function cudaAllocate(uuid: Uint8Array, bytes: bigint): bigint {
  useKernels();
  return native.tb_cuda_allocate(uuid, bytes);
}

export function cudaFree(uuid: Uint8Array, address: bigint): void {
  native.tb_cuda_free(uuid, address);
}

export function cudaWrite(uuid: Uint8Array, address: bigint, from: Uint8Array): void {
  native.tb_cuda_write(uuid, address, from, BigInt(from.byteLength));
}

export function cudaRead(uuid: Uint8Array, address: bigint, to: Uint8Array): void {
  native.tb_cuda_read(uuid, address, to, BigInt(to.byteLength));
}

/** The IPC handle of the allocation that the memory lies in, and where in it. `TB_UNSUPPORTED` if there is none. */
export function cudaExport(
  uuid: Uint8Array,
  address: bigint,
  bytes: bigint,
): { readonly handle: Uint8Array; readonly offset: bigint } {
  const handle = new Uint8Array(ipcHandleBytes);
  const offset = native.tb_cuda_export(uuid, address, bytes, handle);
  return { handle, offset };
}

/** Maps another process's allocation. `cudaClose` for each time. */
export function cudaOpen(
  uuid: Uint8Array,
  handle: Uint8Array,
): { readonly address: bigint; readonly bytes: bigint } {
  useKernels();
  const [address, bytes] = native.tb_cuda_open(uuid, handle);
  return { address, bytes };
}

export function cudaClose(uuid: Uint8Array, address: bigint): void {
  native.tb_cuda_close(uuid, address);
}

/** An event that other processes may open. */
export function cudaEventCreate(uuid: Uint8Array): bigint {
  useKernels();
  return native.tb_cuda_event_create(uuid);
}

/** Another process's event. CUDA refuses a handle in the process that made it. */
export function cudaEventOpen(uuid: Uint8Array, handle: Uint8Array): bigint {
  useKernels();
  return native.tb_cuda_event_open(uuid, handle);
}

export function cudaEventExport(uuid: Uint8Array, event: bigint): Uint8Array {
  const handle = new Uint8Array(ipcHandleBytes);
  native.tb_cuda_event_export(uuid, event, handle);
  return handle;
}

export function cudaEventRecord(uuid: Uint8Array, event: bigint): void {
  native.tb_cuda_event_record(uuid, event);
}

export function cudaEventClose(uuid: Uint8Array, event: bigint): void {
  native.tb_cuda_event_close(uuid, event);
}

/** Raises `token` at a port of the bus once it is known whether the event is over. Returns a handle for `cudaEventUnwatch`. */
export function cudaEventWatch(port: bigint, token: bigint, uuid: Uint8Array, event: bigint): bigint {
  return native.tb_cuda_event_watch(port, token, uuid, event);
}

/** True once what was recorded has happened. `TB_CUDA` if that cannot be known any more. */
export function cudaEventIsOver(watch: bigint): boolean {
  return native.tb_cuda_event_watched(watch) === 1;
}

export function cudaEventUnwatch(watch: bigint): void {
  native.tb_cuda_event_unwatch(watch);
}

/** For benchmarks: seconds of that many copies by the driver, one after the other. */
export function cudaTimeCopies(
  uuid: Uint8Array,
  { to, from, bytes, times }: { to: bigint; from: bigint; bytes: bigint; times: number },
): number {
  return Number(native.tb_cuda_time_copies(uuid, to, from, bytes, times)) / 1e9;
}

/** Bytes of the device that are free, and all of them. */
export function cudaInfo(uuid: Uint8Array): { readonly free: bigint; readonly total: bigint } {
  useKernels();
  const [free, total] = native.tb_cuda_info(uuid);
  return { free, total };
}
