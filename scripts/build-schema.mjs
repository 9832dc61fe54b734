// Writes schema/spec.schema.json, which editors use, from the schema that specs are read by. It is committed, since editors
// of specs have no build; `npm run check:generated` holds it current.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { build } from "esbuild";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const file = join(root, "schema/spec.schema.json");

mkdirSync(join(root, "build"), { recursive: true });
const folder = mkdtempSync(join(root, "build", "schema-"));
try {
  const bundle = join(folder, "schema.mjs");
  await build({
    absWorkingDir: root,
    entryPoints: ["src/model/spec-json-schema.ts"],
    outfile: bundle,
    bundle: true,
    format: "esm",
    platform: "node",
    packages: "external",
    logLevel: "warning",
  });
  const { specJsonSchema } = await import(pathToFileURL(bundle).href);
  const text = `${JSON.stringify(specJsonSchema(), undefined, 2)}\n`;
  if (text !== currentText()) {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
  }
} finally {
  rmSync(folder, { recursive: true });
}

function currentText() {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
    return undefined;
  }
}
