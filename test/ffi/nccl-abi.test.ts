/** NCCL's interface, against the real library and its header where they are at hand. No GPU is needed. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { findNccl, ncclSoname, ncclUniqueId, ncclVersion } from "../../src/ffi/nccl.ts";

const root = join(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "tensorbus-nccl-"));
afterAll(() => rmSync(folder, { recursive: true }));

function codeOf(run: () => unknown): [string, string] {
  try {
    run();
  } catch (error) {
    if (error instanceof TensorBusError) return [error.code, error.message];
    throw error;
  }
  return ["none", ""];
}

/** A program of test/ffi/nccl with the sources of the library that it needs. */
function build(name: string, flags: readonly string[] = []): string {
  const native = join(root, "native");
  const sources = ["carriers/nccl/nccl_api.c", "base/dynamic_library.c", "base/error.c"].map((file) =>
    join(native, "src", file),
  );
  const program = join(folder, name);
  execFileSync("cc", [
    ...["-std=c11", "-D_GNU_SOURCE", `-I${native}/include`, `-I${native}/src`, ...flags],
    ...[join(import.meta.dirname, "nccl", `${name}.c`), ...sources, "-o", program, "-ldl", "-pthread"],
  ]);
  return program;
}

/** What `without-device.c` prints of a library, by the first word of each line. */
function withoutDevice(path: string): Record<string, string> {
  const lines = execFileSync(build("without-device"), [path], { encoding: "utf8" }).trim().split("\n");
  return Object.fromEntries(lines.map((line) => [line.split(" ")[0]!, line.slice(line.indexOf(" ") + 1)]));
}

/** A library with some of NCCL's functions. */
function library(name: string, source: string): string {
  const path = join(folder, name);
  writeFileSync(`${path}.c`, source);
  execFileSync("cc", ["-shared", "-fPIC", "-o", path, `${path}.c`]);
  return path;
}

describe("finding NCCL", () => {
  const wheel = join(folder, "venv/lib/python3.12/site-packages/nvidia/nccl/lib", ncclSoname);
  mkdirSync(dirname(wheel), { recursive: true });
  writeFileSync(wheel, "");

  it("takes what the environment names before anything else", () => {
    expect(findNccl({ TENSOR_BUS_LIBNCCL: "/opt/libnccl.so", VIRTUAL_ENV: join(folder, "venv") })).toBe(
      "/opt/libnccl.so",
    );
  });

  it("takes the wheel of the Python environment, and the linker's before that", () => {
    const none = existsSync("/usr/lib/x86_64-linux-gnu/libnccl.so.2");
    if (!none) expect(findNccl({ VIRTUAL_ENV: join(folder, "venv") })).toBe(wheel);
    expect(findNccl({ VIRTUAL_ENV: join(folder, "venv"), LD_LIBRARY_PATH: dirname(wheel) })).toBe(ncclSoname);
    expect(findNccl({ PYTHONPATH: join(folder, "venv/lib/python3.12/site-packages") })).toBe(wheel);
  });
});

describe("loading NCCL", () => {
  it("refuses what is missing, what is no NCCL, and what is too old, with both versions", () => {
    expect(codeOf(() => ncclVersion("libnone-of-these.so.2"))).toEqual([
      "TB_LIBRARY",
      expect.stringMatching(/libnone-of-these/),
    ]);
    const foreign = library("foreign.so", "int other(void) { return 0; }");
    expect(codeOf(() => ncclVersion(foreign))).toEqual([
      "TB_LIBRARY",
      expect.stringMatching(/is not NCCL: it does not have ncclGetVersion/),
    ]);
    const old = library("old.so", "int ncclGetVersion(int *version) { *version = 21602; return 0; }");
    expect(codeOf(() => ncclVersion(old))).toEqual([
      "TB_LIBRARY",
      expect.stringMatching(/is NCCL 2\.16\.2; 2\.18 or newer is needed/),
    ]);
    const ancient = library("ancient.so", "int ncclGetVersion(int *version) { *version = 2708; return 0; }");
    expect(codeOf(() => ncclVersion(ancient))[1]).toMatch(/is NCCL 2\.7\.8; 2\.18/);
    const half = library("half.so", "int ncclGetVersion(int *version) { *version = 22809; return 0; }");
    expect(codeOf(() => ncclVersion(half))[1]).toMatch(/which does not have ncclGetUniqueId/);
  });

  it("is what the program does that asks the real one", () => {
    expect(withoutDevice("libnone-of-these.so.2")["load"]).toMatch(/libnone-of-these/);
  });
});

/** The real library, or why it is not at hand. */
function real(): { readonly path: string; readonly version: number } | string {
  const path = findNccl();
  try {
    return { path, version: ncclVersion(path).number };
  } catch (error) {
    return (error as Error).message;
  }
}

const found = real();
if (typeof found === "string") {
  console.warn(`skipped: the ABI of the real NCCL (${found}); pip install nvidia-nccl-cu13 to have it`);
}

describe.skipIf(typeof found === "string")("the real NCCL", () => {
  const { path, version } = typeof found === "string" ? { path: "", version: 0 } : found;
  /** Where the wheel's header lies, if it is one. */
  const include = join(dirname(dirname(path)), "include");

  it("gives unique ids of 128 bytes that differ", () => {
    const [one, two] = [ncclUniqueId(path), ncclUniqueId(path)];
    expect(one.length).toBe(128);
    expect(one.some((byte) => byte !== 0)).toBe(true);
    expect(Buffer.from(one).equals(two)).toBe(false);
  });

  it("fails with words, and does not crash, where there is no device", () => {
    const results = withoutDevice(path);
    expect(version).toBeGreaterThanOrEqual(21800);
    expect(results["version"]).toBe(String(version));
    expect(results["words.0"]).toBe("no error");
    expect(results["words.7"]).toMatch(/in progress/);
    expect(new Set(Array.from({ length: 8 }, (_, result) => results[`words.${result}`])).size).toBe(8);
    expect(results["words.9999"]).toMatch(/unknown/);
    expect(results["ncclGetUniqueId"]).toMatch(/^0 /);
    if (results["comm"] === "none") {
      expect(results["ncclCommInitRankConfig"]).toMatch(/^1 .*\S/);
    } else {
      expect(results["ncclCommInitRankConfig"], "on a machine with a GPU").toMatch(/^[07] /);
    }
    expect(results["ncclGroupEnd"]).toMatch(/^5 .*not in a group/);
    expect(results["ncclGroupEnd.closed"]).toMatch(/^5 /);
    expect(results["ncclSend"]).toMatch(/^4 /);
    expect(results["ncclGroupEnd.send"]).toMatch(/^4 /);
    expect(results["ncclCommGetAsyncError"]).toMatch(/^4 /);
    expect(results["ncclCommAbort"]).toMatch(/^0 /);
  });

  it.skipIf(!existsSync(join(include, "nccl.h")))("lays its configuration out as our declarations do", () => {
    const stubs = join(folder, "stubs");
    mkdirSync(stubs);
    // All that nccl.h takes of the toolkit's headers.
    writeFileSync(
      join(stubs, "cuda_runtime.h"),
      "#define CUDART_VERSION 12000\ntypedef struct CUstream_st *cudaStream_t;\n",
    );
    for (const header of ["cuda_fp16.h", "cuda_bf16.h"]) writeFileSync(join(stubs, header), "");
    const program = build("layout", [`-I${stubs}`, `-I${include}`]);
    for (const line of execFileSync(program, { encoding: "utf8" }).trim().split("\n")) {
      const [name, theirs, ours] = line.split(" ");
      expect(ours, name).toBe(theirs);
    }
  });
});
