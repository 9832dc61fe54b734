// The prebuilt native library of a platform: linked for glibc 2.17, of the same bytes wherever and whenever it is built by
// the same compiler.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compareVersions, makeStubs, neededGlibc } from "./glibc.mjs";

/** The first glibc for arm64, and the one of manylinux2014. Node.js itself asks for 2.28. */
export const glibcFloor = "2.17";

/** Platforms by the names that Node.js has for them, each with Debian's compiler for it. */
export const platforms = {
  "linux-x64": { cpu: "x64", cc: "x86_64-linux-gnu-gcc", loader: "ld-linux-x86-64.so.2" },
  "linux-arm64": { cpu: "arm64", cc: "aarch64-linux-gnu-gcc", loader: "ld-linux-aarch64.so.1" },
};

/** What made it: part of what decides on the bytes. */
export function compilerOf(platform) {
  return execFileSync(platforms[platform].cc, ["--version"], { encoding: "utf8" }).split("\n")[0];
}

/** Builds the library for `platform` from the sources in `native`, as `out`. */
export function buildNative(platform, native, out) {
  const { cc, loader } = platforms[platform];
  const folder = mkdtempSync(join(tmpdir(), "tensorbus-native-"));
  try {
    const stubs = join(folder, "stubs");
    makeStubs({ cc, loader }, glibcFloor, stubs);
    // No path of this machine, no time and no random id gets into the bytes.
    const flags = ["-O3", `-ffile-prefix-map=${native}=native`];
    const portable = join(folder, "portable.o");
    const compile = ["-std=c11", "-D_GNU_SOURCE", "-fPIC", "-fvisibility=hidden", ...flags];
    execFileSync(cc, [...compile, "-c", "portable/portable.c", "-o", portable], {
      cwd: native,
      stdio: "inherit",
    });
    const library = join(folder, "libtensorbus.so");
    const variables = [
      `BUILD=${folder}`,
      `CC=${cc}`,
      `CFLAGS=${flags.join(" ")}`,
      `LDFLAGS=-L${stubs} -s -static-libgcc -Wl,--build-id=none,--as-needed`,
      `LDLIBS=${portable} -ldl -lrt -l:${loader.replace(/(\.so)\.\d+$/, "$1")}`,
    ];
    const environment = { ...process.env, LC_ALL: "C", SOURCE_DATE_EPOCH: "0" };
    execFileSync("make", ["-s", "-j2", ...variables, library], {
      cwd: native,
      stdio: "inherit",
      env: environment,
    });
    const needed = neededGlibc(library);
    if (needed === undefined || compareVersions(needed, glibcFloor) > 0) {
      throw new Error(`${platform}: the library asks for glibc ${needed}, not ${glibcFloor}`);
    }
    copyFileSync(library, out);
  } finally {
    rmSync(folder, { recursive: true });
  }
}
