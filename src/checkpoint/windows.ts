/**
 * Reads and writes of a thread, of which small ones are joined: tens of thousands of tensors of a few bytes, which mostly lie
 * side by side in both files, cost a call for each otherwise.
 */
import { type OpenedFile, readAll, readSome, writeAll } from "./opened-file.ts";

const windowBytes = 2 ** 18;
/** What is larger is read as it is. */
const smallBytes = 2 ** 14;

/** Reads files, small ones through a window of the file that was read last. */
export class Reader {
  readonly #files: readonly OpenedFile[];
  readonly #window = Buffer.allocUnsafeSlow(windowBytes);
  #file = -1;
  #begin = 0;
  #end = 0;

  constructor(files: readonly OpenedFile[]) {
    this.#files = files;
  }

  read(file: number, into: Uint8Array, position: number): void {
    if (into.length >= smallBytes) {
      readAll(this.#files[file]!, into, position);
      return;
    }
    const isInside = file === this.#file && position >= this.#begin && position + into.length <= this.#end;
    if (!isInside) this.#fill(file, into.length, position);
    into.set(this.#window.subarray(position - this.#begin, position - this.#begin + into.length));
  }

  /** What is read in pieces that lie apart is read piece by piece. */
  readApart(file: number, into: Uint8Array, position: number): void {
    readAll(this.#files[file]!, into, position);
  }

  /** Nothing is known any more: others may have written. */
  forget(): void {
    this.#file = -1;
  }

  #fill(file: number, least: number, position: number): void {
    this.forget();
    const bytes = readSome(this.#files[file]!, this.#window, position, least);
    [this.#file, this.#begin, this.#end] = [file, position, position + bytes];
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
