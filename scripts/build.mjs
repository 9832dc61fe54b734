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

/**
 * The command line is bundled apart, with all that is JavaScript alone: a few hundred small files of packages take Node.js longer to
 * find and to read than most commands take for their work (`npm run bench -- start`), and cost an agent memory. It is without
 * spaces between words, since V8 keeps the text. What others import shares rxjs with them, whose types are theirs as well.
 */
const insideOfCommandLine = [
  "@noble/hashes",
  "cli-progress",
  "cli-table3",
  "commander",
  "fastest-levenshtein",
  "picocolors",
  "re2js",
  "rxjs",
  "yaml",
  "zod",
];

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

/** The files by their paths in dist/, shared chunks first: whoever reads an entry finds what it imports. */
async function bundles() {
  const made = [
    // What npm installs stays outside of the bundles, but for the hash that the planner needs in a browser too.
    ...(await bundle("index", entries, ["@noble/hashes"], { chunkNames: "chunks/[name]-[hash]" })),
    ...(await bundle("cli", { cli: "src/cli/main.ts" }, insideOfCommandLine, {
      chunkNames: "chunks/cli-[name]-[hash]",
      minifyWhitespace: true,
      alias: {
        // The build for browsers is made of modules, of which only what is used is bundled.
        yaml: join(root, "node_modules/yaml/browser/index.js"),
        // The modules of ECMAScript; under its name, Node.js gets those of CommonJS.
        rxjs: join(root, "node_modules/rxjs/dist/esm/index.js"),
      },
      // What the CommonJS packages require of Node.js.
      banner: {
        js: 'import { createRequire as requireOfPackages } from "node:module"; const require = requireOfPackages(import.meta.url);',
      },
    })),
  ];
  const isChunk = ([path]) => path.startsWith("chunks");
  return [...made.filter(isChunk), ...made.filter((one) => !isChunk(one))];
}

/** With the notices of the packages whose code is in it. */
async function bundle(name, entryPoints, inside, options) {
  const { dependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  const { outputFiles, metafile } = await build({
    absWorkingDir: root,
    entryPoints,
    outdir: dist,
    write: false,
    metafile: true,
    ...nodeBundle,
    splitting: true,
    external: Object.keys(dependencies).filter((each) => !inside.includes(each)),
    sourcemap: true,
    logLevel: "warning",
    ...options,
  });
  const notices = noticesOf(packagesIn(Object.keys(metafile.inputs)));
  return [
    ...outputFiles.map(({ path, contents }) => [relative(dist, path), contents]),
    [`${name}.notices.txt`, Buffer.from(`${notices}\n`)],
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
    if (file.isFile() && !kept.has(relative(dist, path))) rmSync(path);
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
