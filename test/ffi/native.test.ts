import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { errorBytes, readError } from "../../src/ffi/error.ts";
import { libraryPath, openLibrary } from "../../src/ffi/library.ts";
import { declareNative, nativeLibrary } from "../../src/ffi/native.ts";

const root = join(import.meta.dirname, "../..");
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "tensorbus-ffi-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function failure(run: () => unknown): TensorBusError {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(TensorBusError);
    return error as TensorBusError;
  }
  throw new Error("it did not fail");
}

/** A library of its own out of some C. */
function compile(name: string, source: string): string {
  const path = join(folder, `${name}.so`);
  writeFileSync(join(folder, `${name}.c`), source);
  execFileSync("cc", ["-shared", "-fPIC", `-I${root}/native/include`, "-o", path, join(folder, `${name}.c`)]);
  return path;
}

describe("openLibrary", () => {
  it("finds the library of the package", () => {
    expect(libraryPath()).toBe(join(root, "native/build/libtensorbus.so"));
    expect(nativeLibrary()).toBe(nativeLibrary());
  });

  it("says what to do where it is not built", () => {
    const error = failure(() => openLibrary(join(folder, "none.so")));
    expect(error.code).toBe("TB_NATIVE_MISSING");
    expect(error.message).toMatch(/npm rebuild tensorbus/);
    expect(error.exitCode).toBe(3);
  });

  it("refuses what is no library, none of ours, or of another version", () => {
    const text = join(folder, "text.so");
    writeFileSync(text, "no library");
    expect(failure(() => openLibrary(text)).code).toBe("TB_LIBRARY");
    const foreign = compile("foreign", "int something(void) { return 1; }");
    expect(failure(() => openLibrary(foreign)).code).toBe("TB_LIBRARY");
    const other = compile("other", "unsigned tb_abi_version(void) { return 99; }");
    const error = failure(() => openLibrary(other));
    expect(error.code).toBe("TB_LIBRARY");
    expect(error.details).toMatchObject({ found: 99 });
  });

  it("loads code that stays when it is unloaded, since a process may end while its threads run", () => {
    const copy = join(folder, "staying.so");
    copyFileSync(libraryPath(), copy);
    openLibrary(copy).unload();
    const code = readFileSync("/proc/self/maps", "utf8").split("\n");
    expect(code.filter((line) => line.endsWith(copy) && line.includes("r-xp"))).toHaveLength(1);
  });
});

describe("declareNative", () => {
  it("opens nothing before the first call", () => {
    let opened = 0;
    const functions = declareNative(
      { tb_crc32c: { returns: "u32", parameters: ["u32", "pointer", "u64"] } },
      () => {
        opened++;
        return openLibrary();
      },
    );
    expect(opened).toBe(0);
    expect(functions.tb_crc32c(0, Buffer.from("123456789"), 9n)).toBe(0xe3069283);
    expect(functions.tb_crc32c(5, null, 0n)).toBe(5);
    expect(opened).toBe(1);
  });

  it("gives outputs as results, and throws what C reported", () => {
    const path = compile(
      "outputs",
      `#include "tensorbus.h"
       #include <string.h>
       int32_t one(uint32_t in, uint64_t *out, tb_error *err) { *out = in + (1ull << 40); return 0; }
       int32_t two(int32_t *a, const char *text, uint32_t *b, tb_error *err) { *a = -1; *b = strlen(text); return 0; }
       int32_t none(tb_error *err) { return 0; }
       int32_t fails(tb_error *err) {
         memset(err, 0, sizeof *err);
         err->code = TB_EPEER_LOST; err->rank = 3; err->os_errno = 104;
         strcpy(err->message, "rank 3 is gone \\xe2\\x82\\xac");
         return err->code;
       }
       int32_t silent(tb_error *err) { memset(err, 0, sizeof *err); return 7; }
       int32_t newer(tb_error *err) { memset(err, 0, sizeof *err); return err->code = 9999; }
       uint32_t tb_abi_version(void) { return TB_ABI_VERSION; }`,
    );
    const functions = declareNative(
      {
        one: ["u32", "out u64"],
        two: ["out i32", "string", "out u32"],
        none: [],
        fails: [],
        silent: [],
        newer: [],
        missing: [],
      },
      () => openLibrary(path),
    );
    expect(functions.one(2)).toBe(2n ** 40n + 2n);
    expect(functions.two("abc")).toEqual([-1, 3]);
    expect(functions.none()).toBe(undefined);
    const error = failure(() => functions.fails());
    expect([error.code, error.message, error.details]).toEqual([
      "TB_PEER_LOST",
      "rank 3 is gone €",
      { rank: 3, errno: 104 },
    ]);
    expect(failure(() => functions.silent()).message).toMatch(/silent returned 7/);
    expect(failure(() => functions.newer()).message).toMatch(/9999/);
    expect(failure(() => functions.missing()).code).toBe("TB_LIBRARY");
  });
});

describe("readError", () => {
  it("reads an error that stands within other bytes", () => {
    const bytes = new Uint8Array(errorBytes + 64);
    expect(readError(bytes, 64)).toBe(undefined);
    new DataView(bytes.buffer).setInt32(64, 300, true);
    new DataView(bytes.buffer).setInt32(68, -1, true);
    bytes.set(Buffer.from("late"), 80);
    const error = readError(bytes, 64);
    expect([error?.code, error?.message, error?.details]).toEqual(["TB_TIMEOUT", "late", {}]);
  });
});

describe("a process that only plans", () => {
  it("loads neither koffi nor the native library", () => {
    const script = `
      import "${root}/src/ffi/kernels.ts";
      import "${root}/src/memory/index.ts";
      import { readFileSync } from "node:fs";
      console.log(/koffi|libtensorbus/.test(readFileSync("/proc/self/maps", "latin1")));`;
    const esbuild = join(root, "node_modules/.bin/esbuild");
    const options = ["--bundle", "--platform=node", "--format=esm", "--external:koffi", "--loader=ts"];
    const bundle = spawnSync(esbuild, options, { input: script, encoding: "utf8", cwd: root });
    expect(bundle.stderr).toBe("");
    const ran = spawnSync(process.execPath, ["--input-type=module"], {
      input: bundle.stdout,
      encoding: "utf8",
      cwd: root,
    });
    expect(ran.stdout.trim()).toBe("false");
  });
});
