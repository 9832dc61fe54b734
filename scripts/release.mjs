// `npm run release`: whether this commit can be published, and as what. Checks versions, changelog, pins and the tree, makes
// every package and wheel in build/packages with SHA256SUMS, and prints what is published in which order. It publishes nothing:
// that is a person's command.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { assemble, packagesFolder, sha256 } from "./package/assemble.mjs";
import { compilerOf, glibcFloor, platforms } from "./package/native.mjs";

const root = join(import.meta.dirname, "..");
const read = (path) => readFileSync(join(root, path), "utf8");
const git = (...args) => execFileSync("git", args, { cwd: root, encoding: "utf8" }).trim();
const manifest = JSON.parse(read("package.json"));
const { version } = manifest;
const problems = [];
const warnings = [];

checkVersions();
checkChangelog();
checkPins();
if (git("status", "--porcelain") !== "") problems.push("the tree has changes that are not committed");
const made = problems.length === 0 ? makeAll() : undefined;
// What could not be made is a problem that is known only now.
if (made !== undefined && problems.length === 0) publish(made);
for (const warning of warnings) console.log(`warning: ${warning}`);
for (const problem of problems) console.error(`error: ${problem}`);
process.exitCode = problems.length === 0 ? 0 : 1;

/** Every place that says the version: agents and clients of Python compare theirs. */
function checkVersions() {
  const lock = JSON.parse(read("package-lock.json"));
  const project = read("python/pyproject.toml");
  const told = {
    "package-lock.json": lock.version,
    "package-lock.json, packages": lock.packages[""].version,
    "python/pyproject.toml": /^version = "(.*)"$/m.exec(project)?.[1],
    "python/pyproject.toml, the extra agent": /tensorbus-agent==([^"]+)"/.exec(project)?.[1],
    "python/src/tensorbus/_version.py": /^__version__ = "(.*)"$/m.exec(
      read("python/src/tensorbus/_version.py"),
    )?.[1],
  };
  for (const [place, found] of Object.entries(told)) {
    if (found !== version) problems.push(`package.json has version ${version}, and ${place} ${found}`);
  }
  if (git("tag", "--list", `v${version}`) !== "")
    problems.push(`version ${version} has a tag: it was released`);
}

function checkChangelog() {
  const [heading, ...rest] = read("CHANGELOG.md")
    .split(/^(?=## )/m)
    .slice(1)
    .find((section) => section.startsWith(`## ${version}`))
    ?.split("\n") ?? [""];
  if (heading === "") problems.push(`CHANGELOG.md has no section of version ${version}`);
  else if (!rest.some((line) => line.startsWith("- ")))
    problems.push(`CHANGELOG.md says nothing of ${version}`);
  else if (!/\(\d{4}-\d{2}-\d{2}\)/.test(heading)) {
    warnings.push(
      `CHANGELOG.md has "${heading.slice(3)}": the date of the release takes the place of what is in brackets`,
    );
  }
}

/** What users get is what was tested. */
function checkPins() {
  for (const [name, range] of Object.entries({ ...manifest.dependencies, ...manifest.devDependencies })) {
    if (!/^\d+\.\d+\.\d+(-\S+)?$/.test(range)) problems.push(`${name} is not pinned to a version: ${range}`);
  }
}

function makeAll() {
  for (const platform of Object.keys(platforms)) {
    console.log(`${platform}: glibc ${glibcFloor}, ${compilerOf(platform)}`);
  }
  const { made } = assemble();
  checkKernels();
  const agents = Object.keys(platforms).map((platform) =>
    execFileSync("python3", [join(root, "scripts/package/wheel.py"), platform], { encoding: "utf8" }).trim(),
  );
  return { npm: Object.values(made), pip: [...agents, ...makePythonPackage()] };
}

/** A build goes well without nvcc, and users of GPUs would miss the kernels only when they move something. */
function checkKernels() {
  const path = "dist/cuda/kernels.ptx";
  const [dist] = JSON.parse(read("build/dist.json"));
  if (!dist.includes("cuda/kernels.ptx"))
    return problems.push(`${path} was not built: install nvcc (CONTRIBUTING.md says which), or set NVCC`);
  console.log(`kernels for CUDA: ${/^\/\/ (Cuda compilation tools.*)$/m.exec(read(path))?.[1]}`);
}

/** The client's wheel and sources, with the times of this commit. */
function makePythonPackage() {
  const own = join(root, "build/python/bin/python");
  const python = process.env.PYTHON || (existsSync(own) ? own : "python3");
  const environment = { ...process.env, SOURCE_DATE_EPOCH: git("log", "-1", "--format=%ct") };
  const before = new Set(readdirSync(packagesFolder));
  try {
    const options = ["--no-isolation", "--outdir", packagesFolder, join(root, "python")];
    execFileSync(python, ["-m", "build", ...options], { env: environment, stdio: "pipe" });
  } catch (error) {
    problems.push(
      `the Python package could not be built by ${python} (PYTHON names another): ${error.stderr}`,
    );
  }
  return readdirSync(packagesFolder)
    .filter((file) => !before.has(file))
    .map((file) => join(packagesFolder, file));
}

function publish({ npm, pip }) {
  const files = [...npm, ...pip];
  const digests = files.map((path) => `${sha256(path)}  ${basename(path)}\n`);
  writeFileSync(join(packagesFolder, "SHA256SUMS"), digests.join(""));
  console.log(`\ntensorbus ${version} at ${git("rev-parse", "HEAD")}, in build/packages:`);
  for (const [i, path] of files.entries()) {
    console.log(`${digests[i].trim()}  ${(statSync(path).size / 2 ** 20).toFixed(1)} MiB`);
  }
  console.log("\nTo publish, in this order, since a package names those before it:");
  for (const path of npm) console.log(`  npm publish --access public build/packages/${basename(path)}`);
  console.log(`  twine upload ${pip.map((path) => `build/packages/${basename(path)}`).join(" ")}`);
  console.log(`  git tag v${version}`);
}
