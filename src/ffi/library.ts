import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { LibraryHandle } from "koffi";
import { TensorBusError } from "../errors.ts";
import { loadKoffi } from "./koffi.ts";

/** `TB_ABI_VERSION` of the header that these declarations were written for. */
export const abiVersion = 1;

/** The native library, and what it is: built on this machine, or prebuilt with the SHA-256 that its release names. */
export interface NativeLibrary {
  readonly path: string;
  readonly prebuilt?: { readonly package: string; readonly sha256: string };
}

/** `native/prebuilt.json` of a release: the package and the digest of each platform's library. */
type Release = Readonly<Record<string, { readonly package: string; readonly sha256: string }>>;

let found: NativeLibrary | undefined;

/** The library of this process: `findLibrary` for the package that this code is part of. */
export function nativeLibraryFile(): NativeLibrary {
  found ??= findLibrary(dirname(fileURLToPath(import.meta.url)));
  return found;
}

export function libraryPath(): string {
  return nativeLibraryFile().path;
}

/**
 * Finds the library of the package that a folder belongs to: `native/build` if it was built here, else the one of the
 * platform's package, whose bytes must be those of the release. `TB_NATIVE_MISSING` if there is neither, `TB_LIBRARY`
 * if the bytes are others.
 */
export function findLibrary(inside: string): NativeLibrary {
  const folder = packageAround(inside);
  if (folder === undefined) {
    throw new TensorBusError(
      "TB_NATIVE_MISSING",
      `${inside} is not part of the package tensorbus, where its native library is: bundlers must leave it out ` +
        "(esbuild --external:tensorbus, Vite's ssr.external)",
      { details: { path: inside } },
    );
  }
  const built = join(folder, "native/build/libtensorbus.so");
  if (existsSync(built)) return { path: built };
  const list = join(folder, "native/prebuilt.json");
  return existsSync(list) ? findPrebuilt(folder, list) : { path: built };
}

/** The folder has the header: code of the package is part of a bundle, whose place in it differs. */
function packageAround(inside: string): string | undefined {
  for (let folder = inside; ; folder = dirname(folder)) {
    if (existsSync(join(folder, "native/include/tensorbus.h"))) return folder;
    if (folder === dirname(folder)) return undefined;
  }
}

function findPrebuilt(folder: string, list: string): NativeLibrary {
  const platform = `${process.platform}-${process.arch}`;
  const release = (JSON.parse(readFileSync(list, "utf8")) as Release)[platform];
  const path = release && resolveFrom(folder, `${release.package}/libtensorbus.so`);
  if (release === undefined || path === undefined) throw missing(folder, platform, release?.package);
  const sha256 = createHash("sha256").update(readFileSync(path)).digest("hex");
  if (sha256 === release.sha256) return { path, prebuilt: release };
  throw new TensorBusError(
    "TB_LIBRARY",
    `${path} does not have the bytes of this release of tensorbus: install both packages again`,
    { details: { path, sha256, expected: release.sha256 } },
  );
}

function resolveFrom(folder: string, file: string): string | undefined {
  try {
    return createRequire(join(folder, "package.json")).resolve(file);
  } catch {
    return undefined;
  }
}

function missing(folder: string, platform: string, packageName: string | undefined): TensorBusError {
  const details = { platform, path: folder };
  if (process.platform !== "linux") {
    const message = `the native library is for Linux: on ${platform} only planning works`;
    return new TensorBusError("TB_NATIVE_MISSING", message, { details });
  }
  const why =
    packageName === undefined
      ? `there is no prebuilt native library for ${platform}`
      : `${packageName}, which has the native library for ${platform} with glibc, is not installed (there is none for musl)`;
  return new TensorBusError(
    "TB_NATIVE_MISSING",
    `${why}: ${packageName === undefined ? "" : "install with optional dependencies, or, "}with make and a C compiler ` +
      `installed, run \`npm rebuild tensorbus\` (if install scripts are blocked, ` +
      `\`node ${join(folder, "scripts/install-native.mjs")} --strict\`)`,
    { details },
  );
}

/**
 * Loads the native library. `TB_NATIVE_MISSING` if it is not there, with what to do about it; `TB_LIBRARY` if it
 * does not load or is of another version.
 */
export function openLibrary(path: string = libraryPath()): LibraryHandle {
  if (!existsSync(path)) {
    throw new TensorBusError(
      "TB_NATIVE_MISSING",
      "the native library is not built: with make and a C compiler installed, run `npm rebuild tensorbus` " +
        "(in a clone of the repository `npm run build:native`)",
      { details: { path } },
    );
  }
  const koffi = loadKoffi();
  let library: LibraryHandle;
  let version: number;
  try {
    library = koffi.load(path);
    version = library.func("tb_abi_version", "uint32_t", [])();
  } catch (cause) {
    throw new TensorBusError("TB_LIBRARY", `${path} is not a tensorbus library for this machine`, {
      details: { path },
      cause,
    });
  }
  if (version !== abiVersion) {
    library.unload();
    throw new TensorBusError(
      "TB_LIBRARY",
      `${path} has interface version ${version}, but version ${abiVersion} is needed: run \`npm rebuild tensorbus\``,
      { details: { path, found: version, expected: abiVersion } },
    );
  }
  return library;
}
