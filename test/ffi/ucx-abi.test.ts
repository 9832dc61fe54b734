/** UCX's interface, against the real library and its header where they are at hand. No RDMA device is needed. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { queryUcx } from "../../src/ffi/ucx.ts";
import { ucxVersion } from "../transport/kit/ucx.ts";

const native = join(import.meta.dirname, "../../native");
const folder = mkdtempSync(join(tmpdir(), "tensorbus-ucx-"));
afterAll(() => rmSync(folder, { recursive: true }));

function failure(run: () => unknown): readonly [string, string] {
  try {
    run();
  } catch (error) {
    if (error instanceof TensorBusError) return [error.code, error.message];
    throw error;
  }
  return ["none", ""];
}

/** A library with some of UCX's functions. */
function library(name: string, source: string, ...more: readonly string[]): string {
  const path = join(folder, name);
  writeFileSync(`${path}.c`, source);
  execFileSync("cc", ["-shared", "-fPIC", "-o", path, `${path}.c`, ...more]);
  return path;
}

function build(name: string, ...more: readonly string[]): string {
  const program = join(folder, name);
  const source = join(import.meta.dirname, "ucx", `${name}.c`);
  const flags = ["-std=c11", "-fms-extensions", "-D_GNU_SOURCE", `-I${native}/include`, `-I${native}/src`];
  execFileSync("cc", [...flags, source, "-o", program, ...more]);
  return program;
}

const version = (number: string) =>
  `void ucp_get_version(unsigned *a, unsigned *b, unsigned *c) { ${number} }`;

describe("loading UCX", () => {
  it("refuses what is missing, what is no UCX, and what is too old or too new, with both versions", () => {
    const load = (path: string) => failure(() => queryUcx({ library: path }));
    expect(load("libnone-of-these.so.0")).toEqual(["TB_LIBRARY", expect.stringMatching(/libnone-of-these/)]);
    const foreign = library("foreign.so", "int other(void) { return 0; }");
    expect(load(foreign)[1]).toMatch(/is not UCX 1\.13 or newer: it does not have ucp_get_version/);
    const old = library("old.so", version("*a = 1; *b = 12; *c = 1;"));
    expect(load(old)).toEqual([
      "TB_LIBRARY",
      expect.stringMatching(/is UCX 1\.12\.1; 1\.13 or newer is needed/),
    ]);
    const next = library("next.so", version("*a = 2; *b = 0; *c = 0;"));
    expect(load(next)[1]).toMatch(/is UCX 2\.0\.0/);
    const half = library("half.so", version("*a = 1; *b = 22; *c = 0;"));
    expect(load(half)[1]).toMatch(/it does not have ucp_config_read/);
  });
});

describe.skipIf(ucxVersion === undefined)("the real UCX", () => {
  it("says its version, and has no context with transports that are not there", () => {
    expect(ucxVersion).toMatch(/^1\.\d+\.\d+$/);
    expect(failure(() => queryUcx({ transports: "no_such_transport" }))).toEqual([
      "TB_UNSUPPORTED",
      expect.stringMatching(/UCX has no context with these transports and devices: .* \(-\d+\)/),
    ]);
  });

  it("leaves signals and libc as they are, and writes nothing", () => {
    const program = build("quiet", `-L${native}/build`, "-ltensorbus", `-Wl,-rpath,${native}/build`);
    expect(execFileSync(program, { encoding: "utf8" })).toMatch(/^version 1\d{4}\n$/);
  });

  const linked = [`-L${native}/build`, "-ltensorbus", `-Wl,-rpath,${native}/build`, "-ldl"];
  const leftBehind = /^closed 206: the thread of UCX was left behind/;

  it("is waited for by nobody once the process ends, whose end its thread rests for", () => {
    const program = build("exit", ...linked);
    expect(execFileSync(program, { encoding: "utf8", timeout: 10_000 })).toMatch(leftBehind);
  });

  it("is left to itself if its thread does not come back, and the end of the session says so", () => {
    const name = library("libucp.so.0", "", "-Wl,-soname,libucp.so.0");
    const inFront = join(folder, "stuck.so");
    const source = join(import.meta.dirname, "ucx/stuck.c");
    const flags = ["-shared", "-fPIC", "-DLIBRARY", "-D_GNU_SOURCE", "-Wl,--no-as-needed"];
    execFileSync("cc", [...flags, source, "-o", inFront, name, "-ldl"]);
    const run = execFileSync(build("stuck", ...linked), [inFront], { encoding: "utf8", timeout: 60_000 });
    expect(run).toMatch(leftBehind);
  });

  it.skipIf(!existsSync("/usr/include/ucp/api/ucp.h"))("lays out what is passed in as we declare it", () => {
    const lines = execFileSync(build("layout"), { encoding: "utf8" }).trim().split("\n");
    expect(lines.length).toBeGreaterThan(40);
    for (const line of lines) {
      const [name, theirs, ours] = line.split(" ");
      expect(ours, name).toBe(theirs);
    }
  });
});
