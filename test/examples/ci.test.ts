import { execFileSync, spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { writeCommandLine } from "../../scripts/cli-bundle.mjs";

const root = join(import.meta.dirname, "../..");
const example = join(root, "examples/ci");

interface Step {
  readonly name?: string;
  readonly uses?: string;
  readonly run?: string;
  readonly if?: string;
}
const workflow = parse(readFileSync(join(example, "plan.yml"), "utf8")) as {
  readonly on: { readonly pull_request: { readonly paths: readonly string[] } };
  readonly jobs: { readonly plan: { readonly steps: readonly Step[] } };
};
const { steps } = workflow.jobs.plan;
const shellSteps = steps.filter(({ run }) => run !== undefined);
const install = "npm ci --ignore-scripts";
/** The condition of steps that run though one before them has failed. */
const always = /^\$\{\{ !cancelled\(\) \}\}$/;

let folder: string;
let origin: string;
let project: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "tensorbus-ci-"));
  origin = join(folder, "origin.git");
  project = join(folder, "project");
  execFileSync("git", ["init", "--quiet", "--bare", "--initial-branch=main", origin]);
  execFileSync("git", ["clone", "--quiet", origin, project], { stdio: "pipe" });
  git("checkout", "--quiet", "-B", "main");
  await installPackage();
  writeFileSync(join(project, ".gitignore"), "node_modules\n");
  copyFileSync(join(example, "transfer.yaml"), join(project, "transfer.yaml"));
  savePlan();
  commitAndPush("main");
}, 60_000);
afterAll(() => rmSync(folder, { recursive: true }));

function git(...argv: string[]): void {
  const author = ["-c", "user.name=ci", "-c", "user.email=ci@example.com"];
  execFileSync("git", [...author, ...argv], { cwd: project, stdio: "pipe" });
}

function commitAndPush(branch: string): void {
  git("add", "--all");
  git("commit", "--quiet", "--allow-empty", "--message", "a change");
  git("push", "--quiet", "--force", "origin", `HEAD:${branch}`);
}

/** The package as npm would install it: its command line bundled, its dependencies beside it. */
async function installPackage(): Promise<void> {
  const modules = join(project, "node_modules");
  const packageFolder = join(modules, "tensorbus");
  mkdirSync(join(modules, ".bin"), { recursive: true });
  mkdirSync(join(folder, "bin"));
  await writeCommandLine(join(packageFolder, "dist"));
  copyFileSync(join(root, "package.json"), join(packageFolder, "package.json"));
  symlinkSync(join(root, "node_modules"), join(packageFolder, "node_modules"));
  chmodSync(join(packageFolder, "dist/cli.js"), 0o755);
  symlinkSync("../tensorbus/dist/cli.js", join(modules, ".bin/tensorbus"));
  // What npx does with a command that is installed; npm's own takes a second of processor time for it.
  writeFileSync(
    join(folder, "bin/npx"),
    '#!/bin/sh\ncommand=$1\nshift\nexec "node_modules/.bin/$command" "$@"\n',
  );
  chmodSync(join(folder, "bin/npx"), 0o755);
}

/** Saves the plan of the spec as it is, whatever its budgets say. */
function savePlan(): void {
  const cli = join(project, "node_modules/.bin/tensorbus");
  const { status } = spawnSync(cli, ["plan", "transfer.yaml", "--save", "transfer.tbplan"], { cwd: project });
  expect([0, 1]).toContain(status);
}

function editSpec(from: string, to: string): void {
  const path = join(project, "transfer.yaml");
  const text = readFileSync(path, "utf8");
  expect(text).toContain(from);
  writeFileSync(
    path,
    text.replace(from, () => to),
  );
}

