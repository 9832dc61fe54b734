/** What tests build for the processes that they start: once for all files of a run, whichever comes first. */
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type BuildOptions, buildSync } from "esbuild";
import { nodeBundle } from "../../scripts/node-bundle.mjs";

const root = join(import.meta.dirname, "../..");

/** The folder of that name, which `make` fills unless a file of this run has made it already. */
export async function built(name: string, make: (folder: string) => Promise<unknown>): Promise<string> {
  const folder = folderOf(name);
  if (!existsSync(folder)) {
    const mine = mkdtempSync(`${folder}-`);
    await make(mine);
    place(mine, folder);
  }
  return folder;
}

/** The bundle of a program of an area's `children/`. */
export function builtChild(
  area: string,
  name: string,
  options: BuildOptions = { packages: "external" },
): string {
  const folder = folderOf(`${area}-${name}`);
  if (!existsSync(folder)) {
    const mine = mkdtempSync(`${folder}-`);
    buildSync({
      entryPoints: [join(root, "test", area, "children", `${name}.ts`)],
      outfile: join(mine, "main.mjs"),
      ...nodeBundle,
      logLevel: "warning",
      ...options,
    });
    place(mine, folder);
  }
  return join(folder, "main.mjs");
}

/** Inside of the repository, where packages and the native library are found; test/global-setup.ts removes it all. */
function folderOf(name: string): string {
  const run = process.env["TENSORBUS_TEST_BUILDS"];
  if (run === undefined) throw new Error("test/global-setup.ts did not run, which says where tests build");
  mkdirSync(run, { recursive: true });
  return join(run, name);
}

function place(mine: string, folder: string): void {
  try {
    renameSync(mine, folder);
  } catch (error) {
    // Another file was first.
    if (!existsSync(folder)) throw error;
    rmSync(mine, { recursive: true });
  }
}
