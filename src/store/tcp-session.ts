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
import { awaitedKeyBytes, type StoreTable, type Waiter } from "./tcp-table.ts";
import { bytesOf, LargeValue, type StoredValue, storedValue } from "./tcp-value.ts";
import type { Turns, Worker } from "./turns.ts";

/** Answers are handed to the socket until it holds this much; then its reader is waited for. */
const outputHighWaterBytes = 256 * 1024;
/** Small parts of an answer are joined up to about this much before they are written. */
const joinBytes = 64 * 1024;
/** What may have arrived behind a request before the socket stops. */
const aheadBytes = 256 * 1024;
/** What each key of a list takes beside its text while the list is read. */
const listedKeyBytes = 64;
/** Entries of a list that are handled in one step. */
const stepEntries = 256;

/** What a session asks of the server around it. */
interface SessionHost {
  readonly table: StoreTable;
  readonly turns: Turns;
  /** The most bytes of one request, and of the keys of a list that is answered. */
  readonly maxRequestBytes: number;
  /** The session holds `delta` more bytes (or fewer); throws if the server as a whole then holds too many. */
  readonly account: (delta: number) => void;
  /** The client has shown that it is one. */
  readonly validated: (session: ServerSession) => void;
}

/** What is left to do of a request that is too much for one go. */
type Steps = Generator<void, void>;

/** A wait, until all its keys have been left. */
interface Parked extends Waiter {
  isOver: boolean;
}

/** A request, read whole: doing it answers at once, or not at all, or in steps. */
type Request = () => Steps | undefined;

/**
 * One client's connection to the server: reads requests, does them in order, and writes answers no faster than they are
 * read. What breaks the protocol closes the connection, as torch's server does.
 */
export class ServerSession implements Worker {
  readonly #socket: Socket;
  readonly #host: SessionHost;
  readonly #reader = new WireReader();
  #validated = false;
  #waiter: Parked | undefined;
  #steps: Steps | undefined;
  /** The rest of a long answer. */
  #output: Iterator<Uint8Array | LargeValue> | undefined;
  /** What the request that is read takes beside its bytes, what the parked wait takes, and what `output` does. */
  #listedBytes = 0;
  #parkedBytes = 0;
  #outputBytes = 0;
  /** Values that are on their way out: their memory is the table's. */
  readonly #sending = new Set<() => void>();
  #sendingBytes = 0;
  #accounted = 0;

