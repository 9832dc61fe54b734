/** The archives that torch writes, of which only the places of stored entries matter: their bytes are read where they lie. */
import { readSync } from "node:fs";
import { TensorBusError } from "../errors.ts";

/** A ZIP archive within a file. `TB_CHECKPOINT` for one that is damaged, compressed, or reaches beyond its part of the file. */
export class Archive {
  readonly #fd: number;
  readonly #path: string;
  readonly #offset: number;
  readonly #length: number;
  readonly #entries = new Map<string, { readonly header: number; readonly bytes: number }>();

  constructor(fd: number, path: string, offset: number, length: number) {
    this.#fd = fd;
    this.#path = path;
    this.#offset = offset;
    this.#length = length;
    const tail = this.#pread(Math.max(0, length - maxTail), Math.min(length, maxTail));
    const at = tail.lastIndexOf(Buffer.from([0x50, 0x4b, 0x05, 0x06]));
    if (at < 0 || at + 22 > tail.length) throw damagedCheckpoint(path, "an item is not a ZIP archive");
    let [count, bytes, first] = [
      tail.readUInt16LE(at + 10),
      tail.readUInt32LE(at + 12),
      tail.readUInt32LE(at + 16),
    ];
    const locator = at - 20;
    if (locator >= 0 && tail.readUInt32LE(locator) === 0x07064b50) {
      const record = this.#pread(Number(tail.readBigUInt64LE(locator + 8)), 56);
      [count, bytes, first] = [32, 40, 48].map((field) => Number(record.readBigUInt64LE(field))) as [
        number,
        number,
        number,
      ];
    }
    if (bytes > maxDirectory || first + bytes > length)
      throw damagedCheckpoint(path, "the directory of an item is not in it");
    this.#readDirectory(this.#pread(first, bytes), count, length);
  }

  has(name: string): boolean {
    return this.#entries.has(name);
  }

  /** Says where the bytes of an entry lie in the file. */
  place(name: string): { readonly position: number; readonly bytes: number } {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw damagedCheckpoint(this.#path, `an item has no ${name}`);
    const header = this.#pread(entry.header, 30);
    if (header.readUInt32LE(0) !== 0x04034b50)
      throw damagedCheckpoint(this.#path, `${name} of an item is not where its directory says`);
    const begin = entry.header + 30 + header.readUInt16LE(26) + header.readUInt16LE(28);
    if (begin + entry.bytes > this.#length)
      throw damagedCheckpoint(this.#path, `${name} of an item is not in it`);
    return { position: this.#offset + begin, bytes: entry.bytes };
  }

  read(name: string, most: number): Buffer {
    const { position, bytes } = this.place(name);
    if (bytes > most)
      throw damagedCheckpoint(this.#path, `${name} of an item has ${bytes} bytes, more than ${most}`);
    return this.#pread(position - this.#offset, bytes);
  }

  /** Names without the folder that torch puts all entries in. */
  #readDirectory(directory: Buffer, count: number, length: number): void {
    let at = 0;
    for (let index = 0; index < count; index++) {
      if (at + 46 > directory.length || directory.readUInt32LE(at) !== 0x02014b50) {
        throw damagedCheckpoint(this.#path, "the directory of an item is damaged");
      }
      const method = directory.readUInt16LE(at + 10);
      const [nameBytes, extraBytes, commentBytes] = [28, 30, 32].map((field) =>
        directory.readUInt16LE(at + field),
      ) as [number, number, number];
      const extra = directory.subarray(at + 46 + nameBytes, at + 46 + nameBytes + extraBytes);
      const sizes = wideSizes(directory.readUInt32LE(at + 24), directory.readUInt32LE(at + 42), extra);
      const name = directory.toString("utf8", at + 46, at + 46 + nameBytes);
      if (method !== 0) throw damagedCheckpoint(this.#path, `${name} of an item is compressed`);
      if (sizes.header + 30 + sizes.bytes > length)
        throw damagedCheckpoint(this.#path, `${name} of an item is not in it`);
      this.#entries.set(name.slice(name.indexOf("/") + 1), sizes);
      at += 46 + nameBytes + extraBytes + commentBytes;
    }
  }

  #pread(at: number, length: number): Buffer {
    if (at < 0 || length < 0 || !(at + length <= this.#length))
      throw damagedCheckpoint(this.#path, "an item reaches beyond itself");
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const count = readSync(this.#fd, bytes, done, length - done, this.#offset + at + done);
      if (count === 0) throw damagedCheckpoint(this.#path, "it ends inside of an item");
      done += count;
    }
    return bytes;
  }
}

/** Size and place of an entry; those of 4 GiB and more stand in an extra field. */
function wideSizes(
  bytes: number,
  header: number,
  extra: Buffer,
): { readonly bytes: number; readonly header: number } {
  let [size, place] = [bytes, header];
  for (let at = 0; at + 4 <= extra.length; ) {
    const [kind, length] = [extra.readUInt16LE(at), extra.readUInt16LE(at + 2)];
    if (kind === 1) {
      let field = at + 4;
      const next = () => {
        const value =
          field + 8 <= extra.length ? Number(extra.readBigUInt64LE(field)) : Number.POSITIVE_INFINITY;
        field += 8;
        return value;
      };
      if (bytes === 0xffffffff) size = next();
      // The size of the compressed entry comes between them, and is the same if nothing is compressed.
      if (bytes === 0xffffffff) next();
      if (header === 0xffffffff) place = next();
    }
    at += 4 + length;
  }
  return { bytes: size, header: place };
}

const maxTail = 64 * 1024;
const maxDirectory = 2 ** 20;

/** `TB_CHECKPOINT`, naming the file. */
export function damagedCheckpoint(
  path: string,
  what: string,
  details: Readonly<Record<string, unknown>> = {},
): TensorBusError {
  return new TensorBusError("TB_CHECKPOINT", `${path}: ${what}`, { details: { path, ...details } });
}
