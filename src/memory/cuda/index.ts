export { type CudaDevice, cudaDevices } from "../../ffi/cuda.ts";
export { DeviceEvent, type EventWatch } from "./device-event.ts";
export { type CudaIpcHandle, DeviceMemory } from "./device-memory.ts";
