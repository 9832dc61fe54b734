// node scripts/gpu.mjs test|bench [--device UUID] [--filter TEXT] [--double] [--json FILE]
//
// What needs a GPU: `npm run test:gpu` and `npm run bench:gpu`. Needs Node.js and a built clone; if esbuild is not
// installed, what was bundled before (build/gpu) is run. Ends with 3, and says what is missing, if there is no GPU. --double
// runs the same on the doubles of libcuda and libnccl, which make builds first; that proves the scripts and nothing else: its
// results are not kept.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { nodeBundle } from "./node-bundle.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const out = join(root, "build/gpu");
const [what, ...options] = process.argv.slice(2);
const entries = {
  test: "test/gpu/main.ts",
  owner: "test/gpu/owner.ts",
  rank: "test/transport/children/rank.ts",
  bench: "bench/gpu/main.ts",
};
if (what !== "test" && what !== "bench") {
  console.error(
    "usage: node scripts/gpu.mjs test|bench [--device UUID] [--filter TEXT] [--double] [--json FILE]",
  );
  process.exit(2);
}

if (options.includes("--double")) {
  // If there is no make, what was built before is used.
  const made = spawnSync("make", ["-s", "-C", join(root, "native"), "doubles"], { stdio: "inherit" });
  if (made.status) process.exit(3);
}
const esbuild = await import("esbuild").catch(() => undefined);
if (esbuild !== undefined) {
  await esbuild.build({
    absWorkingDir: root,
    entryPoints: entries,
    outdir: out,
    outExtension: { ".js": ".mjs" },
    ...nodeBundle,
    external: ["koffi"],
    logLevel: "warning",
  });
} else if (!existsSync(join(out, `${what}.mjs`))) {
  console.error(
    "esbuild is not installed, and nothing was bundled before: run this once where npm ci has run.",
  );
  process.exit(3);
}
const { status } = spawnSync(process.execPath, [join(out, `${what}.mjs`), ...options], { stdio: "inherit" });
process.exit(status ?? 4);
