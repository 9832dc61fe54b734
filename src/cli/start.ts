#!/usr/bin/env node
/**
 * The program that is shipped. All commands are one script beside it, in which V8 compiles each function when it is first called:
 * most of the time in which a command starts. So what a process has compiled is kept, and the next one takes it from there: beside that
 * script what the installation's owner has compiled, in the folder of their caches what anybody else has. It is code, which nobody
 * may write who could not change the script, or who is not the one that runs it.
 */
import type { runCommandLine } from "./command-line.ts";

/** The script's name has the digest of its text, so that what was compiled of another one is not found. */
declare const commandsFile: string;

/** Those that users wait for. */
const keptCommands = ["plan", "diff", "explain", "layout", "reshard", "agent", "doctor"];

// An import of a module of Node.js makes an interface of it for modules, which takes longer than the module.
const fs = process.getBuiltinModule("node:fs");
const { dirname } = process.getBuiltinModule("node:path");
const { createRequire } = process.getBuiltinModule("node:module");
const { Script } = process.getBuiltinModule("node:vm");

/** Code that was written longer ago may be of a release that is gone. */
const keptDays = 30;
/** What this program writes, of any release: nothing else is removed. */
const keptNames = /^cli-commands-\w+\.cjs-[a-z]+-v\d[\w.+-]*$/;

interface Place {
  readonly folder: string;
  /** Only this user may have written what is read from there. */
  readonly owner: number;
}

const argv = process.argv.slice(2);
const filename = `${import.meta.dirname}/${commandsFile}`;
const user = process.geteuid?.();
const kept = keptName();
const places = kept === undefined ? [] : keptPlaces();
const found = readKept();
const script = new Script(fs.readFileSync(filename, "latin1"), { filename, cachedData: found?.data });
const commands: { runCommandLine: typeof runCommandLine } = script.runInThisContext()(
  createRequire(filename),
  import.meta.url,
);
/** One's own that other flags of V8 refuse stays: processes with either may come in turns. Another's does not help. */
let isKept = found !== undefined && (found.owner === user || script.cachedDataRejected !== true);
process.exitCode = await commands.runCommandLine(argv, {
  stdout: process.stdout,
  stderr: process.stderr,
  environment: process.env,
  started: keepCompiled,
});
if (process.exitCode === 0) keepCompiled();

function keepCompiled(): void {
  const place = places.find(({ owner }) => owner === user);
  if (!isKept && place !== undefined) keep(place, script.createCachedData());
  isKept = true;
}

/** The file of a command, or of all helps: each calls functions of its own. V8 refuses what other flags have compiled. */
function keptName(): string | undefined {
  const called = argv.find((word) => !word.startsWith("-"));
  const isHelp = called === undefined || called === "help" || argv.includes("--help") || argv.includes("-h");
  if (!isHelp && !keptCommands.includes(called)) return undefined;
  if (process.env["NODE_DISABLE_COMPILE_CACHE"]) return undefined;
  return `${commandsFile}-${isHelp ? "help" : called}-${process.version}-${process.arch}`;
}

/** One's own comes first: it is there because what lies beside the script was refused, or was not there. */
function keptPlaces(): Place[] {
  const { uid } = fs.statSync(import.meta.dirname);
  const beside = { folder: `${import.meta.dirname}/compiled`, owner: uid };
  if (user === undefined || user === uid) return [beside];
  const { XDG_CACHE_HOME, HOME } = process.env;
  const home = XDG_CACHE_HOME || HOME;
  if (!home || !isForUser(home)) return [beside];
  const caches = XDG_CACHE_HOME || `${home}/.cache`;
  return [{ folder: `${caches}/tensorbus/compiled`, owner: user }, beside];
}

/** False for the home of another user, which sudo may leave in the environment: root would leave files there. */
function isForUser(home: string): boolean {
  try {
    const { uid } = fs.statSync(fs.existsSync(home) ? home : dirname(home));
    return uid === user || uid === 0;
  } catch {
    return false;
  }
}

/** False if others than the owner may have written what lies there. */
function isOnlyOwners({ owner }: Place, { uid, mode }: { uid: number; mode: number }): boolean {
  return uid === owner && (mode & 0o022) === 0;
}

/** The folder itself, not what a link leads to. */
function isOwnersFolder(place: Place): boolean {
  const stats = fs.lstatSync(place.folder);
  return stats.isDirectory() && isOnlyOwners(place, stats);
}

function readKept(): { readonly data: Buffer; readonly owner: number } | undefined {
  for (const place of places) {
    const data = readFrom(place);
    if (data !== undefined) return { data, owner: place.owner };
  }
  return undefined;
}

/**
 * V8 looks at the length alone, and dies of bytes that have changed: they are there twice, and compared. What makes a checksum
 * takes Node.js longer to load than the other copy takes to read.
 */
function readFrom(place: Place): Buffer | undefined {
  let file: number | undefined;
  try {
    if (!isOwnersFolder(place)) return undefined;
    file = fs.openSync(`${place.folder}/${kept}`, "r");
    // The folder's name may lead to another one by now.
    if (!isOnlyOwners(place, fs.fstatSync(file))) return undefined;
    const bytes = fs.readFileSync(file);
    const data = bytes.subarray(0, bytes.length / 2);
    return data.length > 0 && data.equals(bytes.subarray(data.length)) ? data : undefined;
  } catch {
    return undefined;
  } finally {
    if (file !== undefined) fs.closeSync(file);
  }
}

/** Nothing is lost if it cannot be written: the next process compiles again. */
function keep(place: Place, data: Buffer): void {
  const { folder } = place;
  const made = `${folder}/${kept}-${process.pid}-${Math.random().toString(36).slice(2)}`;
  try {
    // Not `recursive`, which never ends below /proc.
    for (const path of [dirname(dirname(folder)), dirname(folder), folder]) {
      if (!fs.existsSync(path)) fs.mkdirSync(path, { mode: 0o755 });
    }
    if (!isOwnersFolder(place)) return;
    fs.writeFileSync(made, Buffer.concat([data, data]), { mode: 0o644, flag: "wx", flush: true });
    fs.renameSync(made, `${folder}/${kept}`);
    removeOld(folder);
  } catch {
    fs.rm(made, { force: true }, () => undefined);
  }
}

/** One that is in use is written anew once in so many days. */
function removeOld(folder: string): void {
  const oldest = Date.now() - keptDays * 86_400_000;
  for (const name of fs.readdirSync(folder)) {
    if (!keptNames.test(name)) continue;
    try {
      if (fs.lstatSync(`${folder}/${name}`).mtimeMs < oldest) fs.unlinkSync(`${folder}/${name}`);
    } catch {
      // Another process has removed it, or it is no file: the next one is looked at.
    }
  }
}
