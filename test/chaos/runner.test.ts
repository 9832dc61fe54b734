/** What the runner does on a machine, or with an agent, that does not start: it counts that as what it is, and leaves nothing behind. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { buildPrograms } from "./build.mjs";
import { ReportWriter } from "./report.ts";
import { ChaosRunner } from "./runner.ts";

const folder = mkdtempSync(join(tmpdir(), "tensorbus-runner-"));
/** An agent that is never ready. */
const cli = join(folder, "silent.cjs");
let built: Awaited<ReturnType<typeof buildPrograms>>;

beforeAll(async () => {
  writeFileSync(cli, "setInterval(() => {}, 1000);");
  built = await buildPrograms(["rank", "store"]);
});
afterAll(() => {
  built.remove();
  rmSync(folder, { recursive: true, force: true });
});

/** Processes that run that agent. */
const agents = () =>
  readdirSync("/proc").filter((name) => {
    try {
      return readFileSync(`/proc/${name}/cmdline`, "utf8").includes(cli);
    } catch {
      return false;
    }
  });

test.each([
  { what: "discarded on a machine that is slow", emptyMs: 5000, unstarted: 3, violations: 0 },
  { what: "a violation on any other", emptyMs: 50, unstarted: undefined, violations: 3 },
])("agents that are not ready in time are $what, and ended", async ({ emptyMs, unstarted, violations }) => {
  const writer = new ReportWriter(1, undefined, false);
  const programs = { cli, rank: built.at("rank"), store: built.at("store"), agentStartMs: 500 };
  const runner = new ChaosRunner(programs, 1, writer, ["tcp"], async () => emptyMs);
  const only = "agent killed";
  await runner.run({ faults: 1, seconds: 1000, only, signal: new AbortController().signal });
  const { report } = writer;
  expect(report.total.injected).toBe(0);
  expect(report.runs).toMatchObject([{ clusters: 3, ...(unstarted === undefined ? {} : { unstarted }) }]);
  expect(report.violations).toHaveLength(violations);
  for (const what of report.violations)
    expect(what).toMatch(/an agent did not start: it was not ready after 500 ms/);
  expect(agents()).toEqual([]);
});
