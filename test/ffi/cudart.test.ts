/**
 * The numbers of CUDA's results that native code gives a meaning, against the real libcudart, which answers without a GPU.
 * TENSOR_BUS_LIBCUDART names one; else that of a wheel nvidia-cuda-runtime beside Python's packages is taken.
 */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import koffi from "koffi";
import { expect, test } from "vitest";

function findRuntime(): string | undefined {
  const named = process.env["TENSOR_BUS_LIBCUDART"];
  if (named !== undefined && named !== "") return named;
  let folders: string[];
  try {
    const script =
      "import json, site; print(json.dumps(site.getsitepackages() + [site.getusersitepackages()]))";
    folders = JSON.parse(execFileSync("python3", ["-c", script], { encoding: "utf8" }));
  } catch {
    return undefined;
  }
  return folders
    .flatMap((folder) => ["nvidia/cu13/lib", "nvidia/cuda_runtime/lib"].map((lib) => join(folder, lib)))
    .filter((folder) => existsSync(folder))
    .flatMap((folder) => readdirSync(folder).map((file) => join(folder, file)))
    .find((file) => /libcudart\.so\.\d+$/.test(file));
}

const path = findRuntime();

test.skipIf(path === undefined)(
  "libcudart (skipped: no wheel nvidia-cuda-runtime here) calls results as we do",
  () => {
    const runtime = koffi.load(path!);
    const version = new Int32Array(1);
    expect(runtime.func("int cudaRuntimeGetVersion(void *)")(version)).toBe(0);
    expect(version[0]).toBeGreaterThanOrEqual(11_040);
    const nameOf = runtime.func("const char *cudaGetErrorName(int)");
    const names = [0, 1, 2, 100, 222, 600, 700].map((result) => nameOf(result));
    expect(names).toEqual([
      "cudaSuccess",
      "cudaErrorInvalidValue",
      "cudaErrorMemoryAllocation",
      "cudaErrorNoDevice",
      "cudaErrorUnsupportedPtxVersion",
      "cudaErrorNotReady",
      "cudaErrorIllegalAddress",
    ]);
  },
);
