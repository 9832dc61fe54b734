import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { LibraryHandle } from "koffi";
import { TensorBusError } from "../errors.ts";
import { loadKoffi } from "./koffi.ts";

/** `TB_ABI_VERSION` of the header that these declarations were written for. */
export const abiVersion = 1;

/**
 * Where the native library stands: `native/build` of the package, which is found upwards from this file, since in the
 * package it is part of a bundle.
 */
export function libraryPath(): string {
  const here = dirname(fileURLToPath(import.meta.url));
  for (let folder = here; ; folder = dirname(folder)) {
    if (existsSync(join(folder, "native/include/tensorbus.h")) || folder === dirname(folder)) {
      return join(folder, "native/build/libtensorbus.so");
    }
  }
}

/**
 * Loads the native library. `TB_NATIVE_MISSING` if it is not built, with what to do about it; `TB_LIBRARY` if it
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
  let found: number;
  try {
    library = koffi.load(path);
    found = library.func("tb_abi_version", "uint32_t", [])();
  } catch (cause) {
    throw new TensorBusError("TB_LIBRARY", `${path} is not a tensorbus library for this machine`, {
      details: { path },
      cause,
    });
  }
  if (found !== abiVersion) {
    library.unload();
    throw new TensorBusError(
      "TB_LIBRARY",
      `${path} has the interface version ${found}, not ${abiVersion}: run \`npm rebuild tensorbus\``,
      { details: { path, found, expected: abiVersion } },
    );
  }
  return library;
}
