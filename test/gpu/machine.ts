/** What GPU tests and benchmarks begin and end with: the device, what lacks, and the record of the results. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { cpus, release } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { TensorBusError } from "../../src/errors.ts";
import { cudaDevices, kernelsPath } from "../../src/ffi/cuda.ts";
import { libraryPath } from "../../src/ffi/library.ts";

export const root = join(dirname(libraryPath()), "../..");

/** Throws if it fails; a `Skip` where this machine lacks something that the case needs. */
export interface GpuCase {
  readonly name: string;
  run(): Promise<void>;
}
export class Skip extends Error {}

export interface Machine {
  readonly device: string;
  readonly name: string;
  readonly driver: string;
  /** True if the double of libcuda stands for a GPU. */
  readonly double: boolean;
  readonly json: string;
  /** Runs only what has this in its name. */
  readonly filter: string;
}

/** The device to be used, which it says; ends the process with 3, and what lacks, if there is none. */
export function findMachine(what: "test" | "bench"): Machine {
  const { values } = parseArgs({
    options: {
      device: { type: "string" },
      double: { type: "boolean", default: false },
      json: { type: "string" },
      filter: { type: "string", default: "" },
    },
  });
  const built = join(root, "native/build/doubles");
  if (values.double) {
    process.env["TENSOR_BUS_LIBCUDA"] = join(built, "libcuda.so");
    process.env["TENSOR_BUS_LIBNCCL"] = join(built, "libnccl.so");
  }
  if (values.double && !existsSync(kernelsPath())) {
    process.env["TENSOR_BUS_CUDA_KERNELS"] = join(built, "kernels.ptx");
  }
  try {
    if (!existsSync(kernelsPath())) {
      throw new TensorBusError("TB_LIBRARY", `${kernelsPath()} is not there: build where nvcc is`);
    }
    const { driver, devices } = cudaDevices();
    const device = devices.find(({ uuid }) => values.device === undefined || uuid === values.device);
    if (device === undefined) throw new TensorBusError("TB_DEVICE", `no GPU ${values.device ?? ""} here`);
    process.env["TEST_CUDA_DEVICE"] = device.uuid;
    console.log(`${device.name}, driver for CUDA ${driver}${values.double ? " (a double, no GPU)" : ""}`);
    const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
    const preset = values.double
      ? join(root, `build/gpu/${what}-double.json`)
      : join(root, `bench/results/gpu-${what}-${stamp}.json`);
    return {
      device: device.uuid,
      name: device.name,
      driver,
      double: values.double,
      json: values.json ?? preset,
      filter: values.filter,
    };
  } catch (error) {
    if (!(error instanceof TensorBusError) || error.exitCode !== 3) throw error;
    console.error(`nothing was run: ${error.code}: ${error.message}`);
    process.exit(3);
  }
}

export function writeResults(machine: Machine, results: object): void {
  const { json, filter, ...gpu } = machine;
  const record = {
    date: new Date().toISOString(),
    commit: outputOf("git", ["-C", root, "rev-parse", "HEAD"]),
    node: process.versions.node,
    kernel: release(),
    processor: `${cpus().length} x ${cpus()[0]?.model ?? process.arch}`,
    gpu,
    filter,
    ...results,
  };
  mkdirSync(dirname(json), { recursive: true });
  writeFileSync(json, `${JSON.stringify(record, undefined, 2)}\n`);
  console.log(`written to ${json}`);
}

export function outputOf(command: string, args: readonly string[]): string | null {
  try {
    return execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return null;
  }
}
