/**
 * The journal of a result that is being written: which items of the work are on disk, with their checksums. A run that was
 * killed goes on from there. Its first line says what it is the journal of; another source or target has another key.
 */
import { closeSync, fsyncSync, openSync, readFileSync, rmSync, truncateSync, writeSync } from "node:fs";
import { join } from "node:path";
import * as z from "zod";
import { TensorBusError } from "../errors.ts";
import { fileError } from "../model/files.ts";
import { parseJson } from "./json.ts";
import type { ItemChecksums } from "./scatter.ts";

export const journalName = "tensorbus-journal.jsonl";

export class Journal {
  /** The items that are done, by their numbers. */
  readonly done: ReadonlyMap<number, ItemChecksums>;
  readonly #path: string;
  readonly #fd: number;
  #isPublishing: boolean;

  private constructor(
    path: string,
    fd: number,
    { done, isPublishing }: Pick<Lines, "done" | "isPublishing">,
  ) {
    this.#path = path;
    this.#fd = fd;
    this.done = done;
    this.#isPublishing = isPublishing;
  }

  /** True if files were about to take their final names, and some may have them. */
  get isPublishing(): boolean {
    return this.#isPublishing;
  }

  /** What the folder's journal of that key and so many items says; `undefined` if there is none. */
  static find(folder: string, key: string, items: number): Pick<Lines, "isPublishing"> | undefined {
    return readLines(join(folder, journalName), key, items);
  }

  /** True if a run, whatever it made, was killed while its files took their final names, so that some may have them. */
  static isPublishing(folder: string): boolean {
    try {
      return readFileSync(join(folder, journalName), "utf8").includes(`\n${publishingLine}\n`);
    } catch {
      return false;
    }
  }

  /** Begins a journal, or goes on with the one of that key. */
  static open(folder: string, key: string, items: number): Journal {
    const path = join(folder, journalName);
    const found = readLines(path, key, items);
    try {
      if (found !== undefined) {
        // A line that a kill cut off is no line.
        truncateSync(path, found.bytes);
        return new Journal(path, openSync(path, "a"), found);
      }
      rmSync(path, { force: true });
      const fd = openSync(path, "wx");
      const journal = new Journal(path, fd, { done: new Map(), isPublishing: false });
      journal.#append({ format: 1, key });
      return journal;
    } catch (error) {
      throw error instanceof TensorBusError ? error : fileError(error, "write", path);
    }
  }

  /** Notes items whose bytes are on disk. */
  add(items: readonly (readonly [item: number, checksums: ItemChecksums])[]): void {
    if (items.length > 0) this.#append(items);
  }

  /** Notes that files take their final names from now on: nothing of an earlier result has one of these any more. */
  beginPublishing(): void {
    this.#write(`${publishingLine}\n`);
    this.#isPublishing = true;
  }

  #append(line: unknown): void {
    this.#write(`${JSON.stringify(line)}\n`);
  }

  #write(line: string): void {
    const bytes = Buffer.from(line);
    try {
      for (let done = 0; done < bytes.length; ) done += writeSync(this.#fd, bytes, done);
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

const publishingLine = JSON.stringify({ publishing: true });

interface Lines {
  readonly done: ReadonlyMap<number, ItemChecksums>;
  readonly isPublishing: boolean;
  /** The bytes of the lines that are complete. */
  readonly bytes: number;
}

/** A journal with a line that is none of a journal counts for nothing. */
function readLines(path: string, key: string, items: number): Lines | undefined {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
  const whole = text.slice(0, text.lastIndexOf("\n") + 1);
  const [first, ...rest] = whole.split("\n").slice(0, -1).map(parseJson);
  const head = headSchema.safeParse(first);
  if (!head.success || head.data.key !== key) return undefined;
  const done = new Map<number, ItemChecksums>();
  let isPublishing = false;
  for (const line of rest) {
    const parsed = lineSchema.safeParse(line);
    if (!parsed.success) return undefined;
    if (!Array.isArray(parsed.data)) isPublishing = true;
    else for (const [item, checksums] of parsed.data) done.set(item, checksums);
  }
  if ([...done.keys()].some((item) => item >= items)) return undefined;
  return { done, isPublishing, bytes: Buffer.byteLength(whole) };
}

const headSchema = z.strictObject({ format: z.literal(1), key: z.string() });
const uint32 = z
  .int()
  .min(0)
  .max(2 ** 32 - 1);
const lineSchema = z.union([
  z.array(z.tuple([z.int().min(0), z.array(uint32)])),
  z.strictObject({ publishing: z.literal(true) }),
]);
