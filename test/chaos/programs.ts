/** The programs of a cluster as the tests run them: bundled from the sources, so that nothing has to be built before. */
import { BundledCli } from "../cli/kit/bundled-cli.ts";
import { buildPrograms } from "./build.mjs";
import type { Programs } from "./children.ts";

export async function ownPrograms(): Promise<{ readonly programs: Programs; remove(): void }> {
  const cli = await BundledCli.build();
  const built = await buildPrograms(["rank", "store"]);
  return {
    programs: { cli: cli.script, rank: built.at("rank"), store: built.at("store") },
    remove: () => built.remove(),
  };
}
