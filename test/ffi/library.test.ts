import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { TensorBusError } from "../../src/errors.ts";
import { findLibrary } from "../../src/ffi/library.ts";

const platform = `${process.platform}-${process.arch}`;
const bytes = "the library of a release";
const sha256 = createHash("sha256").update(bytes).digest("hex");

/** The package as npm lays it out, with the platform's package beside it. */
let top: string;
let folder: string;
let prebuilt: string;
beforeEach(() => {
  top = mkdtempSync(join(tmpdir(), "tensorbus-library-"));
  folder = join(top, "node_modules/tensorbus");
  prebuilt = join(top, "node_modules/@tensorbus", platform, "libtensorbus.so");
  put("native/include/tensorbus.h", "");
  put("dist/chunks/code.js", "");
  put("native/prebuilt.json", JSON.stringify({ [platform]: { package: `@tensorbus/${platform}`, sha256 } }));
});
afterEach(() => rmSync(top, { recursive: true }));

function put(path: string, text: string, inside = folder): string {
  const file = join(inside, path);
  mkdirSync(join(file, ".."), { recursive: true });
  writeFileSync(file, text);
  return file;
}

const find = () => findLibrary(join(folder, "dist/chunks"));

function failure(inside = join(folder, "dist/chunks")): TensorBusError {
  try {
    findLibrary(inside);
  } catch (error) {
    return error as TensorBusError;
  }
  throw new Error("it was found");
}

describe("findLibrary", () => {
  it("takes the prebuilt one of the platform's package, and one that was built here before it", () => {
    put(prebuilt, bytes, "/");
    expect(find()).toEqual({ path: prebuilt, prebuilt: { package: `@tensorbus/${platform}`, sha256 } });
    const built = put("native/build/libtensorbus.so", "built here");
    expect(find()).toEqual({ path: built });
  });

  it("refuses bytes that are not those of the release", () => {
    put(prebuilt, "the library of another release", "/");
    const error = failure();
    expect(error.code).toBe("TB_LIBRARY");
    expect(error.message).toContain("install both packages again");
    expect(error.details).toMatchObject({ path: prebuilt, expected: sha256 });
  });

  it("says which package is not installed, and how to build without install scripts", () => {
    const error = failure();
    expect(error.code).toBe("TB_NATIVE_MISSING");
    expect(error.message).toMatch(
      new RegExp(`^@tensorbus/${platform}, which .*is not installed .there is none for musl`),
    );
    expect(error.message).toContain("npm rebuild tensorbus");
    expect(error.message).toContain(`node ${join(folder, "scripts/install-native.mjs")} --strict`);
  });

  it("says that there is none for a platform, and that one in a bundle cannot be found", () => {
    put("native/prebuilt.json", "{}");
    expect(failure().message).toMatch(
      new RegExp(`^there is no prebuilt native library for ${platform}: with make`),
    );
    const error = failure(top);
    expect([error.code, error.message]).toEqual([
      "TB_NATIVE_MISSING",
      expect.stringContaining("--external:tensorbus"),
    ]);
  });

  it("names the place of the library in a clone, which has no prebuilt one", () => {
    rmSync(join(folder, "native/prebuilt.json"));
    expect(find()).toEqual({ path: join(folder, "native/build/libtensorbus.so") });
  });
});
