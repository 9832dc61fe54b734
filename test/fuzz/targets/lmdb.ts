/** A queue's or state's file that was damaged: LMDB maps it, so that what it trusts wrongly ends the process. */
import { type ChildProcess, fork } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { buildSync } from "esbuild";
import { nodeBundle } from "../../../scripts/node-bundle.mjs";
import { inTime, type Target } from "../kit/target.ts";

const root = join(import.meta.dirname, "../../..");
let folder: string | undefined;
let child: ChildProcess | undefined;

function bundle(): string {
  // Beside the packages that stay outside of the bundle.
  const outfile = join(root, "node_modules/.cache/tensorbus-test", `fuzz-${process.pid}`, "lmdb-child.mjs");
  if (existsSync(outfile)) return outfile;
  mkdirSync(dirname(outfile), { recursive: true });
  buildSync({
    entryPoints: [join(root, "test/fuzz/targets/lmdb-child.ts")],
    ...nodeBundle,
    packages: "external",
    outfile,
    logLevel: "warning",
  });
  return outfile;
}

async function ask(path: string, make: boolean): Promise<void> {
  child ??= fork(bundle(), [], { stdio: ["ignore", "ignore", "inherit", "ipc"] });
  const asked = child;
  const answered = new Promise<{ error?: string }>((resolve) => {
    const settle = (answer: { error?: string }) => {
      asked.removeAllListeners("message").removeAllListeners("exit");
      resolve(answer);
    };
    asked.on("message", settle);
    asked.on("exit", (code, signal) => settle({ error: `the process ended with ${signal ?? code}` }));
  });
  asked.send({ path, make });
  const answer = await inTime(20_000, "opening a damaged file", answered);
  if (answer.error !== undefined) {
    asked.kill("SIGKILL");
    child = undefined;
    throw new Error(answer.error);
  }
}

export const lmdb: Target = {
  async seeds() {
    folder ??= mkdtempSync(join(tmpdir(), "tensorbus-fuzz-"));
    const path = join(folder, "good");
    if (!existsSync(path)) await ask(path, true);
    return [readFileSync(join(path, "data.mdb"))];
  },
  async run(input) {
    const path = join(folder!, "damaged");
    rmSync(path, { recursive: true, force: true });
    mkdirSync(path, { mode: 0o700 });
    for (const name of ["format.json"]) copyFileSync(join(folder!, "good", name), join(path, name));
    writeFileSync(join(path, "data.mdb"), input, { mode: 0o600 });
    await ask(path, false);
  },
  async close() {
    child?.kill("SIGKILL");
    child = undefined;
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
    folder = undefined;
    rmSync(join(root, "node_modules/.cache/tensorbus-test", `fuzz-${process.pid}`), {
      recursive: true,
      force: true,
    });
  },
};
