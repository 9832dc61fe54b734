#!/usr/bin/env node
/**
 * The program that is shipped. All commands are one script beside it, in which V8 compiles each function when it is first called:
 * most of the time in which a command starts. So what a process of the installation's owner has compiled is kept beside that script,
 * and the next one takes it from there: code, which nobody may write who could not change the script as well.
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
const { crc32 } = process.getBuiltinModule("node:zlib");

/** What stands behind code that is kept. */
const sumBytes = 4;
const argv = process.argv.slice(2);
const filename = `${import.meta.dirname}/${commandsFile}`;
const kept = keptFile();
const cachedData = kept !== undefined && isOwners() ? readKept(kept) : undefined;
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
// One that other flags of V8 refuse stays: processes with either may come in turns.
if (kept !== undefined && cachedData === undefined && process.exitCode === 0)
  keep(kept, script.createCachedData());

/** The file of a command, or of all helps: each calls functions of its own. V8 refuses what other flags have compiled. */
function keptFile(): string | undefined {
  const called = argv.find((word) => !word.startsWith("-"));
  const isHelp = called === undefined || called === "help" || argv.includes("--help") || argv.includes("-h");
  if (!isHelp && !shortCommands.includes(called)) return undefined;
  return `${import.meta.dirname}/compiled/${commandsFile}-${isHelp ? "help" : called}-${process.version}-${process.arch}`;
}

/** False if others than the owner of the installation may have written what lies in the folder. */
function isOwners(): boolean {
  try {
    const { uid } = fs.statSync(import.meta.dirname);
    const folder = fs.statSync(`${import.meta.dirname}/compiled`);
    return folder.uid === uid && (folder.mode & 0o022) === 0;
  } catch {
    return false;
  }
}

/** V8 looks at the length alone, and dies of bytes that have changed: a checksum is behind them. */
function readKept(file: string): Buffer | undefined {
  try {
    const bytes = fs.readFileSync(file);
    const data = bytes.subarray(0, -sumBytes);
    return crc32(data) === bytes.readUInt32LE(data.length) ? data : undefined;
  } catch {
    return undefined;
  }
}

/** Nothing is lost if it cannot be written, or by another than the owner, who could not remove it: the next process compiles again. */
function keep(file: string, data: Buffer): void {
  const made = `${file}-${process.pid}-${Math.random().toString(36).slice(2)}`;
  try {
    if (fs.statSync(import.meta.dirname).uid !== process.geteuid?.()) return;
    fs.mkdirSync(`${import.meta.dirname}/compiled`, { recursive: true, mode: 0o755 });
    if (!isOwners()) return;
    const sum = Buffer.alloc(sumBytes);
    sum.writeUInt32LE(crc32(data));
    fs.writeFileSync(made, Buffer.concat([data, sum]), { mode: 0o644, flag: "wx", flush: true });
    fs.renameSync(made, file);
  } catch {
    fs.rm(made, { force: true }, () => undefined);
  }
}
