// npm run simulate: runs schedules, says what was violated, and prints the trace of the first that failed.
import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { buildSimulation } from "./build.mjs";
import { runSeeds } from "./run-seeds.mjs";

const usage = `npm run simulate -- [--seed N|tree] [--runs N] [--jobs N] [--keep-going] [--trace]

--seed tree begins with a seed that follows from the files of the commit. docs/simulation.md says more.`;

function options() {
  try {
    return parseArgs({
      options: {
        seed: { type: "string", default: "1" },
        runs: { type: "string", default: "1000" },
        jobs: { type: "string", default: String(Math.min(8, availableParallelism())) },
        trace: { type: "boolean", default: false },
        "keep-going": { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    }).values;
  } catch (error) {
    console.error(`${error.message}\n\n${usage}`);
    process.exit(2);
  }
}

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");

/** Of one commit always the same, and of each change another one: the seeds that all runs share find what they find once. */
function seedOfTree() {
  try {
    const git = (...argv) => execFileSync("git", argv, { cwd: root, encoding: "utf8", stdio: "pipe" }).trim();
    const tree = git("rev-parse", "HEAD^{tree}");
    const seed = 1_000_000 + Number.parseInt(tree.slice(0, 7), 16);
    console.log(`the tree ${tree.slice(0, 12)} begins with seed ${seed}; the same elsewhere: --seed ${seed}`);
    return seed;
  } catch {
    console.log("there is no commit whose tree would give a seed (git rev-parse failed): it is 1000001");
    return 1_000_001;
  }
}

const values = options();
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const first = values.seed === "tree" ? seedOfTree() : Number(values.seed);
const runs = Number(values.runs);
if (![first, runs, Number(values.jobs)].every((value) => Number.isSafeInteger(value) && value > 0)) {
  console.error(`--seed, --runs and --jobs are whole numbers from 1 on\n\n${usage}`);
  process.exit(2);
}
const folder = join(root, "build", "simulation");
mkdirSync(folder, { recursive: true });
const bundle = await buildSimulation({ outfile: join(folder, "simulation.mjs") });
const began = performance.now();
let done = 0;
let events = 0;
let rounds = 0;
const failed = [];
const rules = new Map();
await runSeeds(bundle, {
  first,
  runs,
  jobs: Number(values.jobs),
  trace: values.trace,
  onReport(report) {
    done += 1;
    events += report.events;
    rounds += report.rounds;
    if (values.trace) console.log(report.trace.join("\n"));
    if (report.violations.length === 0) return true;
    failed.push(report);
    const [{ rule, what }] = report.violations;
    const known = rules.get(rule) ?? [];
    rules.set(rule, [...known, report.seed]);
    if (known.length < 3) console.log(`seed ${report.seed}: ${rule}: ${what}`);
    return values["keep-going"];
  },
});
const seconds = (performance.now() - began) / 1000;
console.log(
  `seeds ${first} to ${first + runs - 1}: ${done} schedules, ${failed.length} failed; ${rounds} rounds, ${events} events in ${seconds.toFixed(1)} s`,
);
for (const [rule, seeds] of [...rules].sort((a, b) => b[1].length - a[1].length)) {
  console.log(`${String(seeds.length).padStart(7)}  ${rule}: seeds ${seeds.slice(0, 10).join(" ")}`);
}
if (failed.length > 0 && !values.trace && !values["keep-going"]) {
  await runSeeds(bundle, {
    first: failed[0].seed,
    runs: 1,
    jobs: 1,
    trace: true,
    onReport({ seed, trace, digest }) {
      console.log(trace.join("\n"));
      if (digest !== failed[0].digest)
        console.log(`seed ${seed} did not replay: ${digest}, not ${failed[0].digest}`);
      console.log(`again: npm run simulate -- --seed ${seed} --runs 1 --trace`);
      return true;
    },
  });
}
// It ends early at a schedule that failed, and at nothing else.
const isShort = done < runs && (failed.length === 0 || values["keep-going"]);
if (isShort) console.log(`only ${done} of ${runs} schedules ran`);
process.exitCode = failed.length === 0 && !isShort ? 0 : 1;