  constructor(socket: Socket, host: SessionHost) {
    this.#socket = socket;
    this.#host = host;
    socket.on("data", (chunk: Buffer) => {
      this.#reader.push(chunk);
      host.turns.offer(this);
    });
    socket.on("drain", () => host.turns.offer(this));
    socket.on("close", () => this.#end());
    // The reason stands in whatever closed it; a client's own failures are its own business.
    socket.on("error", () => {});
  }

  /** Does what has arrived, as far as there is time for it and the reader of the answers keeps up. */
  work(until: number): boolean {
    if (this.#socket.destroyed) return false;
    let state: "done" | "blocked" | "more" = "done";
    this.#socket.cork();
    try {
      do state = this.#step();
      while (state === "more" && performance.now() < until);
      const bytes = this.#reader.heldBytes;
      if (bytes > this.#host.maxRequestBytes + aheadBytes) throw new WireError("a request is too large");
    } catch (error) {
      this.#socket.destroy(error as Error);
    }
    this.#socket.uncork();
    if (this.#socket.destroyed) return false;
    // Reading stops with the answers: what a client may make the server hold is what it has sent.
    if (state === "done") this.#socket.resume();
    else this.#socket.pause();
    try {
      this.#account();
    } catch (error) {
      this.#socket.destroy(error as Error);
      return false;
    }
    return state === "more";
  }

  /** The next piece of work. */
  #step(): "done" | "blocked" | "more" {
    if (this.#socket.writableLength > outputHighWaterBytes) return "blocked";
    if (this.#output !== undefined) {
      const part = this.#output.next();
      if (!part.done) this.#send(part.value);
      else this.#endOutput();
      return "more";
    }
    if (this.#steps !== undefined) {
      if (this.#steps.next().done) this.#steps = undefined;
      return "more";
    }
    const request = this.#reader.next(() => this.#request());
    if (request === undefined) return "done";
    this.#listedBytes = 0;
    this.#steps = request.value();
    return "more";
  }

  *#request(): Reading<Request> {
    const opcode = yield* readU8();
    if (!this.#validated) return yield* this.#validate(opcode);
    const read = this.#requests[opcode];
    if (read === undefined) throw new WireError(`there is no opcode ${opcode}`);
    return yield* read();
  }

  *#validate(opcode: number): Reading<Request> {
    if (opcode !== opcodes.validate || (yield* readU32()) !== magic)
      throw new WireError("what connected is not a TCPStore client");
    return atOnce(() => {
      this.#validated = true;
      this.#host.validated(this);
    });
  }

  /** How each request is read, and what it does. VALIDATE comes once. */
  readonly #requests: Readonly<Record<number, () => Reading<Request>>> = {
    [opcodes.set]: () => this.#keyAndValue((key, value) => this.#table.set(key, storedValue(value))),
    [opcodes.append]: () => this.#keyAndValue((key, value) => this.#table.append(key, value)),
    [opcodes.queuePush]: () => this.#keyAndValue((key, value) => this.#table.pushQueue(key, value)),
    [opcodes.compareSet]: () => this.#compareSet(),
    [opcodes.get]: () => this.#key((key) => this.#answerValue(this.#table.use(key))),
    [opcodes.add]: () => this.#keyAndNumber((key, delta) => this.#add(key, delta)),
    [opcodes.deleteKey]: () => this.#key((key) => this.#send(i64(this.#table.delete(key) ? 1 : 0))),
    [opcodes.queueLen]: () => this.#key((key) => this.#send(i64(this.#table.queueLength(key)))),
    [opcodes.queuePop]: () => this.#key((key) => this.#popQueue(key)),
    [opcodes.check]: () => this.#keys((keys) => this.#check(keys)),
    [opcodes.wait]: () => this.#keys((keys) => this.#wait(keys)),
    [opcodes.multiGet]: () => this.#keys((keys) => this.#multiGet(keys)),
    [opcodes.multiSet]: () => this.#multiSet(),
    [opcodes.getNumKeys]: () => nothingMore(atOnce(() => this.#send(i64(this.#table.size)))),
    [opcodes.listKeys]: () => nothingMore(atOnce(() => this.#listKeys())),
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
    return atOnce(() => act(key));
  }

  *#keys(act: (keys: readonly string[]) => Steps | undefined): Reading<Request> {
    const count = yield* readCount(wireLimits.keys, "a number of keys");
    const keys: string[] = [];
    for (let index = 0; index < count; index += 1) {
      keys.push(yield* readKey());
      this.#listedBytes += listedKeyBytes;
    }
    return () => act(keys);
  }

  *#keyAndValue(act: (key: string, value: Buffer) => void): Reading<Request> {
    const key = yield* readKey();
    const value = yield* readPayload();
    return atOnce(() => act(key, value));
  }

  *#keyAndNumber(act: (key: string, number: bigint) => Steps | undefined): Reading<Request> {
    const key = yield* readKey();
    const number = yield* readI64();
    return () => act(key, number);
  }

  *#compareSet(): Reading<Request> {
    const key = yield* readKey();
    const expected = yield* readPayload();
    const desired = yield* readPayload();
    return atOnce(() => this.#answerValue(this.#table.compareSet(key, expected, desired)));
  }

  *#multiSet(): Reading<Request> {
    const count = yield* readCount(wireLimits.keys, "a number of keys");
    const entries: [string, StoredValue][] = [];
    for (let index = 0; index < count; index += 1) {
      entries.push([yield* readKey(), storedValue(yield* readPayload())]);
      this.#listedBytes += 2 * listedKeyBytes;
    }
    return () => inSteps(entries, ([key, value]) => this.#table.set(key, value));
  }

  *#ping(): Reading<Request> {
    const nonce = yield 4;
    return atOnce(() => this.#send(Buffer.from(nonce)));
  }

  // Doing

  #add(key: string, delta: bigint): undefined {
    this.#send(i64(this.#table.add(key, delta)));
  }

  *#check(keys: readonly string[]): Steps {
    let all = true;
    yield* inSteps(keys, (key) => {
      all &&= this.#table.has(key);
    });
    this.#send(Buffer.of(all ? ready : notReady));
  }

  #multiGet(keys: readonly string[]): undefined {
    this.#answerParts(this.#values(keys), 0);
  }

  #listKeys(): void {
    const keys = this.#table.keys(this.#host.maxRequestBytes);
    const bytes = keys.reduce((sum, key) => sum + key.length + listedKeyBytes, 0);
    this.#answerParts(strings(keys), bytes);
  }

