export { type CudaDevice, cudaDevices } from "../../ffi/cuda.ts";
export { type CudaIpcHandle, DeviceMemory } from "./device-memory.ts";
