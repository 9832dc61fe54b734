// Fails if a generated file is committed, or if a build changes a file that is: whatever is generated and committed
// must be what its script gives now. `--built` builds nothing: `npm ci` of a clean clone has built, and what it changed shows.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const git = (...args) => execFileSync("git", args, { cwd: root, encoding: "utf8", maxBuffer: 2 ** 28 });
const treeState = () =>
  createHash("sha256").update(git("status", "--porcelain")).update(git("diff")).digest("hex");

const committed = git("ls-files", "--cached", "--ignored", "--exclude-standard").trim();
if (committed !== "") {
  console.error(`generated files are committed:\n${committed}`);
  process.exitCode = 1;
}
const isBuilt = process.argv.includes("--built");
const before = isBuilt ? createHash("sha256").digest("hex") : treeState();
if (!isBuilt)
  execFileSync(process.execPath, [join(root, "scripts/build.mjs")], { cwd: root, stdio: "inherit" });
if (treeState() !== before) {
  console.error(`the build changed the tree:\n${git("status", "--short")}`);
  process.exitCode = 1;
}