  #popQueue(key: string): void {
    const { length, value } = this.#table.popQueue(key);
    this.#send(i64(length));
    if (value !== undefined) this.#answerValue(value);
  }

  #barrier(key: string, worldSize: bigint): Steps | undefined {
    // The counter is there already: it comes for those who wait once it has its last arrival.
    if (!this.#table.arrive(key, worldSize)) return this.#park([key], () => false);
    this.#send(Buffer.of(stopWaiting));
    return undefined;
  }

  #wait(keys: readonly string[]): Steps {
    return this.#park(keys, (key) => this.#table.has(key));
  }

  *#park(keys: readonly string[], isHere: (key: string) => boolean): Steps {
    if (this.#waiter !== undefined) throw new WireError("a connection may have only one wait at a time");
    let parking = true;
    const wake = () => {
      // More keys are to be parked, or it was taken back and the rest of its keys are to be left.
      if (parking || waiter.isOver) return;
      this.#waiter = undefined;
      this.#parkedBytes = 0;
      this.#send(Buffer.of(stopWaiting));
    };
    const waiter: Parked = { missing: new Set(), wake, isOver: false };
    this.#waiter = waiter;
    yield* inSteps(keys, (key) => {
      if (isHere(key) || waiter.missing.has(key)) return;
      waiter.missing.add(key);
      this.#parkedBytes += key.length + awaitedKeyBytes;
      this.#table.park(key, waiter);
    });
    parking = false;
    if (waiter.missing.size === 0) wake();
  }

  *#cancelWait(): Steps {
    yield* this.#unpark();
    this.#send(Buffer.of(waitCancelled));
  }

  /** Nothing wakes the wait any more, from now on; its keys are left one by one. */
  *#unpark(): Steps {
    const waiter = this.#waiter;
    if (waiter === undefined) return;
    waiter.isOver = true;
    yield* inSteps(waiter.missing, (key) => this.#table.unpark(key, waiter));
    this.#waiter = undefined;
    this.#parkedBytes = 0;
  }

  // Answering

  #send(part: Uint8Array | LargeValue): void {
    if (!(part instanceof LargeValue)) {
      this.#socket.write(part);
      return;
    }
    part.use();
    const bytes = part.bytes;
    const sent = () => {
      if (!this.#sending.delete(sent)) return;
      this.#sendingBytes -= bytes.length;
      this.#table.endUse(part);
    };
    this.#sending.add(sent);
    this.#sendingBytes += bytes.length;
    this.#socket.write(bytes, sent);
  }

  /** Answers with a value of which this is a use; a key that does not exist reads as an empty payload. */
  #answerValue(value: StoredValue | undefined): void {
    this.#send(u64(value?.length ?? 0));
    if (value === undefined) return;
    this.#send(value instanceof LargeValue ? value : bytesOf(value));
    this.#table.endUse(value);
  }

  /** Answers part by part; `bytes` is what the parts that are to come take meanwhile. */
  #answerParts(parts: Iterable<Uint8Array | LargeValue>, bytes: number): void {
    this.#output = joined(parts);
    this.#outputBytes = bytes;
  }

  #endOutput(): void {
    this.#output?.return?.();
    this.#output = undefined;
    this.#outputBytes = 0;
  }

  /** Each key's value as it stands when its turn has come. */
  *#values(keys: readonly string[]): Generator<Uint8Array | LargeValue> {
    for (const key of keys) {
      const value = this.#table.use(key);
      try {
        yield u64(value?.length ?? 0);
        if (value !== undefined) yield value instanceof LargeValue ? value : bytesOf(value);
      } finally {
        if (value !== undefined) this.#table.endUse(value);
      }
    }
  }

  // The end

  /** What is held: what came, what it takes to read it, who waits, and what waits to go out. */
  #account(): void {
    const arrived = this.#reader.heldBytes + this.#reader.overheadBytes + this.#listedBytes;
    const waiting = Math.max(0, this.#socket.writableLength - this.#sendingBytes) + this.#outputBytes;
    this.#accountFor(arrived + this.#parkedBytes + waiting);
  }

  #accountFor(bytes: number): void {
    const delta = bytes - this.#accounted;
    this.#accounted = bytes;
    this.#host.account(delta);
  }

  #end(): void {
    this.#host.turns.leave(this);
    this.#endOutput();
    this.#steps = undefined;
    for (const sent of [...this.#sending]) sent();
    this.#accountFor(this.#parkedBytes);
    const leaving = this.#unpark();
    this.#host.turns.offer({
      work: (until) => {
        const more = goOn(leaving, until);
        if (!more) this.#accountFor(0);
        return more;
      },
    });
  }
}

// biome-ignore lint/correctness/useYield: a request of nothing but its opcode needs no more bytes
function* nothingMore(request: Request): Reading<Request> {
  return request;
}

function atOnce(act: () => void): Request {
  return () => {
    act();
    return undefined;
  };
}

function* inSteps<T>(entries: Iterable<T>, act: (entry: T) => void): Generator<void, void> {
  let index = 0;
  for (const entry of entries) {
    if (index++ % stepEntries === stepEntries - 1) yield;
    act(entry);
  }
}

/** True if time is over before the steps are. */
function goOn(steps: Steps, until: number): boolean {
  do if (steps.next().done) return false;
  while (performance.now() < until);
  return true;
}

function* strings(keys: readonly string[]): Generator<Uint8Array> {
  yield u64(keys.length);
  for (const key of keys) {
    yield u64(key.length);
    yield Buffer.from(key, "latin1");
  }
}

/** The same bytes in fewer parts; values that have memory of their own are passed on as they are, uncopied. */
function* joined(parts: Iterable<Uint8Array | LargeValue>): Generator<Uint8Array | LargeValue> {
  let small: Uint8Array[] = [];
  let bytes = 0;
  for (const part of parts) {
    const large = part instanceof LargeValue;
    if (bytes > 0 && (large || bytes + part.length > joinBytes)) {
      yield Buffer.concat(small);
      small = [];
      bytes = 0;
    }
    if (large) yield part;
    else {
      small.push(part);
      bytes += part.length;
    }
  }
  if (bytes > 0) yield Buffer.concat(small);
}
