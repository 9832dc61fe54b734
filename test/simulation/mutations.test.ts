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

test.each(mutations)("$name: found", async ({ name, changes, breaks, within }) => {
  const outfile = join(folder, `${mutations.findIndex((each) => each.name === name)}.mjs`);
  const bundle = await buildSimulation({ outfile, mutations: changes });
  let found: { seed: number; rule: string } | undefined;
  await runSeeds(bundle, {
    first: 1,
    runs: within,
    jobs: 1,
    onReport({ seed, violations }) {
      const violation = violations.find(({ rule }) => breaks.includes(rule));
      if (violation !== undefined) found = { seed, rule: violation.rule };
      return found === undefined;
    },
  });
  expect(found, `within ${within} seeds`).toBeDefined();
});
