import type { Socket } from "node:net";
import {
  i64,
  magic,
  notReady,
  opcodes,
  type Reading,
  readCount,
  readI64,
  readKey,
  readKeys,
  readPayload,
  readU8,
  readU32,
  ready,
  stopWaiting,
  u64,
  WireError,
  WireReader,
  waitCancelled,
  wireLimits,
} from "./tcp-protocol.ts";
import { overheadBytes, type StoreTable, type Waiter } from "./tcp-table.ts";

/** Answers are handed to the socket until it holds this much; then its reader is waited for. */
const outputHighWaterBytes = 1024 * 1024;
/** Small parts of an answer are joined up to about this much before they are written. */
const joinBytes = 64 * 1024;

/** What a session asks of the server around it. */
export interface SessionHost {
  readonly table: StoreTable;
  /** The most bytes of one request. */
  readonly maxRequestBytes: number;
  /** The session holds `delta` more bytes (or fewer); throws if the server as a whole then holds too many. */
  readonly account: (delta: number) => void;
}

/** A request, read whole: doing it answers at once (or not at all). */
type Request = () => void;

/**
 * One client's connection to the server: reads requests, does them in order, and writes answers no faster than they are
 * read. What breaks the protocol closes the connection, as torch's server does.
 */
export class ServerSession {
  readonly #socket: Socket;
  readonly #host: SessionHost;
  readonly #reader = new WireReader();
  #validated = false;
  #waiter: Waiter | undefined;
  /** Answers that the socket has no room for yet. */
  #output: Iterator<Uint8Array> | undefined;
  /** What the parked wait takes, as accounted when it was parked. */
  #parkedBytes = 0;
  #accounted = 0;

  constructor(socket: Socket, host: SessionHost) {
    this.#socket = socket;
    this.#host = host;
    socket.on("data", (chunk: Buffer) => {
      this.#reader.push(chunk);
      this.#work();
    });
    socket.on("drain", () => this.#work());
    socket.on("close", () => {
      this.#unpark();
      this.#account(0);
    });
    // The reason stands in whatever closed it; a client's own failures are its own business.
    socket.on("error", () => {});
  }

  get validated(): boolean {
    return this.#validated;
  }

  /** Does what has arrived, as far as the reader of the answers keeps up. */
  #work(): void {
    try {
      while (this.#flush()) {
        const request = this.#reader.next(() => this.#request());
        if (request === undefined) break;
        request.value();
      }
      // Reading stops with the answers: what a client may make the server hold is what it has sent.
      if (this.#output === undefined) this.#socket.resume();
      else this.#socket.pause();
      if (this.#reader.heldBytes > this.#host.maxRequestBytes + joinBytes)
        throw new WireError("a request too large");
      this.#account(this.#reader.heldBytes + this.#parkedBytes);
    } catch (error) {
      this.#socket.destroy(error as Error);
    }
  }

  *#request(): Reading<Request> {
    const opcode = yield* readU8();
    if (!this.#validated) return yield* this.#validate(opcode);
    const read = this.#requests[opcode];
    if (read === undefined) throw new WireError(`opcode ${opcode}`);
    return yield* read();
  }

  *#validate(opcode: number): Reading<Request> {
    if (opcode !== opcodes.validate || (yield* readU32()) !== magic)
      throw new WireError("no TCPStore client");
    return () => {
      this.#validated = true;
    };
  }

  /** How each request is read, and what it does. VALIDATE comes once. */
  readonly #requests: Readonly<Record<number, () => Reading<Request>>> = {
    [opcodes.set]: () => this.#keyAndValue((key, value) => this.#table.set(key, value)),
    [opcodes.append]: () => this.#keyAndValue((key, value) => this.#table.append(key, value)),
    [opcodes.queuePush]: () => this.#keyAndValue((key, value) => this.#table.pushQueue(key, value)),
    [opcodes.compareSet]: () => this.#compareSet(),
    [opcodes.get]: () => this.#key((key) => this.#answer(payloads([this.#table.get(key)]))),
    [opcodes.add]: () => this.#keyAndNumber((key, delta) => this.#answer([i64(this.#table.add(key, delta))])),
    [opcodes.deleteKey]: () => this.#key((key) => this.#answer([i64(this.#table.delete(key) ? 1 : 0)])),
    [opcodes.queueLen]: () => this.#key((key) => this.#answer([i64(this.#table.queueLength(key))])),
    [opcodes.queuePop]: () => this.#key((key) => this.#popQueue(key)),
    [opcodes.check]: () => this.#keys((keys) => this.#check(keys)),
    [opcodes.wait]: () => this.#keys((keys) => this.#wait(keys.filter((key) => !this.#table.has(key)))),
    [opcodes.multiGet]: () =>
      this.#keys((keys) => this.#answer(payloads(keys.map((key) => this.#table.get(key))))),
    [opcodes.multiSet]: () => this.#multiSet(),
    [opcodes.getNumKeys]: () => nothingMore(() => this.#answer([i64(this.#table.size)])),
    [opcodes.listKeys]: () => nothingMore(() => this.#answer(strings(this.#table.keys()))),
    [opcodes.cancelWait]: () => nothingMore(() => this.#cancelWait()),
    [opcodes.ping]: () => this.#ping(),
    [opcodes.barrier]: () => this.#keyAndNumber((key, worldSize) => this.#barrier(key, worldSize)),
  };

  get #table(): StoreTable {
    return this.#host.table;
  }

  // Reading: a request's fields in the order of the wire.

  *#key(act: (key: string) => void): Reading<Request> {
    const key = yield* readKey();
    return () => act(key);
  }

  *#keys(act: (keys: readonly string[]) => void): Reading<Request> {
    const keys = yield* readKeys();
    return () => act(keys);
  }

