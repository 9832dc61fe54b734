// Fails where a committed file that a script generates is not what the script gives now.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** The committed files, and the script (run with --print) whose output each must be. */
const generated = [];

let stale = 0;
for (const { file, script } of generated) {
  const fresh = execFileSync(process.execPath, [join(root, script), "--print"], {
    cwd: root,
    encoding: "utf8",
  });
  if (readFileSync(join(root, file), "utf8") !== fresh) {
    console.error(`${file} is stale: run node ${script}`);
    stale++;
  }
}
process.exitCode = stale > 0 ? 1 : 0;
