// Builds native/build/libtensorbus.so with the system's make and C compiler: npm's `install` script, also if this
// package is a dependency. Does nothing if the prebuilt library of the release is installed, unless
// TENSOR_BUS_BUILD_FROM_SOURCE=1 or --strict asks for one of this machine's own. If a tool is missing it says so and ends
// well, since planning needs nothing native; with --strict that is a failure.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const native = join(dirname(fileURLToPath(import.meta.url)), "..", "native");
const strict = process.argv.includes("--strict");

/** What needs the library says TB_NATIVE_MISSING when it is called; everything else works. */
function giveUp(...lines) {
  console.error(lines.map((line) => `tensorbus: ${line}`).join("\n"));
  process.exit(strict ? 1 : 0);
}

/** A command may have arguments, as in CC="ccache gcc". */
function runs(command) {
  return spawnSync(`${command} --version`, { shell: true, stdio: "ignore" }).status === 0;
}

/** Its bytes are checked when it is loaded: this script may never run. It is of no use to musl, where glibc has no version. */
function hasPrebuilt() {
  if (process.report.getReport().header.glibcVersionRuntime === undefined) return false;
  const list = join(native, "prebuilt.json");
  if (!existsSync(list)) return false;
  const release = JSON.parse(readFileSync(list, "utf8"))[`${process.platform}-${process.arch}`];
  try {
    return createRequire(list).resolve(`${release.package}/libtensorbus.so`) !== undefined;
  } catch {
    return false;
  }
}

if (!strict && !["1", "true"].includes(process.env.TENSOR_BUS_BUILD_FROM_SOURCE) && hasPrebuilt()) {
  process.exit(0);
}
if (process.platform !== "linux") {
  giveUp(`the native library is for Linux; on ${process.platform} only planning works.`);
}
const compiler = (process.env.CC ? [process.env.CC] : ["cc", "gcc", "clang"]).find(runs);
const missing = [
  ...(runs("make") ? [] : ["make"]),
  ...(compiler === undefined
    ? [process.env.CC ? `the C compiler CC=${process.env.CC}` : "a C compiler"]
    : []),
];
if (missing.length > 0) {
  giveUp(
    `${missing.join(" and ")} not found: the native library is not built, only planning works.`,
    "Install them (Debian, Ubuntu: apt install build-essential; Fedora: dnf install make gcc; Alpine: apk add " +
      "build-base) and run `npm rebuild tensorbus`, in a clone `npm run build:native`.",
  );
}

const make = spawnSync("make", ["-s", "-j2", `CC=${compiler}`], { cwd: native, encoding: "utf8" });
if (make.status !== 0) {
  console.error(`${make.stdout ?? ""}${make.stderr ?? ""}`.trim());
  giveUp("the native library could not be built (see above); only planning works.");
}