  *#keyAndValue(act: (key: string, value: Buffer) => void): Reading<Request> {
    const key = yield* readKey();
    const value = yield* readPayload();
    return () => act(key, value);
  }

  *#keyAndNumber(act: (key: string, number: bigint) => void): Reading<Request> {
    const key = yield* readKey();
    const number = yield* readI64();
    return () => act(key, number);
  }

  *#compareSet(): Reading<Request> {
    const key = yield* readKey();
    const expected = yield* readPayload();
    const desired = yield* readPayload();
    return () => this.#answer(payloads([this.#table.compareSet(key, expected, desired)]));
  }

  *#multiSet(): Reading<Request> {
    const count = yield* readCount(wireLimits.keys, "a number of keys");
    const entries: [string, Buffer][] = [];
    for (let index = 0; index < count; index += 1) entries.push([yield* readKey(), yield* readPayload()]);
    return () => {
      for (const [key, value] of entries) this.#table.set(key, value);
    };
  }

  *#ping(): Reading<Request> {
    const nonce = yield 4;
    return () => this.#answer([Buffer.from(nonce)]);
  }

  // Doing

  #check(keys: readonly string[]): void {
    this.#answer([Buffer.of(keys.every((key) => this.#table.has(key)) ? ready : notReady)]);
  }

  #popQueue(key: string): void {
    const { length, value } = this.#table.popQueue(key);
    this.#answer(value === undefined ? [i64(0)] : [i64(length), ...payloads([value])]);
  }

  #barrier(key: string, worldSize: bigint): void {
    if (this.#table.arrive(key, worldSize)) this.#answer([Buffer.of(stopWaiting)]);
    else this.#park([key]);
  }

  #wait(missing: readonly string[]): void {
    if (missing.length === 0) this.#answer([Buffer.of(stopWaiting)]);
    else this.#park(missing);
  }

  #park(missing: readonly string[]): void {
    if (this.#waiter !== undefined) throw new WireError("a second wait on one connection");
    const wake = () => {
      this.#waiter = undefined;
      this.#parkedBytes = 0;
      this.#answer([Buffer.of(stopWaiting)]);
    };
    this.#waiter = { missing: new Set(missing), wake };
    this.#parkedBytes = missing.reduce((bytes, key) => bytes + key.length + overheadBytes, 0);
    this.#table.park(this.#waiter);
  }

  #cancelWait(): void {
    this.#unpark();
    this.#answer([Buffer.of(waitCancelled)]);
  }

  #unpark(): void {
    if (this.#waiter !== undefined) this.#table.unpark(this.#waiter);
    this.#waiter = undefined;
    this.#parkedBytes = 0;
  }

  #account(bytes: number): void {
    const delta = bytes - this.#accounted;
    this.#accounted = bytes;
    this.#host.account(delta);
  }

  // Answering

  #answer(parts: Iterable<Uint8Array>): void {
    this.#output = this.#output === undefined ? joined(parts) : chained(this.#output, joined(parts));
    this.#flush();
  }

  /** Writes what there is to answer; false while the reader has to catch up first. */
  #flush(): boolean {
    while (this.#output !== undefined) {
      if (this.#socket.destroyed || this.#socket.writableLength > outputHighWaterBytes) return false;
      const part = this.#output.next();
      if (part.done) this.#output = undefined;
      else this.#socket.write(part.value);
    }
    return true;
  }
}

// biome-ignore lint/correctness/useYield: a request of nothing but its opcode needs no more bytes
function* nothingMore(act: Request): Reading<Request> {
  return act;
}

function* payloads(values: readonly (Buffer | undefined)[]): Generator<Uint8Array> {
  for (const value of values) {
    // A key that does not exist reads as an empty payload.
    yield u64(value?.length ?? 0);
    if (value !== undefined) yield value;
  }
}

function* strings(keys: readonly string[]): Generator<Uint8Array> {
  yield u64(keys.length);
  yield* payloads(keys.map((key) => Buffer.from(key, "latin1")));
}

/** The same bytes in fewer parts. Parts of 64 KiB and more are passed on as they are, uncopied. */
function* joined(parts: Iterable<Uint8Array>): Generator<Uint8Array> {
  let small: Uint8Array[] = [];
  let bytes = 0;
  for (const part of parts) {
    if (part.length >= joinBytes || bytes + part.length > joinBytes) {
      if (bytes > 0) yield Buffer.concat(small);
      small = [];
      bytes = 0;
    }
    if (part.length >= joinBytes) yield part;
    else {
      small.push(part);
      bytes += part.length;
    }
  }
  if (bytes > 0) yield Buffer.concat(small);
}

function* chained(first: Iterator<Uint8Array>, second: Iterable<Uint8Array>): Generator<Uint8Array> {
  for (let part = first.next(); !part.done; part = first.next()) yield part.value;
  yield* second;
}
