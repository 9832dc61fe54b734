import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";
import { join } from "node:path";

/** The tests run on the sources: the planner, the page of reports and the native library are built first. */
export default function setup(): () => void {
  const root = join(import.meta.dirname, "..");
  for (const script of ["scripts/build-wasm.mjs", "scripts/build-page.mjs"]) {
    execFileSync(process.execPath, [join(root, script)], { cwd: root, stdio: "inherit" });
  }
  execFileSync(process.execPath, [join(root, "scripts/install-native.mjs"), "--strict"], {
    cwd: root,
    stdio: "inherit",
  });
  // A libcuda for tests without a GPU: native/test/doubles/cuda.
  execFileSync("make", ["-s", "-C", join(root, "native"), "doubles"], { stdio: "inherit" });
  // What files build for all: test/kit/builds.ts.
  const builds = join(root, "build", `test-${process.pid}`);
  process.env["TENSORBUS_TEST_BUILDS"] = builds;
  return () => rmSync(builds, { recursive: true, force: true });
}
