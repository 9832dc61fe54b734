/** Reads and writes of files that are open, whole however the system cuts them, and failures that name the file. */
import { readSync, writeSync } from "node:fs";
import { TensorBusError } from "../errors.ts";
import { fileError } from "../model/files.ts";

/** An open file. */
export interface OpenedFile {
  readonly path: string;
  readonly fd: number;
}

export function readAll(file: OpenedFile, into: Uint8Array, position: number): void {
  readSome(file, into, position, into.length);
}

/** Reads as much as there is room for, or up to the end of the file, and `least` bytes at the least. Gives how many. */
export function readSome(
  { path, fd }: OpenedFile,
  into: Uint8Array,
  position: number,
  least: number,
): number {
  let done = 0;
  while (done < into.length) {
    const count = attempt("read", path, () => readSync(fd, into, done, into.length - done, position + done));
    if (count === 0 && done >= least) break;
    if (count === 0) {
      throw new TensorBusError("TB_FILE", `${path} ended at byte ${position + done} while it was read`, {
        details: { path, position: position + done },
      });
    }
    done += count;
  }
  return done;
}

export function writeAll({ path, fd }: OpenedFile, bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.length; ) {
    done += attempt("write", path, () => writeSync(fd, bytes, done, bytes.length - done, position + done));
  }
}

/** What `run` does with a file, its failure as a `TensorBusError` that names the action and the path. */
export function attempt<T>(action: string, path: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw error instanceof TensorBusError ? error : fileError(error, action, path);
  }
}
