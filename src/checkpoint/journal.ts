/**
 * The journal of a result that is being written: which items of the work are on disk, with their checksums. A run that was
 * killed goes on from there. Its first line says what it is the journal of; another source or target has another key.
 */
import { closeSync, fsyncSync, openSync, readFileSync, rmSync, truncateSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fileError } from "../model/files.ts";
import type { ItemChecksums } from "./scatter.ts";

export const journalName = "tensorbus-journal.jsonl";

export class Journal {
  /** The items that are done, by their numbers. */
  readonly done: ReadonlyMap<number, ItemChecksums>;
  readonly #path: string;
  readonly #fd: number;

  private constructor(path: string, fd: number, done: ReadonlyMap<number, ItemChecksums>) {
    this.#path = path;
    this.#fd = fd;
    this.done = done;
  }

  /** Whether there is a journal of that key in the folder. */
  static matches(folder: string, key: string): boolean {
    return readLines(join(folder, journalName))?.key === key;
  }

  /** Begins a journal, or goes on with the one of that key. */
  static open(folder: string, key: string): Journal {
    const path = join(folder, journalName);
    const found = readLines(path);
    try {
      if (found?.key === key) {
        // A line that a kill cut off is no line.
        truncateSync(path, found.bytes);
        return new Journal(path, openSync(path, "a"), found.done);
      }
      rmSync(path, { force: true });
      const fd = openSync(path, "wx");
      const journal = new Journal(path, fd, new Map());
      journal.#append({ format: 1, key });
      return journal;
    } catch (error) {
      throw fileError(error, "write", path);
    }
  }

  /** Notes items whose bytes are on disk. */
  add(items: readonly (readonly [item: number, checksums: ItemChecksums])[]): void {
    if (items.length > 0) this.#append(items);
  }

  #append(line: unknown): void {
    try {
      writeSync(this.#fd, `${JSON.stringify(line)}\n`);
      fsyncSync(this.#fd);
    } catch (error) {
      throw fileError(error, "write", this.#path);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  static remove(folder: string): void {
    rmSync(join(folder, journalName), { force: true });
  }
}

interface Lines {
  readonly key: string;
  readonly done: ReadonlyMap<number, ItemChecksums>;
  /** Of the lines that are whole. */
  readonly bytes: number;
}

function readLines(path: string): Lines | undefined {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
  const whole = text.slice(0, text.lastIndexOf("\n") + 1);
  const [first, ...rest] = whole.split("\n").slice(0, -1);
  const head = parse(first ?? "") as { format?: unknown; key?: unknown } | undefined;
  if (head?.format !== 1 || typeof head.key !== "string") return undefined;
  const done = new Map<number, ItemChecksums>();
  for (const line of rest) {
    const items = parse(line);
    if (!Array.isArray(items)) return undefined;
    for (const [item, checksums] of items as [number, ItemChecksums][]) done.set(item, checksums);
  }
  return { key: head.key, done, bytes: Buffer.byteLength(whole) };
}

function parse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
