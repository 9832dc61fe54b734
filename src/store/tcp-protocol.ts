/**
 * The wire protocol of PyTorch's TCPStore (its libuv server), as `docs/stores.md` writes it down: opcodes, limits, the
 * frames that a client sends, and how frames and answers are read. Integers are little-endian; a string or a payload is a
 * u64 length and that many bytes.
 */

export const opcodes = {
  validate: 0,
  set: 1,
  compareSet: 2,
  get: 3,
  add: 4,
  check: 5,
  wait: 6,
  getNumKeys: 7,
  deleteKey: 8,
  append: 9,
  multiGet: 10,
  multiSet: 11,
  cancelWait: 12,
  ping: 13,
  queuePush: 14,
  queuePop: 15,
  queueLen: 16,
  listKeys: 17,
  barrier: 18,
} as const;

export const wireLimits = { keyBytes: 8 * 1024, valueBytes: 8 * 1024 * 1024, keys: 128 * 1024 } as const;

export const magic = 0x3c85f7ce;
/** Answers of CHECK, and of WAIT and BARRIER. */
export const ready = 0;
export const notReady = 1;
export const stopWaiting = 0;
export const waitCancelled = 1;

/** The other end broke the protocol; its connection is of no further use. */
export class WireError extends Error {
  override readonly name = "WireError";
}

// What goes out.

export function u64(value: number | bigint): Buffer {
  const buffer = Buffer.allocUnsafe(8);
  buffer.writeBigUInt64LE(BigInt(value));
  return buffer;
}

export function i64(value: number | bigint): Buffer {
  const buffer = Buffer.allocUnsafe(8);
  buffer.writeBigInt64LE(BigInt(value));
  return buffer;
}

function u32(value: number): Buffer {
  const buffer = Buffer.allocUnsafe(4);
  buffer.writeUInt32LE(value);
  return buffer;
}

/** A string or a payload: its length and its bytes. */
function counted(bytes: Uint8Array): Buffer[] {
  return [u64(bytes.length), bytes as Buffer];
}

function list(keys: readonly Uint8Array[]): Buffer[] {
  return [u64(keys.length), ...keys.flatMap(counted)];
}

function frame(opcode: number, ...fields: readonly Uint8Array[][]): Buffer {
  // One copy, so that a caller who writes to its value afterwards does not change what is sent.
  return Buffer.concat([Buffer.of(opcode), ...fields.flat()]);
}

/** The frames of a client. Keys are bytes as they stand on the wire. */
export const frames = {
  validate: () => frame(opcodes.validate, [u32(magic)]),
  set: (key: Uint8Array, value: Uint8Array) => frame(opcodes.set, counted(key), counted(value)),
  compareSet: (key: Uint8Array, expected: Uint8Array, desired: Uint8Array) =>
    frame(opcodes.compareSet, counted(key), counted(expected), counted(desired)),
  get: (key: Uint8Array) => frame(opcodes.get, counted(key)),
  add: (key: Uint8Array, delta: bigint) => frame(opcodes.add, counted(key), [i64(delta)]),
  check: (keys: readonly Uint8Array[]) => frame(opcodes.check, list(keys)),
  wait: (keys: readonly Uint8Array[]) => frame(opcodes.wait, list(keys)),
  deleteKey: (key: Uint8Array) => frame(opcodes.deleteKey, counted(key)),
  cancelWait: () => frame(opcodes.cancelWait),
  ping: (nonce: number) => frame(opcodes.ping, [u32(nonce)]),
} as const;

// What comes in.

/** Reads something piece by piece: yields how many bytes it needs next and gets exactly those. */
export type Reading<T> = Generator<number, T, Buffer>;

export function* readU8(): Reading<number> {
  return (yield 1)[0]!;
}

export function* readU32(): Reading<number> {
  return (yield 4).readUInt32LE(0);
}

export function* readI64(): Reading<bigint> {
  return (yield 8).readBigInt64LE(0);
}

/** A count or length of at most `limit`, checked before anything is taken for it. */
export function* readCount(limit: number, what: string): Reading<number> {
  const count = (yield 8).readBigUInt64LE(0);
  if (count > BigInt(limit)) throw new WireError(`${what} is ${count}, more than ${limit}`);
  return Number(count);
}

