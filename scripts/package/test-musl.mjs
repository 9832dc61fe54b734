// The engine's tests under musl, whose users build it from source: compiled by Debian's musl-tools, and run here. They use what the
// kernel's headers say, which musl-tools has not. No Node.js takes part.
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

const native = join(import.meta.dirname, "../../native");
const build = join(native, "build/musl");
const headers = ["/usr/include", `/usr/include/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu`];

const leftOut = {
  handover_test: "it sends 253 descriptors at once, and musl sends no more than 1,024 bytes of them: 252",
};

if (spawnSync("musl-gcc", ["--version"]).status !== 0) {
  console.log("skipped: there is no musl-gcc");
  process.exit(0);
}
const names = readdirSync(join(native, "test"))
  .filter((file) => file.endsWith("_test.c"))
  .map((file) => basename(file, ".c"))
  .filter((name) => leftOut[name] === undefined);
const targets = names.map((name) => join(build, "check", name));
// Without the sanitizers, which are of glibc: they check this code in `npm run test:native`.
const compiler = ["musl-gcc", ...headers.map((folder) => `-idirafter ${folder}`)].join(" ");
const variables = [`BUILD=${build}`, `CC=${compiler}`, "sanitize=-O2"];
execFileSync("make", ["-s", "-j2", "-C", native, ...variables, ...targets], { stdio: "inherit" });

// Tests find the doubles in build/ of where they run.
const folder = mkdtempSync(join(tmpdir(), "tensorbus-musl-"));
symlinkSync(build, join(folder, "build"));
const failed = targets.filter((target) => {
  const { status, signal, stderr } = spawnSync(target, { cwd: folder, encoding: "utf8", timeout: 600_000 });
  if (status !== 0) console.error(`${basename(target)}: ended with ${signal ?? status}\n${stderr}`);
  return status !== 0;
});
rmSync(folder, { recursive: true });
for (const [name, why] of Object.entries(leftOut)) console.log(`not run under musl: ${name}: ${why}`);
console.log(`musl: ${targets.length - failed.length} passed, ${failed.length} failed`);
process.exitCode = failed.length === 0 ? 0 : 1;