/** Runs the shell steps of the job, or one of them, as a runner of GitHub does. */
function runJob(base: string, only?: string) {
  const temporary = mkdtempSync(join(folder, "job-"));
  const summary = join(temporary, "summary.md");
  const outcomes: Record<string, "success" | "failure" | "skipped"> = {};
  let output = "";
  let failed = false;
  for (const [index, step] of shellSteps.entries()) {
    if (step.run === install) continue; // the package stands there already
    if (only !== undefined && step.name !== only) continue;
    if (failed && !always.test(step.if ?? "")) {
      outcomes[step.name!] = "skipped";
      continue;
    }
    const script = join(temporary, `step-${index}.sh`);
    writeFileSync(script, step.run!);
    const { status, stdout, stderr } = spawnSync(
      "bash",
      ["--noprofile", "--norc", "-eo", "pipefail", script],
      {
        cwd: project,
        encoding: "utf8",
        env: {
          ...process.env,
          PATH: `${join(folder, "bin")}:${process.env["PATH"]}`,
          GITHUB_STEP_SUMMARY: summary,
          GITHUB_BASE_REF: base,
          RUNNER_TEMP: temporary,
        },
      },
    );
    output += stdout + stderr;
    outcomes[step.name!] = status === 0 ? "success" : "failure";
    failed ||= status !== 0;
  }
  return { outcomes, output, summary: readFileSync(summary, "utf8") };
}

describe("the workflow", { timeout: 60_000 }, () => {
  it("has steps that these tests run, all but the installation", () => {
    expect(shellSteps.filter(({ run }) => run === install)).toHaveLength(1);
    expect(shellSteps.map(({ name }) => name)).toEqual([
      "Install",
      "Plan within budgets",
      "Difference to the base branch",
      "The saved plan is the spec's",
    ]);
    for (const step of shellSteps) if (step.if !== undefined) expect(step.if).toMatch(always);
    for (const { uses } of steps) if (uses !== undefined) expect(uses).toMatch(/^actions\/[a-z-]+@v\d+$/);
    expect(workflow.on.pull_request.paths).toEqual(
      expect.arrayContaining(["transfer.yaml", "transfer.tbplan"]),
    );
  });

  it("passes where nothing changed, and says so", () => {
    const { outcomes, summary } = runJob("main");
    expect(Object.values(outcomes)).toEqual(["success", "success", "success"]);
    expect(summary).toContain("### Plan of `transfer.yaml`");
    expect(summary).toContain("<summary>7 budgets kept</summary>");
    expect(summary).toMatch(/None: both plan to `[0-9a-f]{64}`\./);
  });

  it("fails where a budget is exceeded, and shows what changed all the same", () => {
    editSpec("targetDtype: bfloat16", "targetDtype: float32");
    savePlan();
    const { outcomes, summary, output } = runJob("main");
    expect(outcomes).toEqual({
      "Plan within budgets": "failure",
      "Difference to the base branch": "success",
      "The saved plan is the spec's": "success",
    });
    expect(output).toContain("(TB_BUDGET)");
    expect(summary).toMatch(/^\*\*\d of 7 budgets exceeded\*\*$/m);
    expect(summary).toMatch(/^\| `rankEgressBytes` \| 9\.00 MiB \| .* \| `rank \d` \|$/m);
    expect(summary).toContain("<summary>Tensors: 6 changed, 0 not</summary>");
    editSpec("targetDtype: float32", "targetDtype: bfloat16");
  });

  it("fails where the saved plan is not the spec's", () => {
    savePlan();
    editSpec("[S(0)], target: [S(1)]", "[S(0)], target: [S(0)]");
    const { outcomes, output } = runJob("main");
    expect(outcomes).toEqual({
      "Plan within budgets": "success",
      "Difference to the base branch": "success",
      "The saved plan is the spec's": "failure",
    });
    expect(output).toContain("target placements  [S(1)] -> [S(0)]");
    editSpec(
      "'down\\.weight$', source: [S(0)], target: [S(0)]",
      "'down\\.weight$', source: [S(0)], target: [S(1)]",
    );
  });

  it("says where there is nothing to compare with: no plan, or one of another version", () => {
    const saved = readFileSync(join(project, "transfer.tbplan"));
    rmSync(join(project, "transfer.tbplan"));
    commitAndPush("without");
    const other = Buffer.from(saved);
    other.writeUInt16LE(999, 6);
    writeFileSync(join(project, "transfer.tbplan"), other);
    commitAndPush("another");
    for (const [base, said] of [
      ["without", "The base branch has no saved plan to compare with."],
      ["another", "another version of tensorbus saved it."],
    ] as const) {
      const { outcomes, summary } = runJob(base, "Difference to the base branch");
      expect(Object.values(outcomes)).toEqual(["success"]);
      expect(summary).toContain(said);
    }
  });
});
