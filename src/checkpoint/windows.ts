/**
 * Reads and writes of a thread, of which small ones are joined: tens of thousands of tensors of a few bytes, which mostly lie
 * side by side in both files, cost a call for each otherwise.
 */
import { type OpenedFile, readAll, readSome, writeAll } from "./opened-file.ts";

const windowBytes = 2 ** 18;
/** What is larger is read as it is. */
const smallBytes = 2 ** 14;

/** The most bytes of windows, over all files. */
const windowsBytes = 4 * 2 ** 20;

interface Window {
  readonly buffer: Buffer;
  begin: number;
  end: number;
}

/** Reads files, small pieces through a window of each file: the pieces of a tensor may lie in many, and those of the next beside them. */
export class Reader {
  readonly #files: readonly OpenedFile[];
  readonly #windows = new Map<number, Window>();
  readonly #room: number;

  constructor(files: readonly OpenedFile[]) {
    this.#files = files;
    this.#room = Math.min(windowBytes, Math.floor(windowsBytes / Math.max(1, files.length)));
  }

  read(file: number, into: Uint8Array, position: number): void {
    if (into.length >= smallBytes || into.length > this.#room) {
      readAll(this.#files[file]!, into, position);
      return;
    }
    const window = this.#windowOf(file);
    const isInside = position >= window.begin && position + into.length <= window.end;
    if (!isInside) this.#fill(file, window, into.length, position);
    into.set(window.buffer.subarray(position - window.begin, position - window.begin + into.length));
  }

  /** What is read in pieces that lie apart is read piece by piece. */
  readApart(file: number, into: Uint8Array, position: number): void {
    readAll(this.#files[file]!, into, position);
  }

  /** Nothing is known any more: others may have written. */
  forget(): void {
    for (const window of this.#windows.values()) [window.begin, window.end] = [0, 0];
  }

  #windowOf(file: number): Window {
    const known = this.#windows.get(file);
    if (known !== undefined) return known;
    const window = { buffer: Buffer.allocUnsafeSlow(this.#room), begin: 0, end: 0 };
    this.#windows.set(file, window);
    return window;
  }

  #fill(file: number, window: Window, least: number, position: number): void {
    [window.begin, window.end] = [0, 0];
    const bytes = readSome(this.#files[file]!, window.buffer, position, least);
    [window.begin, window.end] = [position, position + bytes];
  }
}

/** The most bytes that wait for others to be written with them, over all files. */
const waitingBytes = 4 * 2 ** 20;

interface Waiting {
  readonly buffer: Buffer;
  at: number;
  bytes: number;
}

/** Writes files, small pieces that follow each other as one. What waits is written by `flush`. */
export class Writer {
  readonly #files: readonly OpenedFile[];
  readonly #waiting = new Map<number, Waiting>();
  readonly #room: number;

  constructor(files: readonly OpenedFile[]) {
    this.#files = files;
    this.#room = Math.min(windowBytes, Math.floor(waitingBytes / Math.max(1, files.length)));
  }

  write(file: number, bytes: Uint8Array, position: number): void {
    if (bytes.length >= smallBytes || bytes.length > this.#room) {
      writeAll(this.#files[file]!, bytes, position);
      return;
    }
    const waiting = this.#waitingOf(file);
    const follows = waiting.at + waiting.bytes === position && waiting.bytes + bytes.length <= this.#room;
    if (!follows) {
      this.#write(file, waiting);
      waiting.at = position;
    }
    waiting.buffer.set(bytes, waiting.bytes);
    waiting.bytes += bytes.length;
  }

  flush(): void {
    for (const [file, waiting] of this.#waiting) this.#write(file, waiting);
  }

  #waitingOf(file: number): Waiting {
    const known = this.#waiting.get(file);
    if (known !== undefined) return known;
    const waiting = { buffer: Buffer.allocUnsafeSlow(this.#room), at: 0, bytes: 0 };
    this.#waiting.set(file, waiting);
    return waiting;
  }

  #write(file: number, waiting: Waiting): void {
    const { buffer, at, bytes } = waiting;
    waiting.bytes = 0;
    if (bytes > 0) writeAll(this.#files[file]!, buffer.subarray(0, bytes), at);
  }
}
