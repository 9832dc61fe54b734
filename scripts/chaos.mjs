// npm run chaos -- --faults N --seed S [--seconds T] [--json FILE]
//
// Bundles the runner, the host of a rank and the store, and runs faults against the built command line (`npm run build`).
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { build } from "esbuild";

const root = dirname(import.meta.dirname);
mkdirSync(join(root, "build"), { recursive: true });
// Within the package, where native code and other packages are found.
const folder = mkdtempSync(join(root, "build", "chaos-"));
try {
  const names = ["run", "rank", "store"];
  await build({
    entryPoints: names.map((name) => join(root, "test/chaos", `${name}.ts`)),
    outdir: folder,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node20.19",
    packages: "external",
    logLevel: "warning",
  });
  const at = (name) => join(folder, `${name}.mjs`);
  const programs = { cli: join(root, "dist/cli.js"), rank: at("rank"), store: at("store") };
  const child = spawn(process.execPath, [at("run"), ...process.argv.slice(2)], {
    cwd: root,
    stdio: "inherit",
    env: { ...process.env, CHAOS_PROGRAMS: JSON.stringify(programs) },
  });
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => child.kill(signal));
  const [code] = await once(child, "exit");
  process.exitCode = code ?? 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
