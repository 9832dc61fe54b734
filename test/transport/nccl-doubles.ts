/** What lets a test run on the doubles of libcuda and libnccl: see test/doubles. Each rank has the device of its number. */
import { join } from "node:path";
import { useCudaDouble } from "../doubles/cuda/index.ts";
import { testDevices } from "./test-memory.ts";

/** Has this process and its children use them. */
export function useDoubles(devices: number): void {
  useCudaDouble();
  process.env["TENSOR_BUS_LIBNCCL"] = join(import.meta.dirname, "../../native/build/doubles/libnccl.so");
  process.env["CUDA_DOUBLE_DEVICES"] = String(devices);
  testDevices.of = deviceOf;
}

/** The UUID of a device of the double, as `nvidia-smi -L` would write it. */
export function deviceOf(ordinal: number): string {
  const hex = Buffer.from(`cuda-double-dev${ordinal.toString(36)}`, "latin1").toString("hex");
  return `GPU-${hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5")}`;
}
