// The engine's tests for arm64, cross-compiled and run by qemu's emulation of a process: kernels, wire, memory, rounds on
// virtual time. What qemu does not emulate is left out by name, with the reason; it needs Debian's gcc-aarch64-linux-gnu,
// libc6-dev-arm64-cross and qemu-user.
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { platforms } from "./native.mjs";

const native = join(import.meta.dirname, "../../native");
const { cc } = platforms["linux-arm64"];
const qemu = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"];
const build = join(native, "build/arm64");
/** As many schedules as take a second here. */
const schedules = "500";

/** What these are about is reading another process's private memory: syscall 270 is ENOSYS. The start is that of /proc/self/stat. */
const ofProcesses = "qemu has no process_vm_readv, and makes up when a process began";
const leftOut = {
  bus_test: "qemu has no robust futexes: set_robust_list is ENOSYS",
  changed_bytes_test: ofProcesses,
  engine_test: ofProcesses,
  failure_test: ofProcesses,
  import_test: ofProcesses,
  listener_test: "it has limits of time that emulation does not keep",
  memory_trust_test: ofProcesses,
  nccl_double_test: "its processes never end under qemu",
  pull_test: ofProcesses,
};

for (const program of [cc, qemu[0]]) {
  if (spawnSync(program, ["--version"]).status === 0) continue;
  console.log(`skipped: there is no ${program}`);
  process.exit(0);
}
const names = readdirSync(join(native, "test"))
  .filter((file) => file.endsWith("_test.c"))
  .map((file) => basename(file, ".c"));
const chosen = names.filter((name) => leftOut[name] === undefined);
const targets = [...chosen.map((name) => join(build, "check", name)), join(build, "simulate")];
// Without the sanitizers, which qemu cannot give their shadow memory: they check this code on the machine itself.
const variables = [`BUILD=${build}`, `CC=${cc}`, "sanitize=-O2", `RUN=${qemu.join(" ")}`];
execFileSync("make", ["-s", "-j2", "-C", native, ...variables, ...targets], { stdio: "inherit" });

// Tests find the doubles in build/ of where they run.
const folder = mkdtempSync(join(tmpdir(), "tensorbus-arm64-"));
symlinkSync(build, join(folder, "build"));
const failed = [];
const waiting = [...targets];
// Some of them mostly wait: more run than there are processors.
await Promise.all(Array.from({ length: 4 }, runWaiting));
rmSync(folder, { recursive: true });
for (const [name, why] of Object.entries(leftOut)) console.log(`not run on arm64: ${name}: ${why}`);
console.log(`arm64: ${targets.length - failed.length} passed, ${failed.length} failed`);
process.exitCode = failed.length === 0 ? 0 : 1;

async function runWaiting() {
  for (let target = waiting.shift(); target !== undefined; target = waiting.shift()) {
    const args = basename(target) === "simulate" ? ["--runs", schedules] : [];
    const child = spawn(qemu[0], [...qemu.slice(1), target, ...args], { cwd: folder, timeout: 300_000 });
    let output = "";
    child.stdout.resume();
    child.stderr.on("data", (data) => (output += data));
    const [status, signal] = await once(child, "close");
    if (status === 0) continue;
    failed.push(basename(target));
    console.error(`${basename(target)}: ended with ${signal ?? status}\n${output}`);
  }
}
