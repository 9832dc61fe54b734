/**
 * The folders of the bus: private to one user, and checked before anything in them is opened. LMDB's own files are
 * checked by their header, since a file of another format of LMDB ends the process that opens it.
 */
import {
  closeSync,
  lstatSync,
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
import { dirname, join, resolve } from "node:path";
import { explained, TensorBusError } from "../../errors.ts";
import { makeFolders } from "../../folders.ts";
import { bootId, ownNamespaces } from "./identity.ts";

export type FolderKind = "queue" | "state";

/** The files in a folder of the bus. */
export const folderFiles = {
  /** LMDB's. */
  data: "data.mdb",
  /** LMDB's. */
  lock: "lock.mdb",
  /** The single-byte locks of `lockOffsets`. */
  locks: "locks",
  /** Kind and version of the folder, and the boot and namespaces that it belongs to. */
  format: "format.json",
} as const;

const formatVersion = 1;

/** The place of a user's folders by default: one that does not outlive the boot, if the system has such. */
export function userFolder(): string {
  const uid = process.geteuid!();
  return join(process.env["XDG_RUNTIME_DIR"] || tmpdir(), `tensorbus-${uid}`);
}

function foreign(path: string, what: string, details: Record<string, unknown>): TensorBusError {
  return new TensorBusError("TB_FOREIGN", `folder ${path} ${what}`, { details: { path, ...details } });
}

/**
 * The real path of a folder that belongs to this user alone, made (0700, its parents too) if it is missing. The
 * default folder of the user is checked with it, since what stands in it is only as private as that. Nobody else can
 * change where the path leads, neither between these looks nor later: see `checkWay`.
 */
export function preparePrivateFolder(path: string): string {
  const wanted = resolve(path);
  const parent = userFolder();
  if (wanted.startsWith(`${parent}/`)) preparePrivateFolder(parent);
  let real: string;
  try {
    // Before anything is made: a link of somebody else's would have it made elsewhere.
    const there = deepestThere(wanted);
    checkWay(there, there !== wanted);
    makeFolders(wanted, 0o700);
    real = checkWay(wanted);
  } catch (cause) {
    throw fileError(path, cause as NodeJS.ErrnoException);
  }
  const { uid, mode } = lstatSync(real);
  if (uid !== process.geteuid!()) throw foreign(real, `belongs to user ${uid}`, { uid });
  if ((mode & 0o077) !== 0) {
    const octal = (mode & 0o777).toString(8);
    throw foreign(real, `is open to others (mode ${octal}); chmod 700 makes it private`, { mode: octal });
  }
  return real;
}

/** The path itself, or the nearest folder above it that there is. */
function deepestThere(path: string): string {
  return lstatSync(path, { throwIfNoEntry: false }) === undefined ? deepestThere(dirname(path)) : path;
}

/**
 * The real path, if only this user and root can change where it leads: links on the way are theirs, and so is each folder
 * above, in which others may write only if none can move what is not his (`/tmp`). `TB_FOREIGN` else. `withItself`: the
 * last one is a folder in which another will be made.
 */
function checkWay(path: string, withItself = false): string {
  for (const part of partsOf(path)) {
    const { uid } = lstatSync(part);
    if (lstatSync(part).isSymbolicLink() && !isTrusted(uid)) {
      throw foreign(path, `leads through ${part}, a symbolic link of user ${uid}`, { part, uid });
    }
  }
  const real = realpathSync(path);
  for (const part of partsOf(withItself ? real : dirname(real))) {
    const { uid, gid, mode } = lstatSync(part);
    const ownGroup = gid === process.getegid!() && gid === process.geteuid!();
    const writable = (mode & 0o002) !== 0 || ((mode & 0o020) !== 0 && gid !== 0 && !ownGroup);
    const sticky = (mode & 0o1000) !== 0;
    if (!isTrusted(uid)) throw foreign(path, `lies in ${part}, which belongs to user ${uid}`, { part, uid });
    if (writable && !sticky) {
      const octal = (mode & 0o7777).toString(8);
      throw foreign(path, `lies in ${part}, where others may replace it (mode ${octal})`, {
        part,
        mode: octal,
      });
    }
  }
  return real;
}

/** `/a`, `/a/b`, … */
function partsOf(path: string): string[] {
  const parts = path.split("/").filter((part) => part !== "");
  return parts.map((_, index) => `/${parts.slice(0, index + 1).join("/")}`);
}

/** Root, this user, and what stands for root if a container does not have it. */
function isTrusted(uid: number): boolean {
  return uid === 0 || uid === process.geteuid!() || uid === unmappedRoot();
}

let unmapped: number | undefined;

/** The number that everybody has who is not mapped into this user namespace, if root is not: else none. */
function unmappedRoot(): number {
  if (unmapped !== undefined) return unmapped;
  try {
    const all = /^\s*0\s+0\s+4294967295\s*$/.test(readFileSync("/proc/self/uid_map", "utf8"));
    unmapped = all ? -1 : Number(readFileSync("/proc/sys/kernel/overflowuid", "utf8"));
  } catch {
    unmapped = -1;
  }
  return unmapped;
}

/** How a folder that nothing can be read from is made good. */
const wayOut =
  "end the agent and the clients that use this folder and remove it; what was queued in it is lost, tensors are not";

/** `TB_BUS_FORMAT`, with what to do. */
export function formatError(
  path: string,
  message: string,
  details: Record<string, unknown> = {},
  cause?: unknown,
): TensorBusError {
  return new TensorBusError("TB_BUS_FORMAT", `${message}: ${wayOut}`, {
    details: { path, ...details },
    ...(cause === undefined ? {} : { cause }),
  });
}

interface Format {
  readonly kind: unknown;
  readonly version: unknown;
  readonly boot: unknown;
  readonly pidNamespace: unknown;
  readonly timeNamespace: unknown;
}

function readFormat(path: string): Format | undefined {
  const file = join(path, folderFiles.format);
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw fileError(path, error as NodeJS.ErrnoException);
  }
  try {
    const { kind, version, boot, pidNamespace, timeNamespace } = JSON.parse(text);
    return { kind, version, boot, pidNamespace, timeNamespace };
  } catch {
    throw formatError(path, `${file} is not JSON`);
  }
}

