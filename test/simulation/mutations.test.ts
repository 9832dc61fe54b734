/** Every rule of the protocol that is broken is found: a simulation that finds nothing would be as silent. */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { buildSimulation } from "./build.mjs";
import { mutations } from "./mutations.ts";
import { runSeeds } from "./run-seeds.mjs";

const build = join(import.meta.dirname, "../../build");
mkdirSync(build, { recursive: true });
const folder = mkdtempSync(join(build, "mutations-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test.each(mutations)("$name: found", { timeout: 600_000 }, async ({
  name,
  changes,
  breaks,
  within,
  seed,
}) => {
  const outfile = join(folder, `${mutations.findIndex((each) => each.name === name)}.mjs`);
  const bundle = await buildSimulation({ outfile, mutations: changes });
  const firstFrom = async (first: number, runs: number) => {
    let found: number | undefined;
    await runSeeds(bundle, {
      first,
      runs,
      jobs: 1,
      onReport({ seed, violations }) {
        if (violations.some(({ rule }) => breaks.includes(rule))) found = seed;
        return found === undefined;
      },
    });
    return found;
  };
  if (seed !== undefined && seed <= within && (await firstFrom(seed, 1)) !== undefined) return;
  const found = await firstFrom(1, within);
  expect(found, `within ${within} seeds`).toBeDefined();
  if (seed !== undefined) console.warn(`seed ${seed} finds no longer that ${name}; seed ${found} does`);
});
