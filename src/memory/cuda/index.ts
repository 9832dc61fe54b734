export { type CudaDevice, cudaDevices } from "../../ffi/cuda.ts";
export { DeviceEvent } from "./device-event.ts";
export { type CudaIpcHandle, DeviceMemory } from "./device-memory.ts";
