/** Every entry of the package, required from CommonJS and imported: what Node.js promises for ES modules without a top-level await. */
const { readdirSync } = require("node:fs");
const { join } = require("node:path");
const { exports: entries } = require("tensorbus/package.json");

/** One entry stands for all transports. */
const transports = readdirSync(join(__dirname, "../../transports"));
const names = Object.entries(entries)
  .filter(([, { types }]) => types !== undefined)
  .flatMap(([path]) => (path.includes("*") ? transports.map((name) => path.replace("*", name)) : path))
  .map((path) => `tensorbus${path.slice(1)}`);

async function main() {
  for (const name of names) {
    const required = require(name);
    const imported = await import(name);
    const keys = Object.keys(imported);
    if (keys.length === 0 || keys.some((key) => required[key] !== imported[key])) {
      throw new Error(`${name} is not the same when it is required`);
    }
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
