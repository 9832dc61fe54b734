/** Bundles the programs of this folder, within the package, where native code and other packages are found. */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";

const here = import.meta.dirname;

export async function buildPrograms(names) {
  const builds = join(here, "../../build");
  mkdirSync(builds, { recursive: true });
  const folder = mkdtempSync(join(builds, "chaos-"));
  await build({
    entryPoints: names.map((name) => join(here, `${name}.ts`)),
    outdir: folder,
    outExtension: { ".js": ".mjs" },
    ...nodeBundle,
    packages: "external",
    logLevel: "warning",
  });
  return {
    at: (name) => join(folder, `${name}.mjs`),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
