/**
 * The folders of the bus: private to one user, and checked before anything in them is opened. LMDB's own files are
 * checked by their header, since a file of another format of LMDB ends the process that opens it.
 */
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { TensorBusError } from "../../errors.ts";
import { bootId } from "./identity.ts";

export type FolderKind = "queue" | "state";

/** The files in a folder of the bus. */
export const folderFiles = {
  /** LMDB's. */
  data: "data.mdb",
  /** LMDB's. */
  lock: "lock.mdb",
  /** The single-byte locks of `lockOffsets`. */
  locks: "locks",
  /** Kind and version of the folder, and the boot that it belongs to. */
  format: "format.json",
} as const;

const formatVersion = 1;

/** Where a user's folders stand by default: a place that does not outlive the boot, where the system has one. */
export function userFolder(): string {
  const uid = process.geteuid!();
  return join(process.env["XDG_RUNTIME_DIR"] || tmpdir(), `tensorbus-${uid}`);
}

function foreign(path: string, what: string, details: Record<string, unknown>): TensorBusError {
  return new TensorBusError("TB_FOREIGN", `folder ${path} ${what}`, { details: { path, ...details } });
}

/**
 * The real path of a folder that belongs to this user alone, made (0700, its parents too) where it is missing. The
 * default folder of the user is checked with it, since what stands in it is only as private as that.
 */
export function preparePrivateFolder(path: string): string {
  const wanted = resolve(path);
  const parent = userFolder();
  if (wanted.startsWith(`${parent}/`)) preparePrivateFolder(parent);
  try {
    mkdirSync(wanted, { recursive: true, mode: 0o700 });
  } catch (cause) {
    const message = `folder ${path} cannot be made: ${(cause as Error).message}`;
    throw new TensorBusError("TB_FILE", message, { cause, details: { path } });
  }
  const real = realpathSync(wanted);
  const { uid, mode } = statSync(real);
  if (uid !== process.geteuid!()) throw foreign(real, `belongs to user ${uid}`, { uid });
  if ((mode & 0o077) !== 0) {
    const octal = (mode & 0o777).toString(8);
    throw foreign(real, `is open to others (mode ${octal}); chmod 700 makes it private`, { mode: octal });
  }
  return real;
}

function formatError(path: string, message: string, details: Record<string, unknown> = {}): TensorBusError {
  return new TensorBusError("TB_BUS_FORMAT", `${path}: ${message}`, { details: { path, ...details } });
}

function readFormat(path: string): { kind: unknown; version: unknown; boot: unknown } | undefined {
  const file = join(path, folderFiles.format);
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw formatError(file, `cannot be read: ${(error as Error).message}`);
  }
  try {
    const { kind, version, boot } = JSON.parse(text);
    return { kind, version, boot };
  } catch {
    throw formatError(file, "is no JSON");
  }
}

/**
 * Makes sure that the folder is one of that kind and this version, and LMDB's file in it one that the package can open.
 * To be called inside the gate, before LMDB opens it. What another boot left is removed: its processes are gone, its
 * deadlines have passed, and without a sync it may be damaged.
 */
export function prepareFormat(path: string, kind: FolderKind): void {
  const format = readFormat(path);
  if (format === undefined) {
    if (statSync(join(path, folderFiles.data), { throwIfNoEntry: false })) {
      throw formatError(
        path,
        `holds an LMDB file, but no ${folderFiles.format}: it was not made by tensorbus`,
      );
    }
    writeFormat(path, kind);
  } else if (format.kind !== kind || format.version !== formatVersion) {
    const found = `${format.kind} version ${format.version}`;
    throw formatError(path, `holds a ${found}, not a ${kind} version ${formatVersion}`, { found });
  } else if (format.boot !== bootId()) {
    rmSync(join(path, folderFiles.data), { force: true });
    rmSync(join(path, folderFiles.lock), { force: true });
    writeFormat(path, kind);
  }
  checkDataFile(join(path, folderFiles.data));
}

/** True where LMDB's files in the folder are of this boot: those that `prepareFormat` will leave. */
export function isOfThisBoot(path: string): boolean {
  return readFormat(path)?.boot === bootId();
}

function writeFormat(path: string, kind: FolderKind): void {
  const file = join(path, folderFiles.format);
  const text = JSON.stringify({ kind, version: formatVersion, boot: bootId() });
  writeFileSync(`${file}.new`, `${text}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

/** Of the meta page of LMDB's data file, as the package writes it: behind a page header of 24 bytes. */
const magicOffset = 24;
const magic = 0xbeefc0de;
const dataVersion = 2;
/** Stock LMDB's page header has 16 bytes. */
const stockMagicOffset = 16;

function checkDataFile(file: string): void {
  let fd: number;
  try {
    fd = openSync(file, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw formatError(file, `cannot be read: ${(error as Error).message}`);
  }
  const head = Buffer.alloc(magicOffset + 8);
  let length: number;
  try {
    length = readSync(fd, head, 0, head.length, 0);
  } finally {
    closeSync(fd);
  }
  // LMDB makes an empty file before it writes both meta pages in one go.
  if (length === 0) return;
  if (length < head.length) throw formatError(file, `has ${length} bytes only`);
  if (head.readUInt32LE(magicOffset) !== magic) {
    const stock = head.readUInt32LE(stockMagicOffset) === magic;
    throw formatError(file, stock ? "was written by another implementation of LMDB" : "is no LMDB file");
  }
  const version = head.readUInt32LE(magicOffset + 4) & 0xffff;
  if (version !== dataVersion) throw formatError(file, `has the data version ${version}`, { version });
}
