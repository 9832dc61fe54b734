// node scripts/format-assembly.mjs [--check]: formats assembly/ as `biome format` does the rest. Its decorators of functions are
// AssemblyScript's and no TypeScript, which Biome cannot read: they are comments while it looks.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const folder = join(root, "assembly");
const isCheck = process.argv.includes("--check");

const masked = (text) => text.replaceAll(/^( *)@(\w+)$/gm, "$1// @decorator: $2");
const unmasked = (text) => text.replaceAll(/^( *)\/\/ @decorator: (\w+)$/gm, "$1@$2");

const work = mkdtempSync(join(tmpdir(), "tensorbus-format-"));
try {
  const { formatter, javascript } = JSON.parse(readFileSync(join(root, "biome.json"), "utf8"));
  writeFileSync(join(work, "biome.json"), JSON.stringify({ root: true, formatter, javascript }));
  const names = readdirSync(folder).filter((name) => name.endsWith(".ts"));
  const before = new Map(names.map((name) => [name, readFileSync(join(folder, name), "utf8")]));
  for (const [name, text] of before) writeFileSync(join(work, name), masked(text));
  const biome = join(root, "node_modules/@biomejs/biome/bin/biome");
  execFileSync(process.execPath, [biome, "format", "--write", "--colors=off", "."], {
    cwd: work,
    stdio: ["ignore", "ignore", "inherit"],
  });
  const changed = names.filter((name) => {
    const text = unmasked(readFileSync(join(work, name), "utf8"));
    if (text === before.get(name)) return false;
    if (!isCheck) writeFileSync(join(folder, name), text);
    return true;
  });
  if (isCheck && changed.length > 0) {
    console.error(`not formatted (npm run format): ${changed.map((name) => `assembly/${name}`).join(", ")}`);
    process.exitCode = 1;
  }
} finally {
  rmSync(work, { recursive: true });
}
