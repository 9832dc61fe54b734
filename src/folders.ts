/**
 * Folders, made one after the other. Node.js's own recursive mkdir never ends where the parent exists and the kernel makes nothing in
 * it all the same, as in `/proc`.
 */
import { mkdirSync, statSync } from "node:fs";
import { dirname } from "node:path";

/** Makes a folder and those above it that are missing: the first one that it made, if any. Errors are those of mkdir(2). */
export function makeFolders(path: string, mode = 0o777): string | undefined {
  try {
    return makeFolder(path, mode);
  } catch (error) {
    const parent = dirname(path);
    if ((error as NodeJS.ErrnoException).code !== "ENOENT" || parent === path) throw error;
    const first = makeFolders(parent, mode);
    const made = makeFolder(path, mode);
    return first ?? made;
  }
}

function makeFolder(path: string, mode: number): string | undefined {
  try {
    mkdirSync(path, { mode });
    return path;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST" && statSync(path, { throwIfNoEntry: false })?.isDirectory() === true)
      return undefined;
    throw error;
  }
}
