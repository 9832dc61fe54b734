#!/usr/bin/env node
/**
 * The program that is shipped. All commands are one script beside it, in which V8 compiles each function when it is first called:
 * most of the time in which a command starts. So what a process has compiled is kept beside that script, where its user may write,
 * and the next one takes it from there. Whoever may change that file may change the script as well.
 */
import type { runCommandLine } from "./command-line.ts";

/** The script's name has the digest of its text, so that what was compiled of another one is not found. */
declare const commandsFile: string;

/** Commands that end soon. Agents and threads live on, and would keep in memory what others compiled. */
const shortCommands = ["plan", "diff", "explain", "layout", "reshard", "doctor"];

// An import of a module of Node.js makes an interface of it for modules, which takes longer than the module.
const fs = process.getBuiltinModule("node:fs");
const { createRequire } = process.getBuiltinModule("node:module");
const { Script } = process.getBuiltinModule("node:vm");

const argv = process.argv.slice(2);
const filename = `${import.meta.dirname}/${commandsFile}`;
const kept = keptFile();
const cachedData = kept === undefined ? undefined : readKept(kept);
const script = new Script(fs.readFileSync(filename, "latin1"), { filename, cachedData });
const commands: { runCommandLine: typeof runCommandLine } = script.runInThisContext()(
  createRequire(filename),
  import.meta.url,
);
process.exitCode = await commands.runCommandLine(argv, {
  stdout: process.stdout,
  stderr: process.stderr,
  environment: process.env,
});
if (kept !== undefined && process.exitCode === 0 && (cachedData === undefined || script.cachedDataRejected)) {
  keep(kept, script.createCachedData());
}

/** The file of a command, or of all helps: each calls functions of its own. V8 refuses what other flags have compiled. */
function keptFile(): string | undefined {
  const called = argv.find((word) => !word.startsWith("-"));
  const isHelp = called === undefined || called === "help" || argv.includes("--help") || argv.includes("-h");
  if (!isHelp && !shortCommands.includes(called)) return undefined;
  return `${import.meta.dirname}/compiled/${commandsFile}-${isHelp ? "help" : called}-${process.version}-${process.arch}`;
}

function readKept(file: string): Buffer | undefined {
  try {
    return fs.readFileSync(file);
  } catch {
    return undefined;
  }
}

/**
 * Nothing is lost if it cannot be written: the next process compiles again. V8 compares lengths alone, so the bytes are on
 * the disk before the file has its name.
 */
function keep(file: string, data: Buffer): void {
  const made = `${file}-${process.pid}`;
  try {
    fs.mkdirSync(`${import.meta.dirname}/compiled`, { recursive: true });
    fs.writeFileSync(made, data, { mode: 0o644, flush: true });
    fs.renameSync(made, file);
  } catch {
    fs.rm(made, { force: true }, () => undefined);
  }
}
