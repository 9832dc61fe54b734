// Builds native/build/libtensorbus.so with the system's make and C compiler: npm's `install` script, also where this
// package is a dependency. Where one of them is missing it says so and ends well, since planning needs nothing native;
// with --strict that is a failure.
import { spawnSync } from "node:child_process";
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
