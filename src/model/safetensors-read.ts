import type { FileHandle } from "node:fs/promises";
import { cancelledError } from "../deadline.ts";
import { TensorBusError } from "../errors.ts";
import { itemSize } from "../layout/index.ts";
import { type Box, boxRuns } from "./box.ts";
import { fileError } from "./files.ts";
import { damaged, type SafetensorsEntry } from "./safetensors-header.ts";

/** A tensor of a checkpoint. */
export interface SafetensorsTensor extends SafetensorsEntry {
  /** The path of the file that holds it. */
  readonly file: string;
}

interface ReadOptions {
  readonly signal?: AbortSignal;
}

/** Says where a box goes in the caller's memory: a row-major tensor of `shape`, at `offsets`. */
interface BoxTarget {
  readonly shape: readonly number[];
  readonly offsets: readonly number[];
}

/** One call reads at most this much: the kernel's limit is 2 GiB less a page. */
const maxReadBytes = 2 ** 30;
/** Runs that lie close together are read as one window and picked out of it, since a call costs more than a page. */
const windowBytes = 2 ** 20;
const maxGapBytes = 2 ** 16;

/**
 * A safetensors checkpoint, of one file or of many with an index. Reads ranges and boxes of tensors: nothing but what
 * is asked for is ever held in memory.
 */
export class SafetensorsCheckpoint implements AsyncDisposable {
  /** By name. One file: in the order of its header. With an index: in the order of the index. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  /** The `__metadata__` of the files; the first file wins if they differ. */
  readonly metadata: Readonly<Record<string, string>>;
  /** How many tensors its files hold that its index does not list. */
  readonly unlisted: number;
  readonly #handles: ReadonlyMap<string, FileHandle>;

  constructor(
    handles: ReadonlyMap<string, FileHandle>,
    tensors: ReadonlyMap<string, SafetensorsTensor>,
    metadata: Readonly<Record<string, string>>,
    unlisted = 0,
  ) {
    this.#handles = handles;
    this.tensors = tensors;
    this.metadata = metadata;
    this.unlisted = unlisted;
  }

  /** The paths of its files. */
  get files(): string[] {
    return [...this.#handles.keys()];
  }

  /** The tensor of that name; `TB_TENSOR_MISSING` if there is none. */
  tensor(name: string): SafetensorsTensor {
    const tensor = this.tensors.get(name);
    if (tensor !== undefined) return tensor;
    throw new TensorBusError("TB_TENSOR_MISSING", `the checkpoint has no tensor ${JSON.stringify(name)}`, {
      details: { tensor: name, files: this.files },
    });
  }

  /** Fills `into` with the bytes of a tensor from byte `at` on. `TB_REGION` beyond its end. */
  async read(name: string, into: Uint8Array, at = 0, options: ReadOptions = {}): Promise<void> {
    const tensor = this.tensor(name);
    if (!Number.isSafeInteger(at) || at < 0 || at + into.length > tensor.bytes) {
      throw new TensorBusError(
        "TB_REGION",
        `bytes ${at} to ${at + into.length} of tensor ${JSON.stringify(name)}, which has ${tensor.bytes}`,
        { details: { tensor: name, at, length: into.length, bytes: tensor.bytes } },
      );
    }
    await this.#pread(tensor.file, into, tensor.position + at, options);
  }

  /**
   * Reads a box of a tensor. Packed into `into` unless `target` says that `into` is a larger row-major tensor. Bytes of
   * `into` outside of the box stay as they are. `TB_SHAPE` for a box that does not lie in its tensor, `TB_REGION` if
   * `into` has another size than the target, `TB_DTYPE` if a run of a packed type begins or ends inside of a byte.
   */
  async readBox(
    name: string,
    box: Box,
    into: Uint8Array,
    target?: BoxTarget,
    options: ReadOptions = {},
  ): Promise<void> {
    const tensor = this.tensor(name);
    const item = itemSize(tensor.dtype);
    const shape = target?.shape ?? box.lengths;
    const offsets = target?.offsets ?? shape.map(() => 0);
    const bytes = shape.reduce((product, extent) => product * extent, item);
    if (into.length !== bytes) {
      throw new TensorBusError(
        "TB_REGION",
        `a box of tensor ${JSON.stringify(name)} needs ${bytes} bytes for shape [${shape}], but the memory has ${into.length}`,
        { details: { tensor: name, shape, bytes, length: into.length } },
      );
    }
    const window = new RunWindow();
    for (const run of boxRuns(tensor.shape, box, shape, offsets)) {
      const [from, to, length] = [tensor.position + run.from * item, run.to * item, run.length * item];
      if (!Number.isInteger(from) || !Number.isInteger(to) || !Number.isInteger(length))
        throw amidByte(tensor, box);
      if (window.take(from, to, length)) continue;
      await this.#flush(tensor.file, window, into, options);
      window.take(from, to, length);
    }
    await this.#flush(tensor.file, window, into, options);
  }

  async close(): Promise<void> {
    await Promise.all([...this.#handles.values()].map((handle) => handle.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #flush(file: string, window: RunWindow, into: Uint8Array, options: ReadOptions): Promise<void> {
    const { runs } = window;
    if (runs.length === 1) {
      const { from, to, length } = runs[0]!;
      await this.#pread(file, into.subarray(to, to + length), from, options);
    } else if (runs.length > 1) {
      const buffer = new Uint8Array(window.end - window.begin);
      await this.#pread(file, buffer, window.begin, options);
      for (const { from, to, length } of runs) {
        into.set(buffer.subarray(from - window.begin, from - window.begin + length), to);
      }
    }
    window.clear();
  }

  async #pread(file: string, into: Uint8Array, position: number, options: ReadOptions): Promise<void> {
    const handle = this.#handles.get(file)!;
    for (let done = 0; done < into.length; ) {
      if (options.signal?.aborted) throw cancelledError(`reading ${file}`, options.signal);
      const length = Math.min(into.length - done, maxReadBytes);
      const { bytesRead } = await handle.read(into, done, length, position + done).catch((error: unknown) => {
        throw fileError(error, "read", file);
      });
      if (bytesRead === 0) {
        throw damaged(file, `it ended at byte ${position + done} while it was read`, {
          position: position + done,
        });
      }
      done += bytesRead;
    }
  }
}

function amidByte({ name, dtype, shape }: SafetensorsEntry, box: Box): TensorBusError {
  return new TensorBusError(
    "TB_DTYPE",
    `tensor ${JSON.stringify(name)}: a row of the box at [${box.offsets}] of lengths [${box.lengths}] begins or ends inside of a byte of ${dtype}`,
    { details: { tensor: name, dtype, shape, ...box } },
  );
}

/** Runs in ascending order that are read as one. */
class RunWindow {
  readonly runs: { from: number; to: number; length: number }[] = [];
  begin = 0;
  end = 0;

  /** True if it fits: the first always does. */
  take(from: number, to: number, length: number): boolean {
    if (this.runs.length === 0) this.begin = from;
    else if (from - this.end > maxGapBytes || from + length - this.begin > windowBytes) return false;
    this.end = from + length;
    this.runs.push({ from, to, length });
    return true;
  }

  clear(): void {
    this.runs.length = 0;
  }
}
