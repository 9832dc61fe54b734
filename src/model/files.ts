import * as fs from "node:fs";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";
import { TensorBusError } from "../errors.ts";

/** What reads, without `node:fs/promises`: Node.js loads that only for who asks, and a command that reads a spec starts sooner. */
const [open, fstat, read, close] = [
  promisify(fs.open),
  promisify(fs.fstat),
  promisify(fs.read),
  promisify(fs.close),
];

const reasons: Readonly<Record<string, string>> = {
  ENOENT: "no such file or folder",
  EACCES: "permission denied",
  EPERM: "permission denied",
  EISDIR: "it is a folder",
  ENOTDIR: "a part of the path is not a folder",
  EMFILE: "too many open files (see ulimit -n)",
  EFBIG: "the file would be larger than the file system or the limits allow",
  EROFS: "the file system is read-only",
};

/** A failure of the file system as a `TensorBusError`: `TB_NO_SPACE` if the disk or a quota is full, else `TB_FILE`. */
export function fileError(cause: unknown, action: string, path: string): TensorBusError {
  const code = systemCode(cause);
  if (code === "ENOSPC" || code === "EDQUOT") {
    return new TensorBusError("TB_NO_SPACE", `cannot ${action} ${path}: the disk or the quota is full`, {
      details: { path, errno: code },
      cause,
    });
  }
  const isWithoutFolder =
    code === "ENOENT" && /^(write|create)$/.test(action) && !fs.existsSync(dirname(path));
  const reason = isWithoutFolder
    ? `there is no folder ${dirname(path)}`
    : ((code === undefined ? undefined : reasons[code]) ?? code ?? String(cause));
  return new TensorBusError("TB_FILE", `cannot ${action} ${path}: ${reason}`, {
    details: { path, errno: code },
    cause,
  });
}

export interface ReadOptions {
  /**
   * True if it may be a pipe, which somebody writes for us (`/dev/stdin`, `<(…)`): what a user names on the command line.
   * Default false: a file that is named in another file is a regular one.
   */
  readonly pipes?: boolean;
}

/** A file as bytes. `TB_FILE` if it cannot be read, is no regular file, or is longer than `maxBytes`: no more is read. */
export async function readBytes(
  path: string,
  maxBytes: number,
  { pipes = false }: ReadOptions = {},
): Promise<Buffer> {
  let file: number;
  try {
    // A pipe without a writer would not even be opened otherwise.
    file = await open(path, fs.constants.O_RDONLY | (pipes ? 0 : fs.constants.O_NONBLOCK));
  } catch (error) {
    throw fileError(error, "read", path);
  }
  try {
    const status = await fstat(file);
    if (!status.isFile() && !status.isDirectory() && !pipes) {
      throw new TensorBusError("TB_FILE", `cannot read ${path}: it is not a regular file`, {
        details: { path },
      });
    }
    if (status.isFile() && status.size > maxBytes) throw tooLong(path, status.size, maxBytes);
    return await readUpTo(file, path, status.isFile() ? status.size : maxBytes, maxBytes);
  } catch (error) {
    throw error instanceof TensorBusError ? error : fileError(error, "read", path);
  } finally {
    await close(file);
  }
}

/** At most `expected` bytes, or an error if there are more and those are too many. */
async function readUpTo(file: number, path: string, expected: number, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  while (bytes < expected) {
    const chunk = Buffer.allocUnsafe(Math.min(expected - bytes, 2 ** 20));
    const { bytesRead } = await read(file, chunk, 0, chunk.length, null);
    if (bytesRead === 0) break;
    chunks.push(chunk.subarray(0, bytesRead));
    bytes += bytesRead;
  }
  if (bytes === maxBytes && (await read(file, Buffer.allocUnsafe(1), 0, 1, null)).bytesRead > 0) {
    throw tooLong(path, bytes + 1, maxBytes);
  }
  return Buffer.concat(chunks, bytes);
}

function tooLong(path: string, bytes: number, maxBytes: number): TensorBusError {
  return new TensorBusError("TB_FILE", `${path} has ${bytes} bytes or more; at most ${maxBytes} are read`, {
    details: { path, bytes, maxBytes },
  });
}

/** A text file as text. `TB_FILE` if it cannot be read, is longer than `maxBytes`, or is no text. */
export async function readTextFile(path: string, maxBytes: number, options?: ReadOptions): Promise<string> {
  return decodeText(await readBytes(path, maxBytes, options), path);
}

/** The bytes of a file as text; `TB_FILE` if they are none. */
export function decodeText(bytes: Uint8Array, path: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new TensorBusError("TB_FILE", `${path} is not UTF-8 text`, { details: { path }, cause });
  }
}

/**
 * Writes a file as a whole: under another name first, so that its own name is that of the old contents or of all of the
 * new ones, whatever fails. `TB_NO_SPACE` if the disk is full, `TB_FILE` if it cannot be written.
 */
export async function writeWholeFile(path: string, contents: Uint8Array | string): Promise<void> {
  const { open, rename, rm } = fs.promises;
  const place = await placeOf(path);
  const temporary = join(dirname(place), `.${basename(place)}.${process.pid}.${randomName()}.partial`);
  try {
    const handle = await open(temporary, "wx");
    try {
      await handle.writeFile(contents);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, place);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined); // what failed says more
    throw fileError(error, "write", path);
  }
}

/** Says where a file is to lie: what a link leads to. A device or a pipe would be replaced rather than written to. */
async function placeOf(path: string): Promise<string> {
  try {
    const { realpath, stat } = fs.promises;
    const place = await realpath(path);
    if ((await stat(place)).isFile()) return place;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return path;
    throw fileError(error, "write", path);
  }
  throw new TensorBusError("TB_FILE", `cannot write ${path}: it is not a regular file`, {
    details: { path },
  });
}

function systemCode(error: unknown): string | undefined {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return typeof code === "string" ? code : undefined;
}

/** Twelve characters that nobody guesses. `node:crypto` is loaded by who writes, and not by who only reads. */
export function randomName(): string {
  return Buffer.from(crypto.getRandomValues(new Uint8Array(6))).toString("hex");
}
