import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildSimulation } from "./build.mjs";
import { runSeeds } from "./run-seeds.mjs";

const build = join(import.meta.dirname, "../../build");
mkdirSync(build, { recursive: true });
const folder = mkdtempSync(join(build, "simulation-"));
let bundle: string;
beforeAll(async () => {
  bundle = await buildSimulation({ outfile: join(folder, "simulation.mjs") });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("a seed is the same schedule every time, in whatever thread it runs, with its trace or without", async () => {
  const digests = async (options: { first: number; runs: number; jobs: number; trace?: boolean }) => {
    const found = new Map<number, string>();
    await runSeeds(bundle, { ...options, onReport: ({ seed, digest }) => !!found.set(seed, digest) });
    return found;
  };
  const once = await digests({ first: 1, runs: 40, jobs: 2 });
  expect(new Set(once.values()).size).toBe(40);
  expect([...(await digests({ first: 21, runs: 20, jobs: 1, trace: true }))]).toEqual(
    [...once].filter(([seed]) => seed > 20).sort(([one], [other]) => one - other),
  );
});

/**
 * Schedules in which a rule was once seen violated. Draws that are added make other schedules of them: what was wrong is held by the
 * tests of the modules as well.
 */
const found = [
  // An announcement that came to the store after its round's records had been removed stayed there.
  50003129,
  // A rank that has called the other way had completed the round before, which the judge held against its being named.
  50001710,
  // What a rank was in doubt of was committed while a round of the other direction sent from there.
  60010691,
  // The last rank to leave had lost its store before a round failed that it did not know of, whose records stayed.
  80004593,
  // A rank that died after all had prepared, and before the slow store had said so to another one: that one had the batch for good.
  81008822,
  // A round was over, and its call not yet answered, since the store did not say which version it carried: another call was taken.
  81009659,
  // A rank's second side had been in an attempt that its first one had opened, and was taken for late to it when all registered anew.
  140032520,
  // The last rank to leave had completed a round that the rank which tidies was in doubt of: those before stayed in the store.
  300004035,
  // A rank that did not hear the store had gone on by two rounds that others had refused, and shown itself in the next.
  300010729,
  // A rank that had refused a round when the batch ended named the next one.
  300025712,
];

test.each(found)("seed %i violates no rule any more", async (first) => {
  const reports: unknown[] = [];
  await runSeeds(bundle, {
    first,
    runs: 1,
    jobs: 1,
    onReport: ({ violations }) => !!reports.push(violations),
  });
  expect(reports).toEqual([[]]);
});