/** The bytes of a key as text of one character a byte: any bytes are a key, and text can be looked up in a map. */
export function* readKey(): Reading<string> {
  const length = yield* readCount(wireLimits.keyBytes, "a key length");
  return (yield length).toString("latin1");
}

export function* readPayload(): Reading<Buffer> {
  return yield* readBytes(yield* readCount(wireLimits.valueBytes, "a payload length"));
}

function* readBytes(length: number): Reading<Buffer> {
  const bytes = yield length;
  // A copy of its own: a view would keep the whole chunk that it arrived in.
  return bytes.buffer.byteLength === bytes.length ? bytes : Buffer.from(bytes);
}

/** A value that is longer than any may be, which was read and dropped: whoever can append to a value can make it so. */
export const tooLong = Symbol("tooLong");
const mostDroppedBytes = 2 ** 30;
const droppedAtOnce = 64 * 1024;

/** A payload that somebody else has stored. */
export function* readValue(): Reading<Buffer | typeof tooLong> {
  const length = yield* readCount(mostDroppedBytes, "a payload length");
  if (length <= wireLimits.valueBytes) return yield* readBytes(length);
  for (let left = length; left > 0; left -= droppedAtOnce) yield Math.min(left, droppedAtOnce);
  return tooLong;
}

const chunkOverheadBytes = 256;

/** Chunks as they came from a socket, taken off again in pieces of any size. */
class ChunkQueue {
  readonly #chunks: Buffer[] = [];
  #length = 0;

  get length(): number {
    return this.#length;
  }

  get chunks(): number {
    return this.#chunks.length;
  }

  push(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  /** The next `bytes` bytes, of which there are as many. A view if they lie in one chunk. */
  take(bytes: number): Buffer {
    this.#length -= bytes;
    const pieces: Buffer[] = [];
    let missing = bytes;
    let used = 0;
    while (missing > 0) {
      const chunk = this.#chunks[used]!;
      pieces.push(chunk.subarray(0, missing));
      if (chunk.length > missing) {
        this.#chunks[used] = chunk.subarray(missing);
        break;
      }
      missing -= chunk.length;
      used += 1;
    }
    if (used > 0) this.#chunks.splice(0, used);
    return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces, bytes);
  }
}

/**
 * Runs readings over chunks, each byte looked at once however the chunks are cut. What a reading throws (`WireError`)
 * comes out of `next`.
 */
export class WireReader {
  readonly #queue = new ChunkQueue();
  #reading: Reading<unknown> | undefined;
  #needed = 0;
  #consumed = 0;

  push(chunk: Buffer): void {
    this.#queue.push(chunk);
  }

  /** The bytes that are held: what has arrived, and what the reading under way has been given so far. */
  get heldBytes(): number {
    return this.#queue.length + this.#consumed;
  }

  /** What the pieces take in which they came, beside their bytes: a peer may send single ones. */
  get overheadBytes(): number {
    return this.#queue.chunks * chunkOverheadBytes;
  }

  /** True if bytes arrived that no reading asked for. */
  get hasMore(): boolean {
    return this.#queue.length > 0;
  }

  /**
   * The result of `begin()`'s reading, or `undefined` until more has arrived; the same reading goes on in the next call,
   * so `begin` must not change before it has ended.
   */
  next<T>(begin: () => Reading<T>): { value: T } | undefined {
    if (this.#reading === undefined) {
      this.#reading = begin();
      this.#consumed = 0;
      const first = this.#reading.next();
      if (first.done) return this.#done<T>(first.value);
      this.#needed = first.value;
    }
    while (this.#queue.length >= this.#needed) {
      this.#consumed += this.#needed;
      const step = this.#reading.next(this.#queue.take(this.#needed));
      if (step.done) return this.#done<T>(step.value);
      this.#needed = step.value;
    }
    return undefined;
  }

  #done<T>(value: unknown): { value: T } {
    this.#reading = undefined;
    this.#consumed = 0;
    return { value: value as T };
  }
}
