/**
 * Lets this process, and those that it starts, take the double of libcuda for the driver. To be called before anything
 * of CUDA is used. The kernels are those that nvcc made, where it did, else a list of their names.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "../../..");
const built = join(root, "native/build/doubles");

/** The UUID of the double's first GPU. */
export const doubleDevice = "GPU-63756461-2d64-6f75-626c-652d64657630";
/** One that no machine has. */
export const missingDevice = "GPU-00000000-0000-0000-0000-000000000001";
export const doubleLibrary = join(built, "libcuda.so");

export function useCudaDouble(): void {
  const ptx = join(root, "dist/cuda/kernels.ptx");
  process.env["TENSOR_BUS_LIBCUDA"] = doubleLibrary;
  process.env["TENSOR_BUS_CUDA_KERNELS"] = existsSync(ptx) ? ptx : join(built, "kernels.ptx");
}
