import { execFileSync } from "node:child_process";
import { join } from "node:path";

/** The tests run on the sources: the planner and the native library are built first (both are incremental). */
export default function setup(): void {
  const root = join(import.meta.dirname, "..");
  execFileSync(process.execPath, [join(root, "scripts/build-wasm.mjs")], { cwd: root, stdio: "inherit" });
  execFileSync(process.execPath, [join(root, "scripts/install-native.mjs"), "--strict"], {
    cwd: root,
    stdio: "inherit",
  });
}
