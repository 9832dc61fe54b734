/**
 * Names of semaphores, the semaphore that a client's caller waits on, and the wake semaphores between processes. A
 * command's semaphore is a thing of its client's process, completed when the result has come; what crosses processes is
 * one wake semaphore each, so that a command costs no file.
 */
import { randomBytes } from "node:crypto";
import { Deadline, type DeadlineOptions, waitUntil } from "../../deadline.ts";
import { nativeBus } from "../../ffi/bus.ts";
import type { EventPort } from "./event-port.ts";
import { privateName } from "./names.ts";

/** NAME_MAX less the "sem." that Linux puts before it, and with the slash that it takes away: sem_overview(7). */
const maxNameBytes = 252;
const uniquePrefix = randomBytes(8).toString("hex");
let uniqueCount = 0;

function replaceSeparators(text: string): string {
  // Names are C strings in a file system: what neither holds, and half characters, go with / and :.
  return text.replace(/[/:\p{Cc}\p{Cs}\p{Z}]/gu, "_");
}

/** The longest beginning of `text` that takes at most `bytes` bytes of UTF-8 and splits no character. */
function cutToBytes(text: string, bytes: number): string {
  const encoded = Buffer.from(text);
  if (encoded.length <= bytes) return text;
  let end = bytes;
  while (end > 0 && (encoded[end]! & 0xc0) === 0x80) end--;
  return encoded.toString("utf8", 0, end);
}

/**
 * `/command_<type>_<context>_<pid>_<unique>`: valid as the name of a POSIX semaphore whatever the type and context are,
 * and never given twice, in this process, its threads or another. `/`, `:`, blanks and control characters of both become
 * `_`; what is too long is cut at a character.
 */
export function generateSemaphoreName(commandType: string, contextId: string | number | bigint): string {
  uniqueCount += 1;
  const tail = `_${process.pid}_${uniquePrefix}${uniqueCount.toString(16)}`;
  const room = maxNameBytes - tail.length;
  const head = `/command_${replaceSeparators(commandType)}_${replaceSeparators(String(contextId))}`;
  return cutToBytes(head, room) + tail;
}

interface SemaphoreController<T> {
  readonly semaphore: Semaphore<T>;
  /** The first of the two counts; later calls do nothing. */
  complete(value: T): void;
  fail(error: unknown): void;
}

/**
 * Stands for something under way. It completes or fails once; each wait after that answers at once, and a wait that ends
 * by its own deadline or signal leaves it as it is.
 */
export class Semaphore<T = void> {
  readonly name: string;
  readonly #outcome: Promise<T>;
  #state: "pending" | "completed" | "failed" = "pending";

  private constructor(name: string, outcome: Promise<T>) {
    this.name = name;
    this.#outcome = outcome;
    outcome.then(
      () => {
        this.#state = "completed";
      },
      // A failure that nobody waits for is nobody's unhandled rejection: the command's result holds it.
      () => {
        this.#state = "failed";
      },
    );
  }

  /** `generateSemaphoreName` makes its names. */
  static create<T = void>(name: string): SemaphoreController<T> {
    let complete!: (value: T) => void;
    let fail!: (error: unknown) => void;
    const outcome = new Promise<T>((resolve, reject) => {
      complete = resolve;
      fail = reject;
    });
    return { semaphore: new Semaphore<T>(name, outcome), complete, fail };
  }

  get state(): "pending" | "completed" | "failed" {
    return this.#state;
  }

  /** Resolves when it completes; rejects with what it failed with, or `TB_TIMEOUT`, `TB_CANCELLED`. */
  wait(options: DeadlineOptions = {}): Promise<T> {
    return waitUntil(`semaphore ${this.name}`, new Deadline(options), (resolve, reject) => {
      this.#outcome.then(resolve, reject);
      return () => {};
    });
  }
}

/** Another process's wake semaphore. */
export class Bell implements Disposable {
  readonly name: string;
  #handle: bigint | undefined;

  constructor(name: string, handle: bigint) {
    this.name = name;
    this.#handle = handle;
  }

  /** Wakes the process; never blocks. */
  ring(): void {
    if (this.#handle !== undefined) nativeBus.tb_semaphore_post(this.#handle);
  }

  close(): void {
    const handle = this.#handle;
    this.#handle = undefined;
    if (handle !== undefined) nativeBus.tb_semaphore_close(handle);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** `TB_FOREIGN` unless it belongs to this user alone; `TB_SYSTEM` with `details.errno` 2 if there is none. */
export function openBell(name: string): Bell {
  return new Bell(name, nativeBus.tb_semaphore_open(name));
}

/** Removes a dead process's name; false if there was none. */
export function unlinkSemaphore(name: string): boolean {
  return nativeBus.tb_semaphore_unlink(name) === 1;
}

interface WakerOptions {
  /** Microseconds that the thread looks for the next wake-up before it sleeps, while they come in quick succession. */
  readonly spinUs?: number;
}

/**
 * This process's own wake semaphore, and the one native thread that waits on it. A wake-up says only that something may
 * have happened; several may come as one.
 */
export class Waker implements Disposable {
  readonly name: string;
  readonly #port: EventPort;
  readonly #semaphore: bigint;
  readonly #waiter: bigint;
  readonly #token: bigint;
  readonly #listeners = new Set<() => void>();
  #closed = false;

  constructor(port: EventPort, options: WakerOptions = {}) {
    this.name = privateName();
    this.#port = port;
    this.#semaphore = nativeBus.tb_semaphore_create(this.name);
    this.#token = port.listen(() => {
      for (const listener of [...this.#listeners]) listener();
    });
    const spinNs = BigInt(Math.round((options.spinUs ?? defaultSpinUs) * 1000));
    try {
      this.#waiter = nativeBus.tb_waiter_start(port.handle, this.#semaphore, this.#token, spinNs);
    } catch (error) {
      port.unlisten(this.#token);
      nativeBus.tb_semaphore_close(this.#semaphore);
      unlinkSemaphore(this.name);
      throw error;
    }
  }

  /** Calls `listener` at every wake-up, until the returned function is called. */
  onWake(listener: () => void): () => void {
    const own = () => listener();
    this.#listeners.add(own);
    return () => this.#listeners.delete(own);
  }

  /** Ends the thread and removes the name. A second call does nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    nativeBus.tb_waiter_stop(this.#waiter);
    this.#port.unlisten(this.#token);
    nativeBus.tb_semaphore_close(this.#semaphore);
    unlinkSemaphore(this.name);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

const defaultSpinUs = 0;

export function openWaker(port: EventPort, options: WakerOptions = {}): Waker {
  return new Waker(port, options);
}
