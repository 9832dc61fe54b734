import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { type Check, checkMachine } from "../../src/cli/doctor/checks.ts";
import { findLibrary, limitOf, outputOf } from "../../src/cli/doctor/probes.ts";
import { runCli } from "./kit/command-line.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-doctor-"));
afterAll(() => rmSync(folder, { recursive: true }));

const find = (checks: readonly Check[], name: string): Check => checks.find((check) => check.name === name)!;

describe("doctor", () => {
  test("finds what the tests themselves run on", async () => {
    const { code, stdout, stderr } = await runCli("doctor", "--json");
    expect([code, stderr]).toEqual([0, ""]);
    const { ok, checks } = JSON.parse(stdout) as { ok: boolean; checks: Check[] };
    expect(ok).toBe(true);
    expect(find(checks, "Node.js")).toMatchObject({ status: "ok", found: process.versions.node });
    expect(find(checks, "planner").status).toBe("ok");
    expect(find(checks, "native library")).toMatchObject({
      status: "ok",
      found: expect.stringContaining("interface"),
    });
    expect(find(checks, "lmdb").status).toBe("ok");
    expect(find(checks, "C compiler").status).toBe("ok");
    expect(find(checks, "open files").found).toMatch(/^(\d+|unlimited), at most (\d+|unlimited)$/);
  });

  test("prints a line for each, and what to do about what is not there", async () => {
    const { code, stdout } = await runCli("doctor");
    expect(code).toBe(0);
    for (const heading of ["Planning", "Transfers", "Building the native library", "Options"]) {
      expect(stdout).toMatch(new RegExp(`^${heading}$`, "m"));
    }
    expect(stdout).toMatch(/^ {2}ok {6}Node\.js +\d+\.\d+\.\d+$/m);
    expect(stdout.trimEnd().endsWith("This machine can plan and transfer.")).toBe(true);
    expect(stdout).not.toContain("\u001B");
  });

  test("on a machine without programs says what is missing, and still plans", async () => {
    const checks = await checkMachine({ PATH: folder });
    expect(find(checks, "C compiler")).toMatchObject({
      status: "missing",
      needed: "build",
      found: "none of cc, gcc, clang",
      advice: expect.stringContaining("build-essential"),
    });
    expect(find(checks, "make").status).toBe("missing");
    expect(find(checks, "etcd").status).toBe("missing");
    expect(find(checks, "GPUs")).toMatchObject({ status: "missing", found: "none" });
    expect(find(checks, "Python")).toMatchObject({ status: "missing" });
    expect(find(checks, "planner").status).toBe("ok");
  });

  test("says that an NCCL which is named does not load, and how to get another", async () => {
    const path = join(folder, "libnccl.so.2");
    writeFileSync(path, "no library");
    expect(find(await checkMachine({ PATH: folder, TENSOR_BUS_LIBNCCL: path }), "NCCL")).toMatchObject({
      status: "missing",
      found: expect.stringContaining(path),
      advice: expect.stringContaining("nvidia-nccl-cu13"),
    });
  });

  test("says of kernels that are named and not there what names them", async () => {
    const path = join(folder, "none.ptx");
    expect(find(await checkMachine({ PATH: folder, TENSOR_BUS_CUDA_KERNELS: path }), "CUDA kernels")).toEqual(
      {
        name: "CUDA kernels",
        status: "missing",
        needed: "option",
        found: `${path} is not there`,
        advice: expect.stringContaining("TENSOR_BUS_CUDA_KERNELS"),
      },
    );
  });

  test("asks for the compiler that CC names", async () => {
    const checks = await checkMachine({ PATH: folder, CC: "no-such-cc" });
    expect(find(checks, "C compiler").found).toBe("none of no-such-cc");
  });

  test("counts equal GPUs as one line", async () => {
    const fake = join(folder, "nvidia-smi");
    writeFileSync(fake, "#!/bin/sh\nfor i in 1 2; do echo 'NVIDIA H200, 143771 MiB, 580.1'; done\n", {
      mode: 0o755,
    });
    const checks = await checkMachine({ PATH: `${folder}:/bin:/usr/bin` });
    rmSync(fake);
    expect(find(checks, "GPUs")).toMatchObject({ status: "ok", found: "2 x NVIDIA H200, 143771 MiB, 580.1" });
  });
});

describe("probes", () => {
  test("libraries: the search path first, then the wheels, then nothing", async () => {
    const library = join(folder, "libprobe.so.1.2");
    writeFileSync(library, "");
    symlinkSync(library, join(folder, "libprobe.so.1"));
    expect(await findLibrary("libprobe.so.1", [], { LD_LIBRARY_PATH: folder })).toBe(library);
    expect(await findLibrary("libprobe.so.1", [folder], { PATH: folder })).toBeUndefined();
  });

  test("programs that fail or are missing print nothing", async () => {
    expect(await outputOf("sh", ["-c", "echo hello; echo no >&2"], process.env)).toBe("hello");
    expect(await outputOf("sh", ["-c", "exit 3"], process.env)).toBeUndefined();
    expect(await outputOf("no-such-program", [], process.env)).toBeUndefined();
  });

  test("limits of this process", () => {
    expect(limitOf("Max open files")?.soft).toMatch(/^(\d+|unlimited)$/);
    expect(limitOf("Max imaginary things")).toBeUndefined();
  });
});
