import { TensorBusError } from "./errors.ts";

/** What ends a wait early: the options that everything that waits takes. */
export interface DeadlineOptions {
  readonly signal?: AbortSignal;
  /** Milliseconds until `TB_TIMEOUT`; default 30,000. */
  readonly timeoutMs?: number;
}

const defaultTimeoutMs = 30_000;
/** The longest that a timer of Node.js can run: about 24 days. */
const longestTimerMs = 2 ** 31 - 1;

/** A point in time that several waits of one operation share. */
export class Deadline {
  readonly signal: AbortSignal | undefined;
  readonly #end: number;

  constructor(options: DeadlineOptions = {}) {
    const timeoutMs = options.timeoutMs ?? defaultTimeoutMs;
    if (typeof timeoutMs !== "number" || !(timeoutMs >= 0)) {
      throw new TypeError(`timeoutMs must be a number of milliseconds, not ${timeoutMs}`);
    }
    this.signal = options.signal;
    this.#end = performance.now() + timeoutMs;
  }

  /** Milliseconds that are left; 0 once it has passed. */
  get remainingMs(): number {
    return Math.max(0, Math.min(this.#end - performance.now(), longestTimerMs));
  }

  /** What is left, as native code takes it: at least 1. */
  get remainingNs(): bigint {
    return BigInt(Math.max(1, Math.round(this.remainingMs * 1e6)));
  }

  /** The options that hand what is left on to another call. */
  get rest(): DeadlineOptions {
    return { timeoutMs: this.remainingMs, ...(this.signal === undefined ? {} : { signal: this.signal }) };
  }
}

/** `TB_CANCELLED`, with the signal's reason as its cause. */
export function cancelledError(what: string, signal: AbortSignal): TensorBusError {
  return new TensorBusError("TB_CANCELLED", `${what} was cancelled`, { cause: signal.reason });
}

/**
 * Calls `start` with the functions that settle the promise; what `start` returns is called once it is settled, however
 * that came. `TB_TIMEOUT` at the deadline, `TB_CANCELLED` when the signal fires.
 */
export function waitUntil<T>(
  what: string,
  deadline: Deadline,
  start: (resolve: (value: T) => void, reject: (error: unknown) => void) => () => void,
): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const { signal } = deadline;
    if (signal?.aborted) {
      reject(cancelledError(what, signal));
      return;
    }
    const timeoutMs = deadline.remainingMs;
    let settled = false;
    let stop: (() => void) | undefined;
    const settle = <V>(then: (value: V) => void, value: V) => {
      if (settled) return;
      settled = true;
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      stop?.();
      then(value);
    };
    const onAbort = () => settle(reject, cancelledError(what, signal!));
    const onTimeout = () => {
      const error = new TensorBusError("TB_TIMEOUT", `${what} took longer than ${Math.round(timeoutMs)} ms`, {
        details: { timeoutMs },
      });
      settle(reject, error);
    };
    const timer = setTimeout(onTimeout, timeoutMs);
    signal?.addEventListener("abort", onAbort, { once: true });
    stop = start(
      (value) => settle(resolve, value),
      (error) => settle(reject, error),
    );
    if (settled) stop();
  });
}
