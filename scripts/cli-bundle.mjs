// Bundles the command line: the program, and one script of all commands with all that is JavaScript alone. A few hundred
// small files of packages take Node.js longer to find and to read than most commands take for their work (`npm run bench -- start`),
// and modules, other than scripts, cannot be kept as V8 has compiled them (src/cli/start.ts). It is without spaces between
// words, since V8 keeps the text. What others import shares rxjs with them, whose types are theirs as well.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { build } from "esbuild";
import { nodeBundle } from "./node-bundle.mjs";

const root = join(import.meta.dirname, "..");

const inside = [
  "@noble/hashes",
  "cli-progress",
  "commander",
  "fastest-levenshtein",
  "lmdb",
  "msgpackr",
  "picocolors",
  "pino",
  "re2js",
  "rxjs",
  "yaml",
  "zod",
];

/** What esbuild made for `folder`, without writing it; the program last. */
export async function bundleCommandLine(folder) {
  const { dependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  const make = (name, source, options) =>
    build({
      absWorkingDir: root,
      entryPoints: { [name]: source },
      outdir: folder,
      write: false,
      metafile: true,
      ...nodeBundle,
      sourcemap: true,
      minify: true,
      logLevel: "warning",
      ...options,
    });
  const script = { format: "cjs", entryNames: "[name]-[hash]", outExtension: { ".js": ".cjs" } };
  const nameOf = ({ outputFiles }) => basename(outputFiles.find(({ path }) => path.endsWith("js")).path);
  // Half a megabyte that one option of one command writes.
  const page = await make("cli-page", "src/cli/report/page-assets.ts", script);
  const commands = await make("cli-commands", "src/cli/command-line.ts", {
    ...script,
    external: Object.keys(dependencies).filter((each) => !inside.includes(each)),
    alias: {
      // The build for browsers is made of modules, of which only what is used is bundled.
      yaml: join(root, "node_modules/yaml/browser/index.js"),
      // Without a library that reads long strings, which ours are not.
      msgpackr: join(root, "node_modules/msgpackr/index.js"),
      // The modules of ECMAScript; under its name, Node.js gets those of CommonJS.
      rxjs: join(root, "node_modules/rxjs/dist/esm/index.js"),
    },
    plugins: [
      standsAt(/\/page-assets\.ts$/, `./${nameOf(page)}`),
      withoutProcesses,
      lmdbAtHome,
      withoutCases,
    ],
    // A function that src/cli/start.ts calls.
    banner: { js: "(function(require,urlOfCommands){var module={exports:{}};" },
    footer: { js: "return module.exports})" },
    define: { "import.meta.url": "urlOfCommands" },
  });
  const program = await make("cli", "src/cli/start.ts", {
    define: { commandsFile: JSON.stringify(nameOf(commands)) },
  });
  const made = [page, commands, program];
  return {
    outputFiles: made.flatMap(({ outputFiles }) => outputFiles),
    inputs: made.flatMap(({ metafile }) => Object.keys(metafile.inputs)),
  };
}

/** The same in its folder, for tests. */
export async function writeCommandLine(folder) {
  mkdirSync(folder, { recursive: true });
  for (const { path, contents } of (await bundleCommandLine(folder)).outputFiles)
    writeFileSync(path, contents);
}

/** What is imported by this name is a file of its own. */
function standsAt(filter, path) {
  return {
    name: "stands at",
    setup: ({ onResolve }) => onResolve({ filter }, () => ({ path, external: true })),
  };
}

/**
 * commander loads what starts processes, for subcommands that are programs of their own; ours are none. What finds lmdb's library
 * does, for systems that do not say which C library they have otherwise.
 */
const withoutProcesses = {
  name: "without processes",
  setup(build) {
    build.onResolve({ filter: /^(node:)?child_process$/ }, ({ importer, path }) =>
      /\/(commander|detect-libc)\//.test(importer) ? { path, namespace: "late" } : undefined,
    );
    build.onLoad({ filter: /.*/, namespace: "late" }, ({ path }) => ({
      contents: ["spawn", "exec", "execSync"]
        .map((name) => `exports.${name} = (...call) => require(${JSON.stringify(path)}).${name}(...call);`)
        .join(""),
    }));
  },
};

/** lmdb looks for its library from its own folder on. */
const lmdbAtHome = {
  name: "lmdb at home",
  setup(build) {
    build.onLoad({ filter: /\/lmdb\/native\.js$/ }, ({ path }) => ({
      contents: replaceOnce(
        path,
        "fileURLToPath(import.meta.url)",
        'createRequire(import.meta.url).resolve("lmdb")',
      ).concat('import { createRequire } from "node:module";'),
    }));
  },
};

/**
 * re2js makes a table of the cases of all letters for the first letter that it compiles, to say whether it needs one: only an
 * expression that ignores case does.
 */
const withoutCases = {
  name: "without cases",
  setup(build) {
    build.onLoad({ filter: /\/re2js\/build\/index\.js$/ }, ({ path }) => {
      const asked =
        "if (runes.length !== 1 || Unicode.simpleFold(runes[0]) === runes[0]) flags &= ~RE2Flags.FOLD_CASE;";
      return { contents: replaceOnce(path, asked, `if ((flags & RE2Flags.FOLD_CASE) !== 0) ${asked}`) };
    });
  },
};

/** The text of a package's file with one place changed. */
function replaceOnce(path, from, to) {
  const text = readFileSync(path, "utf8");
  if (text.split(from).length !== 2)
    throw new Error(`${path} does not say "${from}" once any more: see ${import.meta.url}`);
  return text.replace(from, () => to);
}
