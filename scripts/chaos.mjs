// npm run chaos: see its usage.
//
// Bundles the runner, the host of a rank and the store, and runs faults against the built command line (`npm run build`).
import { spawn } from "node:child_process";
import { once } from "node:events";
import { dirname, join } from "node:path";
import { buildPrograms } from "../test/chaos/build.mjs";
import { optionsOf, usage } from "../test/chaos/options.mjs";

try {
  if (optionsOf(process.argv.slice(2)).help) {
    console.log(usage);
    process.exit(0);
  }
} catch (error) {
  console.error(`${error.message}\n\n${usage}`);
  process.exit(2);
}
const root = dirname(import.meta.dirname);
const built = await buildPrograms(["run", "rank", "store"]);
try {
  const programs = { cli: join(root, "dist/cli.js"), rank: built.at("rank"), store: built.at("store") };
  const child = spawn(process.execPath, [built.at("run"), ...process.argv.slice(2)], {
    cwd: root,
    stdio: "inherit",
    env: { ...process.env, CHAOS_PROGRAMS: JSON.stringify(programs) },
  });
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => child.kill(signal));
  const [code] = await once(child, "exit");
  process.exitCode = code ?? 1;
} finally {
  built.remove();
}
