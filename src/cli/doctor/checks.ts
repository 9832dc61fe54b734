import { existsSync, statfsSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { TensorBusError } from "../../errors.ts";
import { kernelsPath, kernelsVariable } from "../../ffi/cuda.ts";
import { nativeKernels } from "../../ffi/kernels.ts";
import { abiVersion, type NativeLibrary, nativeLibraryFile, openLibrary } from "../../ffi/library.ts";
import { DeviceMesh, Replicate, Shard } from "../../layout/index.ts";
import { planTransfer } from "../../plan/index.ts";
import type { LibrarySearch, OptionalLibrary } from "../../transport/offer.ts";
import { optionalLibraries } from "../transports.ts";
import { formatBytes } from "../ui/format.ts";
import { findLibrary, limitOf, outputOf, probePython } from "./probes.ts";

/** One thing that a machine has or that is missing. */
export interface Check {
  readonly name: string;
  /** `warning`: it works, with a limit that large transfers can meet. */
  readonly status: "ok" | "missing" | "warning";
  /** The purpose: planning, transfers, building the native library, GPUs, or an option. */
  readonly needed: "planning" | "transfers" | "build" | "option";
  /** The version, path or count that was found. */
  readonly found: string;
  /** The advice on what to do about it. */
  readonly advice?: string;
}

type Environment = NodeJS.ProcessEnv;

const leastNode: readonly [major: number, minor: number] = [20, 19];
/** Connections, shared tensors and files of a large world on one machine. */
const comfortableFiles = 4096;

/** Everything that is looked at, in the order in which it is shown. Starts programs that only print their version. */
export async function checkMachine(environment: Environment): Promise<Check[]> {
  const python = await probePython(environment);
  const sitePackages = python?.sitePackages ?? [];
  const search: LibrarySearch = {
    environment,
    pathOf: (soname) => findLibrary(soname, sitePackages, environment),
  };
  const libraries = await optionalLibraries();
  return Promise.all([
    checkNode(),
    checkPlanner(),
    checkNative(),
    checkLmdb(),
    checkCompiler(environment),
    checkProgram("make", "build", "apt install make, or your system's package of that name", environment),
    checkProcessor(),
    checkSharedMemory(),
    checkFiles(),
    checkLockedMemory(),
    checkGpus(environment),
    checkLibrary("CUDA driver", "libcuda.so.1", "comes with the NVIDIA driver", search),
    checkKernels(environment),
    ...libraries.map((library) => checkOptional(library, search)),
    checkProgram("etcd", "option", "https://etcd.io; a TCP store needs nothing", environment),
    checkPython(python),
  ]);
}

function checkNode(): Check {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  const enough = major > leastNode[0] || (major === leastNode[0] && minor >= leastNode[1]);
  const check = { name: "Node.js", needed: "planning", found: process.versions.node } as const;
  if (enough) return { ...check, status: "ok" };
  return {
    ...check,
    status: "missing",
    advice: `${leastNode.join(".")} or newer is needed: https://nodejs.org`,
  };
}

/** Plans a transfer of one tensor: that the planner loads says less than that it works. */
async function checkPlanner(): Promise<Check> {
  const check = { name: "planner", needed: "planning" } as const;
  try {
    const plan = await planTransfer({
      pairs: {
        pair: {
          source: { mesh: new DeviceMesh([2]), placements: [Shard(0)] },
          target: { mesh: new DeviceMesh([1], { ranks: [2] }), placements: [Replicate()] },
        },
      },
      tensors: [{ name: "tensor", pair: "pair", shape: [4, 4], dtype: "float32" }],
    });
    plan.verify();
    return { ...check, status: "ok", found: "WebAssembly; a small plan was made and verified" };
  } catch (error) {
    return {
      ...check,
      status: "missing",
      found: (error as Error).message,
      advice: "install the package again",
    };
  }
}

function checkNative(): Check {
  const check = { name: "native library", needed: "transfers" } as const;
  try {
    const library = nativeLibraryFile();
    openLibrary(library.path).unload();
    const found = `interface ${abiVersion}, ${nativeKernels.tb_build_info()}; ${originOf(library)}`;
    return { ...check, status: "ok", found };
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    const advice =
      "with make and a C compiler: TENSOR_BUS_BUILD_FROM_SOURCE=1 npm rebuild tensorbus (in a clone: npm run build:native)";
    return { ...check, status: "missing", found: error.message, advice };
  }
}

function originOf({ path, prebuilt }: NativeLibrary): string {
  if (prebuilt === undefined) return `built here: ${path}`;
  return `prebuilt: ${prebuilt.package}, SHA-256 ${prebuilt.sha256}`;
}

/** Its prebuilt binary asks for a newer glibc than ours. */
async function checkLmdb(): Promise<Check> {
  const check = { name: "lmdb", needed: "transfers" } as const;
  try {
    await import("../../bus/queue/environment.ts");
    return { ...check, status: "ok", found: "the package of the command queues loads" };
  } catch (error) {
    const advice = "with make and a C++ compiler: npm rebuild lmdb --build-from-source";
    return { ...check, status: "missing", found: firstLine((error as Error).message) ?? "", advice };
  }
}

async function checkCompiler(environment: Environment): Promise<Check> {
  const candidates = environment["CC"] ? [environment["CC"]] : ["cc", "gcc", "clang"];
  for (const command of candidates) {
    const version = firstLine(await outputOf(command, ["--version"], environment));
    if (version !== undefined) return { name: "C compiler", needed: "build", status: "ok", found: version };
  }
  return {
    name: "C compiler",
    needed: "build",
    status: "missing",
    found: `none of ${candidates.join(", ")}`,
    advice: "apt install build-essential, dnf install gcc, or apk add build-base",
  };
}

async function checkProgram(
  name: string,
  needed: Check["needed"],
  advice: string,
  environment: Environment,
): Promise<Check> {
  const version = firstLine(await outputOf(name, ["--version"], environment));
  if (version !== undefined) return { name, needed, status: "ok", found: version };
  return { name, needed, status: "missing", found: "not found", advice };
}

function checkProcessor(): Check {
  const all = cpus();
  const found = `${all.length} x ${all[0]?.model.trim() ?? process.arch}, ${formatBytes(totalmem())} of memory`;
  return { name: "processor", needed: "option", status: "ok", found };
}

function checkSharedMemory(): Check {
  const check = { name: "shared memory", needed: "transfers" } as const;
  try {
    const { blocks, bavail, bsize } = statfsSync("/dev/shm");
    return {
      ...check,
      status: "ok",
      found: `/dev/shm has ${formatBytes(bavail * bsize)} free of ${formatBytes(blocks * bsize)}`,
    };
  } catch {
    const advice = "mount a tmpfs on /dev/shm (in a container: --shm-size or --ipc=host)";
    return { ...check, status: "warning", found: "there is no /dev/shm", advice };
  }
}

function checkFiles(): Check {
  const check = { name: "open files", needed: "transfers" } as const;
  const limit = limitOf("Max open files");
  if (limit === undefined) return { ...check, status: "warning", found: "unknown on this system" };
  const found = `${limit.soft}, at most ${limit.hard}`;
  if (limit.soft === "unlimited" || Number(limit.soft) >= comfortableFiles)
    return { ...check, status: "ok", found };
  return {
    ...check,
    status: "warning",
    found,
    advice: `ulimit -n ${comfortableFiles} for many ranks on one machine`,
  };
}

function checkLockedMemory(): Check {
  const check = { name: "locked memory", needed: "option" } as const;
  const limit = limitOf("Max locked memory");
  if (limit === undefined) return { ...check, status: "warning", found: "unknown on this system" };
  const text = (value: string): string => (value === "unlimited" ? value : formatBytes(Number(value)));
  const found = `${text(limit.soft)}, at most ${text(limit.hard)}`;
  if (limit.soft === "unlimited") return { ...check, status: "ok", found };
  return { ...check, status: "warning", found, advice: "RDMA and pinned memory want ulimit -l unlimited" };
}

/** Those for CUDA memory are made when the package is built, not when it is installed; its script makes them later too. */
function checkKernels(environment: Environment): Check {
  const check = { name: "CUDA kernels", needed: "option" } as const;
  const path = kernelsPath(environment);
  if (existsSync(path)) return { ...check, status: "ok", found: path };
  const script = join(dirname(path), "../../scripts/build-cuda.mjs");
  const advice = environment[kernelsVariable]
    ? `unset ${kernelsVariable}, or name a file by it that is there`
    : `with nvcc, of the CUDA toolkit or named by NVCC: node ${script}`;
  return { ...check, status: "missing", found: `${path} is not there`, advice };
}

async function checkGpus(environment: Environment): Promise<Check> {
  const query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
  const text = await outputOf("nvidia-smi", query, environment);
  const gpus = text?.split("\n").filter((line) => line !== "") ?? [];
  if (gpus.length === 0) return { name: "GPUs", needed: "option", status: "missing", found: "none" };
  const found = [...new Set(gpus)].map((gpu) => `${gpus.filter((other) => other === gpu).length} x ${gpu}`);
  return { name: "GPUs", needed: "option", status: "ok", found: found.join("; ") };
}

async function checkLibrary(
  name: string,
  soname: string,
  advice: string,
  { pathOf }: LibrarySearch,
): Promise<Check> {
  const path = await pathOf(soname);
  if (path !== undefined) return { name, needed: "option", status: "ok", found: path };
  return { name, needed: "option", status: "missing", found: `${soname} not found`, advice };
}

/** What a transport loads when it is used. */
async function checkOptional({ name, advice, find }: OptionalLibrary, search: LibrarySearch): Promise<Check> {
  const check = { name, needed: "option" } as const;
  try {
    return { ...check, status: "ok", found: await find(search) };
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    return { ...check, status: "missing", found: error.message, advice };
  }
}

function checkPython(python: Awaited<ReturnType<typeof probePython>>): Check {
  const check = { name: "Python", needed: "option" } as const;
  if (python === undefined) return { ...check, status: "missing", found: "python3 not found" };
  return {
    ...check,
    status: "ok",
    found: `${python.version}, ${python.torch === undefined ? "no torch" : `torch ${python.torch}`}`,
  };
}

function firstLine(text: string | undefined): string | undefined {
  return text?.split("\n")[0];
}
