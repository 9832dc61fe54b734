import { type FileHandle, open, readdir, rename, rm, statfs } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { cancelledError } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { reserveFile } from "../ffi/reserve.ts";
import { fileError, randomName } from "./files.ts";
import { layOutHeader, type SafetensorsEntry } from "./safetensors-header.ts";
import type { ModelTensor } from "./tensor.ts";

interface SafetensorsWriteOptions {
  /** The file's `__metadata__`. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
}

const maxWriteBytes = 2 ** 30;

/**
 * A safetensors file that is being written: its tensors are filled in any order, in pieces, at once. It lies under a
 * temporary name beside its final one until `finish`; whatever else ends it removes it.
 */
export class SafetensorsWriter implements AsyncDisposable {
  readonly path: string;
  readonly temporaryPath: string;
  readonly fileBytes: number;
  readonly #handle: FileHandle;
  readonly #entries: ReadonlyMap<string, SafetensorsEntry>;
  readonly #written: ReadonlyMap<string, Coverage>;
  readonly #signal: AbortSignal | undefined;
  #state: "open" | "sealed" | "finished" | "discarded" = "open";

  constructor(
    path: string,
    temporaryPath: string,
    handle: FileHandle,
    entries: readonly SafetensorsEntry[],
    fileBytes: number,
    signal: AbortSignal | undefined,
  ) {
    this.path = path;
    this.temporaryPath = temporaryPath;
    this.fileBytes = fileBytes;
    this.#handle = handle;
    this.#entries = new Map(entries.map((entry) => [entry.name, entry]));
    this.#written = new Map(entries.map((entry) => [entry.name, new Coverage()]));
    this.#signal = signal;
  }

