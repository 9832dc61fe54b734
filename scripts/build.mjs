// Builds dist/: the WebAssembly planner, the kernels for CUDA (if there is nvcc), the bundles (esbuild) and the type
// declarations (tsc). Files change one by one, each as a whole and only if it differs, and what is no longer made goes one
// build later: processes that run from dist/ meanwhile load their chunks when they need them. `npm install FOLDER` builds.
import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { bundleCommandLine } from "./cli-bundle.mjs";
import { nodeBundle } from "./node-bundle.mjs";
import { noticesOf, packagesIn } from "./notices.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const dist = join(root, "dist");
const madeBefore = join(root, "build/dist.json");
const run = (script, ...args) =>
  execFileSync(process.execPath, [join(root, script), ...args], { cwd: root, stdio: "inherit" });

/** Each entry of package.json's exports. */
const entries = {
  index: "src/index.ts",
  plan: "src/plan/index.ts",
  model: "src/model/index.ts",
  ...Object.fromEntries(
    readdirSync(join(root, "transports"))
      .sort()
      .map((name) => [`transports/${name}`, `transports/${name}/index.ts`]),
  ),
};

run("scripts/build-wasm.mjs");
run("scripts/build-schema.mjs");
run("scripts/build-page.mjs");
mkdirSync(join(root, "build"), { recursive: true });
const folder = mkdtempSync(join(root, "build/dist-"));
try {
  run("scripts/build-cuda.mjs", join(folder, "cuda/kernels.ptx"));
  replaceDist(new Map([...(await bundles()), ...declarations(), ...kernels()]));
} finally {
  rmSync(folder, { recursive: true });
}

/** The files by their paths in dist/, what others load first: whoever reads an entry finds what it imports. */
async function bundles() {
  const made = [
    ...withNotices("index", await bundleLibrary()),
    ...withNotices("cli", await bundleCommandLine(dist)),
  ];
  const isChunk = ([path]) => path.startsWith("chunks");
  return [...made.filter(isChunk), ...made.filter((one) => !isChunk(one))];
}

/** What npm installs stays outside, but for the hash that the planner needs in a browser too. */
async function bundleLibrary() {
  const { dependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  const { outputFiles, metafile } = await build({
    absWorkingDir: root,
    entryPoints: entries,
    outdir: dist,
    write: false,
    metafile: true,
    ...nodeBundle,
    splitting: true,
    chunkNames: "chunks/[name]-[hash]",
    external: Object.keys(dependencies).filter((each) => each !== "@noble/hashes"),
    sourcemap: true,
    logLevel: "warning",
  });
  return { outputFiles, inputs: Object.keys(metafile.inputs) };
}

/** With the notices of the packages whose code is in it. */
function withNotices(name, { outputFiles, inputs }) {
  return [
    ...outputFiles.map(({ path, contents }) => [relative(dist, path), contents]),
    [`${name}.notices.txt`, Buffer.from(`${noticesOf(packagesIn(inputs))}\n`)],
  ];
}

/** The declarations that an entry leads to. The others describe what no caller reaches, by types of packages that are ours alone. */
function declarations() {
  const types = join(folder, "types");
  run("node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json", "--outDir", types);
  const found = new Map();
  const waiting = Object.values(entries).map((file) => file.replace(/\.ts$/, ".d.ts"));
  for (let file = waiting.pop(); file !== undefined; file = waiting.pop()) {
    if (found.has(file)) continue;
    const contents = readFileSync(join(types, file));
    found.set(file, contents);
    for (const [, imported] of contents.toString().matchAll(/(?:from|import|import\()\s*"(\.[^"]+)\.ts"/g)) {
      waiting.push(relative(types, resolve(types, dirname(file), `${imported}.d.ts`)));
    }
  }
  return [...found].map(([file, contents]) => [join("types", file), contents]);
}

function kernels() {
  const file = "cuda/kernels.ptx";
  return existsSync(join(folder, file)) ? [[file, readFileSync(join(folder, file))]] : [];
}

function replaceDist(made) {
  for (const [file, contents] of made) {
    const path = join(dist, file);
    if (existsSync(path) && readFileSync(path).equals(contents)) continue;
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(join(folder, "file"), contents, { mode: file === "cli.js" ? 0o755 : 0o644 });
    renameSync(join(folder, "file"), path);
  }
  const kept = new Set([...made.keys(), ...filesOfBuildBefore(made)]);
  for (const file of readdirSync(dist, { recursive: true, withFileTypes: true })) {
    const path = join(file.parentPath, file.name);
    // A command that ends may have removed a file of its own.
    if (file.isFile() && !kept.has(relative(dist, path))) rmSync(path, { force: true });
  }
}

/** What the last other build made: dist/ keeps it, and this build's list takes its place. */
function filesOfBuildBefore(made) {
  const lists = existsSync(madeBefore) ? JSON.parse(readFileSync(madeBefore, "utf8")) : [];
  const [current = [], before = []] = lists;
  const files = [...made.keys()];
  if (current.join("\n") === files.join("\n")) return before;
  writeFileSync(madeBefore, JSON.stringify([files, current]));
  return current;
}