/**
 * Makes sure that the folder is one of that kind and this version, and LMDB's file in it one that the package can open.
 * To be called inside the gate, before LMDB opens it; `others`: some process has it open. What another boot left, or a
 * container that has ended, is removed: its processes are gone, its deadlines have passed, and without a sync it may be
 * damaged.
 */
export function prepareFormat(path: string, kind: FolderKind, others: boolean): void {
  const format = readFormat(path);
  if (format === undefined) {
    if (statSync(join(path, folderFiles.data), { throwIfNoEntry: false })) {
      throw formatError(path, `${path} holds an LMDB file, but no ${folderFiles.format}`);
    }
    writeFormat(path, kind);
  } else if (format.kind !== kind || format.version !== formatVersion) {
    const found = `${format.kind} version ${format.version}`;
    throw formatError(path, `${path} holds a ${found}, not a ${kind} version ${formatVersion}`, { found });
  } else if (!isOurs(format)) {
    if (others) throw namespaceError(path, format);
    rmSync(join(path, folderFiles.data), { force: true });
    rmSync(join(path, folderFiles.lock), { force: true });
    writeFormat(path, kind);
  }
  checkDataFile(path);
}

function isOurs({ boot, pidNamespace, timeNamespace }: Format): boolean {
  const { pid, time } = ownNamespaces();
  return boot === bootId() && pidNamespace === pid && timeNamespace === time;
}

/** Pids and clocks tell who lives; who reads others may not take part. */
function namespaceError(path: string, { boot, pidNamespace, timeNamespace }: Format): TensorBusError {
  const { pid, time } = ownNamespaces();
  const [what, found, own, remedy] =
    boot !== bootId()
      ? ["on another machine", boot, bootId(), "name a folder of this machine"]
      : pidNamespace !== pid
        ? ["in another PID namespace", pidNamespace, pid, "run them in one container, or share it (--pid)"]
        : ["in another time namespace", timeNamespace, time, "run them in one time namespace"];
  const message = `${path} is used by processes ${what} (${found}, this one is in ${own}): ${remedy}`;
  return new TensorBusError("TB_NAMESPACE", message, { details: { path, found, own } });
}

/** True if LMDB's files in the folder are of this boot: those that `prepareFormat` will leave. */
export function isOfThisBoot(path: string): boolean {
  const format = readFormat(path);
  return format !== undefined && isOurs(format);
}

function writeFormat(path: string, kind: FolderKind): void {
  const file = join(path, folderFiles.format);
  const { pid, time } = ownNamespaces();
  const format = { kind, version: formatVersion, boot: bootId(), pidNamespace: pid, timeNamespace: time };
  try {
    writeFileSync(`${file}.new`, `${JSON.stringify(format)}\n`, { mode: 0o600 });
    renameSync(`${file}.new`, file);
  } catch (error) {
    throw fileError(path, error as NodeJS.ErrnoException);
  }
}

const fullCodes = new Set(["ENOSPC", "EDQUOT", "EFBIG"]);

/** `TB_NO_SPACE` if the file system is full, else `TB_FILE`. */
export function fileError(path: string, cause: NodeJS.ErrnoException): TensorBusError {
  const known = explained(cause);
  if (known instanceof TensorBusError) return known;
  if (fullCodes.has(cause.code ?? "")) {
    const message = `the file system of ${path} is full: free some space, or name a folder elsewhere`;
    return new TensorBusError("TB_NO_SPACE", message, { cause, details: { path } });
  }
  return new TensorBusError("TB_FILE", `${path}: ${cause.message}`, { cause, details: { path } });
}

/** Constants of the meta page of LMDB's data file, which the package writes behind a page header of 24 bytes. */
const magicOffset = 24;
const magic = 0xbeefc0de;
const dataVersion = 2;
/** Stock LMDB's page header has 16 bytes. */
const stockMagicOffset = 16;

/** What the native check would call damaged: a file of another program. */
function checkDataFile(path: string): void {
  const file = join(path, folderFiles.data);
  let fd: number;
  try {
    fd = openSync(file, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw fileError(path, error as NodeJS.ErrnoException);
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
  if (length < head.length) throw formatError(path, `${file} is damaged: it has ${length} bytes`);
  if (head.readUInt32LE(magicOffset) !== magic) {
    const stock = head.readUInt32LE(stockMagicOffset) === magic;
    throw formatError(
      path,
      stock ? `${file} was written by another implementation of LMDB` : `${file} is not an LMDB file`,
    );
  }
  const version = head.readUInt32LE(magicOffset + 4) & 0xffff;
  if (version !== dataVersion)
    throw formatError(path, `${file} has data version ${version}, but this version reads ${dataVersion}`, {
      version,
    });
}
