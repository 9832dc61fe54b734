// npm run bench -- [AREA…] [--filter TEXT] [--pairs N] [--mebibytes N] [--json FILE]
//
// Runs the benchmarks: each folder beside this file with an index.ts that exports `bench(options)` is an area; options
// are root, filter, pairs, mebibytes and log. Every result has a fixed `name`; all are written as JSON with the machine
// and the commit that they belong to.
import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { build } from "esbuild";
import { nodeBundle } from "../scripts/node-bundle.mjs";

const here = import.meta.dirname;
const root = dirname(here);
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    filter: { type: "string" },
    pairs: { type: "string" },
    mebibytes: { type: "string" },
    json: { type: "string", default: join(root, "build", "bench.json") },
  },
});

const areas = readdirSync(here).filter((name) => existsSync(join(here, name, "index.ts")));
for (const name of positionals) {
  if (!areas.includes(name)) {
    console.error(`no benchmark ${name}; there are ${areas.join(", ")}`);
    process.exit(2);
  }
}

// The sources are TypeScript, which this Node.js may not run: bundled within the package, where native code is found.
mkdirSync(join(root, "build"), { recursive: true });
const folder = mkdtempSync(join(root, "build", "bench-"));
const results = [];
try {
  for (const area of positionals.length > 0 ? positionals : areas) {
    const outfile = join(folder, `${area}.mjs`);
    await build({
      entryPoints: [join(here, area, "index.ts")],
      outfile,
      ...nodeBundle,
      packages: "external",
      logLevel: "warning",
    });
    const { bench } = await import(pathToFileURL(outfile).href);
    const number = (text) => (text === undefined ? undefined : Number(text));
    const options = {
      filter: values.filter,
      pairs: number(values.pairs),
      mebibytes: number(values.mebibytes),
    };
    results.push(...(await bench({ root, ...options, log: console.log })));
  }
} finally {
  rmSync(folder, { recursive: true });
}

writeFileSync(
  values.json,
  `${JSON.stringify({ ...machine(), commit: commit(), date: new Date().toISOString(), results }, null, 2)}\n`,
);
console.log(`written to ${values.json}`);

function machine() {
  const processor =
    /^model name\s*: (.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1] ?? cpus()[0]?.model;
  return {
    processor,
    cores: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    node: process.version,
  };
}

function commit() {
  try {
    const git = (...args) => execFileSync("git", args, { cwd: root, encoding: "utf8" }).trim();
    return (
      git("rev-parse", "HEAD") +
      (git("status", "--porcelain", "--untracked-files=no") === "" ? "" : " (changed)")
    );
  } catch {
    return null;
  }
}