  /**
   * Writes bytes of a tensor from byte `at` on. A failure discards the file: `TB_NO_SPACE` if the disk is full,
   * `TB_FILE` otherwise, `TB_CANCELLED` by the signal. `TB_TENSOR_MISSING` for a name that the file has not,
   * `TB_REGION` beyond the tensor's end.
   */
  async write(name: string, bytes: Uint8Array, at = 0): Promise<void> {
    const entry = this.#entry(name);
    if (!Number.isSafeInteger(at) || at < 0 || at + bytes.length > entry.bytes) {
      throw new TensorBusError(
        "TB_REGION",
        `bytes ${at} to ${at + bytes.length} of tensor ${JSON.stringify(name)}, which has ${entry.bytes}`,
        { details: { tensor: name, at, length: bytes.length, bytes: entry.bytes } },
      );
    }
    try {
      await writeAll(this.#handle, this.temporaryPath, bytes, entry.position + at, this.#signal);
    } catch (error) {
      await this.discard();
      throw error;
    }
    this.#written.get(name)!.add(at, at + bytes.length);
  }

  /**
   * Makes the file durable under its temporary name: what remains is `finish`, or a rename by somebody else and `letGo`.
   * `TypeError` if bytes of a tensor were never written.
   */
  async seal(): Promise<void> {
    this.#checkOpen();
    for (const { name, bytes } of this.#entries.values()) {
      const written = this.#written.get(name)!.total;
      if (written !== bytes) {
        throw new TypeError(
          `only ${written} of ${bytes} bytes of tensor ${JSON.stringify(name)} were written`,
        );
      }
    }
    try {
      await this.#handle.sync();
      await this.#handle.close();
    } catch (error) {
      await this.discard();
      throw fileError(error, "write", this.path);
    }
    this.#state = "sealed";
  }

  /** Makes the file durable and gives it its final name, over a file that had it. `TypeError` as for `seal`. */
  async finish(): Promise<void> {
    if (this.#state !== "sealed") await this.seal();
    try {
      await publish(this.temporaryPath, this.path);
    } catch (error) {
      await this.discard();
      throw error;
    }
    this.#state = "finished";
  }

  /** The identity of a sealed file that somebody else gave its final name: it is no longer this writer's to remove. */
  letGo(): void {
    if (this.#state === "sealed") this.#state = "finished";
  }

  /** Removes what was written, unless it was finished. */
  async discard(): Promise<void> {
    if (this.#state !== "open" && this.#state !== "sealed") return;
    this.#state = "discarded";
    await this.#handle.close().catch(() => undefined); // the space is freed with the name, whatever closing says
    await rm(this.temporaryPath, { force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.discard();
  }

  #entry(name: string): SafetensorsEntry {
    this.#checkOpen();
    const entry = this.#entries.get(name);
    if (entry !== undefined) return entry;
    throw new TensorBusError("TB_TENSOR_MISSING", `${this.path} has no tensor ${JSON.stringify(name)}`, {
      details: { path: this.path, tensor: name },
    });
  }

  #checkOpen(): void {
    if (this.#state === "open") return;
    throw new TensorBusError("TB_CLOSED", `${this.path} was ${this.#state}`, {
      details: { path: this.path },
    });
  }
}

/** The bytes of a tensor that were written: disjoint intervals, ascending. Writing in order keeps it at one. */
class Coverage {
  #intervals: [number, number][] = [];

  add(begin: number, end: number): void {
    if (begin === end) return;
    const before = this.#intervals.filter((interval) => interval[1] < begin);
    const after = this.#intervals.filter((interval) => interval[0] > end);
    const touched = this.#intervals.slice(before.length, this.#intervals.length - after.length);
    const merged: [number, number] = [
      Math.min(begin, ...touched.map((interval) => interval[0])),
      Math.max(end, ...touched.map((interval) => interval[1])),
    ];
    this.#intervals = [...before, merged, ...after];
  }

  get total(): number {
    return this.#intervals.reduce((sum, [begin, end]) => sum + end - begin, 0);
  }
}

/**
 * Begins a safetensors file: lays the tensors out, reserves the space of the whole file, writes the header.
 * `TB_NO_SPACE` if it does not fit, before anything is transferred; `TB_FILE` if it cannot be written;
 * `TB_SAFETENSORS` for a tensor that cannot be named or sized so.
 */
export async function createSafetensors(
  path: string,
  tensors: readonly ModelTensor[],
  options: SafetensorsWriteOptions = {},
): Promise<SafetensorsWriter> {
  const { head, positions, sizes, fileBytes } = layOutHeader(tensors, options.metadata ?? {}, path);
  await checkFreeSpace(path, fileBytes);
  const temporaryPath = join(
    dirname(path),
    `${temporaryPrefix(path, process.pid)}${randomName()}${temporarySuffix}`,
  );
  let handle: FileHandle;
  try {
    handle = await open(temporaryPath, "wx");
  } catch (error) {
    throw fileError(error, "create", path);
  }
  const entries = tensors.map((tensor, index) => ({
    ...tensor,
    position: positions[index]!,
    bytes: sizes[index]!,
  }));
  const writer = new SafetensorsWriter(path, temporaryPath, handle, entries, fileBytes, options.signal);
  try {
    await reserve(handle, fileBytes);
    await writeAll(handle, temporaryPath, head, 0, options.signal);
    return writer;
  } catch (error) {
    await writer.discard();
    throw error instanceof TensorBusError ? error : fileError(error, "reserve space for", path);
  }
}

/** Gives a sealed file its final name, durably, over a file that had it. `TB_FILE` if that cannot be. */
export async function publish(temporaryPath: string, path: string): Promise<void> {
  try {
    await rename(temporaryPath, path);
    await syncFolder(dirname(path));
  } catch (error) {
    throw fileError(error, "write", path);
  }
}

/** Removes what a process that was killed left of a file that it was writing. */
export async function removeUnfinished(path: string, pid: number): Promise<void> {
  const folder = dirname(path);
  for (const name of await readdir(folder)) {
    if (name.startsWith(temporaryPrefix(path, pid)) && name.endsWith(temporarySuffix)) {
      await rm(join(folder, name), { force: true });
    }
  }
}

const temporarySuffix = ".partial";

function temporaryPrefix(path: string, pid: number): string {
  return `.${basename(path)}.${pid}.`;
}

/** Refuses early, with numbers, what cannot fit; the reservation itself decides. */
async function checkFreeSpace(path: string, needed: number): Promise<void> {
  const folder = dirname(path);
  let available: number;
  try {
    const { bavail, bsize } = await statfs(folder);
    available = bavail * bsize;
  } catch (error) {
    throw fileError(error, "write to", folder);
  }
  if (available < needed) {
    throw new TensorBusError(
      "TB_NO_SPACE",
      `${path} needs ${needed} bytes, and the file system of ${folder} has ${available} left`,
      { details: { path, needed, available } },
    );
  }
}

async function reserve(handle: FileHandle, bytes: number): Promise<void> {
  if (!reserveFile(handle.fd, bytes)) await handle.truncate(bytes);
}

async function writeAll(
  handle: FileHandle,
  path: string,
  bytes: Uint8Array,
  position: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    if (signal?.aborted) throw cancelledError(`writing ${path}`, signal);
    const length = Math.min(bytes.length - done, maxWriteBytes);
    const { bytesWritten } = await handle
      .write(bytes, done, length, position + done)
      .catch((error: unknown) => {
        throw fileError(error, "write", path);
      });
    done += bytesWritten;
  }
}

/** So that the new name survives a power failure too. */
async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
