/** The files of a result while they are written: under names that say so, their space reserved before anything is moved. */
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statfsSync,
} from "node:fs";
import { join } from "node:path";
import { TensorBusError } from "../errors.ts";
import { lockFile } from "../ffi/lock.ts";
import { reserveFile } from "../ffi/reserve.ts";
import { type DType, itemSize } from "../layout/index.ts";
import { crc32c, move } from "../memory/kernels.ts";
import { layOutHeader } from "../model/safetensors-header.ts";
import type { Heap } from "./heap.ts";
import { Journal } from "./journal.ts";
import { isOfResult } from "./names.ts";
import { attempt, type OpenedFile, writeAll } from "./opened-file.ts";
import type { TargetFile } from "./target.ts";

const suffix = ".partial";

/** A file of the result as it will be laid out. */
export interface PlannedFile extends TargetFile {
  /** The bytes before the parameters, once: kept until then, or made again if those of all files take much memory. */
  readonly takeHead: () => Uint8Array;
  readonly headStretch: { readonly at: 0; readonly bytes: number; readonly checksum: number };
  /** The byte of each parameter's first element, in their order. */
  readonly positions: Float64Array;
  readonly bytes: number;
}

/** Keeps others from writing into a folder, as long as it is used. `TB_EXISTS` if another run does. */
export function lockFolder(folder: string): Disposable {
  const fd = attempt("open", folder, () => openSync(folder, "r"));
  if (lockFile(fd)) return { [Symbol.dispose]: () => closeSync(fd) };
  closeSync(fd);
  throw new TensorBusError(
    "TB_EXISTS",
    `another process is writing a result into ${folder}: wait until it has ended, or name another folder`,
    { details: { path: folder } },
  );
}

/** Lays out the headers of all files. Errors are those of `layOutHeader`. */
export function planFiles(files: readonly TargetFile[], heap: Heap): PlannedFile[] {
  let room = keptHeadBytes;
  return files.map((file) => {
    heap.tidy();
    const layOut = () => layOutHeader(file.parameters, file.metadata, file.name);
    const { head, positions, fileBytes } = layOut();
    let kept = head.length <= room ? head : undefined;
    room -= kept?.length ?? 0;
    const takeHead = () => {
      const bytes = kept ?? layOut().head;
      kept = undefined;
      return bytes;
    };
    const headStretch = { at: 0, bytes: head.length, checksum: crc32c(head) } as const;
    return { ...file, takeHead, headStretch, positions, bytes: fileBytes };
  });
}

const keptHeadBytes = 2 ** 26;

function partialPath(folder: string, { name }: PlannedFile): string {
  return join(folder, `${name}${suffix}`);
}

/** The present name of a file: one that was about to take its final name may have it, and then it has no other. */
export function pathOf(folder: string, file: PlannedFile, isPublishing: boolean): string {
  const partial = partialPath(folder, file);
  return isPublishing && !existsSync(partial) ? join(folder, file.name) : partial;
}

/**
 * Makes the files of a result that is begun: reserved, with headers and constants; what nothing is written to is zero.
 * `TB_NO_SPACE` if they do not fit, and then none of them is left.
 */
export function createFiles(folder: string, files: readonly PlannedFile[], heap: Heap): void {
  removeUnfinished(folder);
  requireSpace(folder, files);
  try {
    for (const file of files) {
      createFile(partialPath(folder, file), file);
      heap.tidy();
    }
  } catch (error) {
    for (const file of files) rmSync(partialPath(folder, file), { force: true });
    throw error;
  }
}

/** Nobody goes on with what a run that was killed has left: another has the folder now, locked. */
export function forgetUnfinished(folder: string): void {
  Journal.remove(folder);
  syncFolder(folder);
  removeUnfinished(folder);
}

/** What another target's run, which was killed, has left would take the space for good. */
function removeUnfinished(folder: string): void {
  for (const name of attempt("read the folder", folder, () => readdirSync(folder))) {
    if (!name.endsWith(suffix) || !isOfResult(name.slice(0, -suffix.length))) continue;
    attempt("remove", join(folder, name), () => rmSync(join(folder, name)));
  }
}

/** Refuses early, with numbers, what cannot fit; the reservation itself decides. */
function requireSpace(folder: string, files: readonly PlannedFile[]): void {
  const needed = files.reduce((sum, { bytes }) => sum + bytes, 0);
  const { bavail, bsize } = statfsSync(folder);
  const available = bavail * bsize;
  if (needed <= available) return;
  throw new TensorBusError(
    "TB_NO_SPACE",
    `the result needs ${needed} bytes, and the file system of ${folder} has ${available} left`,
    { details: { folder, needed, available } },
  );
}

function sizeOf(path: string): number {
  if (!existsSync(path)) return 0;
  const fd = openSync(path, "r");
  try {
    return fstatSync(fd).size;
  } finally {
    closeSync(fd);
  }
}

function createFile(path: string, { takeHead, positions, bytes, parameters }: PlannedFile): void {
  rmSync(path, { force: true });
  const fd = attempt("create", path, () => openSync(path, "wx"));
  try {
    const reserved = attempt("reserve space for", path, () => reserveFile(fd, bytes));
    if (!reserved && bytes > 0) writeAll({ path, fd }, Buffer.of(0), bytes - 1);
    writeAll({ path, fd }, takeHead(), 0);
    for (const [index, { dtype, constant }] of parameters.entries()) {
      if (constant !== undefined) writeAll({ path, fd }, constantBytes(constant, dtype), positions[index]!);
    }
    attempt("write", path, () => fsyncSync(fd));
  } finally {
    closeSync(fd);
  }
}

/** A parameter of one number. */
export function constantBytes(value: number, dtype: DType): Buffer {
  const bytes = Buffer.alloc(itemSize(dtype));
  move({ bytes, dtype }, { bytes: Float64Array.of(value), dtype: "float64" });
  return bytes;
}

/** True if the files of a result that was begun are still there, as they were made. */
export function haveFiles(folder: string, files: readonly PlannedFile[], isPublishing: boolean): boolean {
  return files.every((file) => sizeOf(pathOf(folder, file, isPublishing)) === file.bytes);
}

/** Opens all or none. */
export function openFiles(paths: readonly string[], flags: "r" | "r+"): OpenedFile[] {
  const opened: OpenedFile[] = [];
  try {
    for (const path of paths) opened.push({ path, fd: attempt("open", path, () => openSync(path, flags)) });
    return opened;
  } catch (error) {
    closeFiles(opened);
    throw error;
  }
}

export function closeFiles(files: readonly OpenedFile[]): void {
  for (const { fd } of files) closeSync(fd);
}

/** Gives the files their final names. One that has its name already, from a run that was killed here, keeps it. */
export function publishFiles(folder: string, files: readonly PlannedFile[]): void {
  for (const file of files) {
    const [from, to] = [partialPath(folder, file), join(folder, file.name)];
    if (existsSync(from)) attempt("write", to, () => renameSync(from, to));
  }
  syncFolder(folder);
}

/** So that names survive a power failure too. */
export function syncFolder(folder: string): void {
  const fd = attempt("open", folder, () => openSync(folder, "r"));
  try {
    attempt("write", folder, () => fsyncSync(fd));
  } finally {
    closeSync(fd);
  }
}
