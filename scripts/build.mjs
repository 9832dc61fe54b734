// Builds dist/: the WebAssembly planner, the kernels for CUDA (where there is nvcc), the bundles (esbuild) and the type declarations (tsc).
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const run = (script, ...args) =>
  execFileSync(process.execPath, [join(root, script), ...args], { cwd: root, stdio: "inherit" });

rmSync(join(root, "dist"), { recursive: true, force: true });
run("scripts/build-wasm.mjs");
run("scripts/build-schema.mjs");
run("scripts/build-cuda.mjs");
run("scripts/build-page.mjs");

const { dependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const entries = {
  index: "src/index.ts",
  plan: "src/plan/index.ts",
  model: "src/model/index.ts",
  cli: "src/cli/main.ts",
  "transports/memory": "transports/memory/index.ts",
  "transports/cuda-ipc": "transports/cuda-ipc/index.ts",
  "transports/shm": "transports/shm/index.ts",
  "transports/nccl": "transports/nccl/index.ts",
  "transports/tcp": "transports/tcp/index.ts",
};
await build({
  absWorkingDir: root,
  entryPoints: Object.fromEntries(Object.entries(entries).filter(([, file]) => existsSync(join(root, file)))),
  outdir: "dist",
  bundle: true,
  splitting: true,
  format: "esm",
  platform: "node",
  target: "node20.19",
  // What npm installs stays outside of the bundles, but for the hash that the planner needs in a browser too.
  external: Object.keys(dependencies).filter((name) => name !== "@noble/hashes"),
  sourcemap: true,
  chunkNames: "chunks/[name]-[hash]",
  logLevel: "warning",
});
run("node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json");
