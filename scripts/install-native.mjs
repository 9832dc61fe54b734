// Builds native/build/libtensorbus.so with the system's make and C compiler: npm's `install` script. Where one of them
// is missing it says so and ends well, since planning needs nothing native; with --strict that is a failure.
import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const native = join(dirname(fileURLToPath(import.meta.url)), "..", "native");
const strict = process.argv.includes("--strict");
/** No native code: `tensorbus/plan` works, and whatever needs the library says TB_NATIVE_MISSING when it is called. */
const giveUp = (...lines) => {
  console.error(lines.map((line) => `tensorbus: ${line}`).join("\n"));
  process.exit(strict ? 1 : 0);
};
const runs = (command) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;
const howTo =
  "Install them (Debian, Ubuntu: apt install build-essential; Fedora: dnf install make gcc; Alpine: apk add build-base) " +
  "and run `npm rebuild tensorbus`.";

if (process.platform !== "linux") {
  giveUp(`the native library is for Linux; on ${process.platform} only planning works.`);
}
const compiler = process.env.CC ? [process.env.CC] : ["cc", "gcc", "clang"].filter(runs);
const missing = [
  ...(runs("make") ? [] : ["make"]),
  ...(compiler.length > 0 && runs(compiler[0]) ? [] : [process.env.CC ?? "a C compiler"]),
];
if (missing.length > 0) {
  giveUp(`${missing.join(" and ")} not found: the native library is not built, only planning works.`, howTo);
}

const make = spawnSync("make", ["-s", "-j2", `CC=${compiler[0]}`], { cwd: native, encoding: "utf8" });
if (make.status !== 0) {
  console.error(`${make.stdout ?? ""}${make.stderr ?? ""}`.trim());
  giveUp("the native library could not be built (see above); only planning works.");
}
