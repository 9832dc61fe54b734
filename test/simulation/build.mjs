// Bundles the simulation: the modules of the product as they are, on a platform of the simulated world's.
import { readFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "..", "..");
const platform = join(here, "platform");

/** Modules of the product that reach beyond JavaScript, and what stands in their place. */
const replaced = {
  "src/bus/queue/decode.ts": "decode.ts",
  "src/memory/host-memory.ts": "host-memory.ts",
  "src/memory/kernels.ts": "kernels.ts",
  "src/plan/index.ts": "plan.ts",
};
const replacedPackages = {
  "node:crypto": "crypto.ts",
  "node:timers/promises": "timers.ts",
  "node:zlib": "zlib.ts",
};

/**
 * `mutations`: by the path of a module from the root, texts that are replaced in it, each of which must be there exactly once.
 * Gives the path of the bundle.
 */
export async function buildSimulation({ outfile, mutations = {} }) {
  const applied = new Set();
  await build({
    absWorkingDir: root,
    entryPoints: [join(here, "worker.ts")],
    outfile,
    ...nodeBundle,
    packages: "external",
    inject: [join(platform, "globals.ts")],
    sourcemap: "inline",
    logLevel: "warning",
    plugins: [replacePlatform(), mutate(mutations, applied)],
  });
  const missed = Object.keys(mutations).filter((path) => !applied.has(path));
  if (missed.length > 0) throw new Error(`mutations of modules that the simulation does not have: ${missed}`);
  return outfile;
}

function replacePlatform() {
  return {
    name: "platform",
    setup({ onResolve }) {
      onResolve({ filter: /^node:(crypto|timers\/promises|zlib)$/ }, ({ path, importer }) =>
        isPlatform(importer) ? undefined : { path: join(platform, replacedPackages[path]) },
      );
      onResolve({ filter: /\.ts$/ }, ({ path, resolveDir, importer }) => {
        if (isPlatform(importer)) return undefined;
        const file = pathFromRoot(join(resolveDir, path));
        return file in replaced ? { path: join(platform, replaced[file]) } : undefined;
      });
    },
  };
}

/** Changes modules, and refuses what would reach beyond the simulated platform. */
function mutate(mutations, applied) {
  return {
    name: "mutations",
    setup({ onLoad }) {
      onLoad({ filter: /\.ts$/ }, ({ path }) => {
        const file = pathFromRoot(path);
        const changes = mutations[file];
        if (changes === undefined && !isSimulated(file)) return undefined;
        let contents = readFileSync(path, "utf8");
        const real = /AbortSignal\.timeout|process\.(hrtime|nextTick)|Math\.random/.exec(
          contents.replace(/\/\*[\s\S]*?\*\/|\/\/.*/g, ""),
        );
        if (real !== null) throw new Error(`${file} uses ${real[0]}, which cannot be simulated`);
        if (changes === undefined) return undefined;
        applied.add(file);
        for (const [from, to] of changes) {
          if (contents.split(from).length !== 2)
            throw new Error(`${file} has not exactly one place for: ${from}`);
          contents = contents.replace(from, () => to);
        }
        return { contents, loader: "ts" };
      });
    },
  };
}

/** What an operating system is asked for is loaded with what names its types, and never called. */
function isSimulated(file) {
  return file.startsWith("src/") && !/^src\/(ffi|bus\/process)\//.test(file);
}

function isPlatform(importer) {
  return importer.startsWith(platform + sep);
}

function pathFromRoot(path) {
  return relative(root, path).split(sep).join("/");
}
