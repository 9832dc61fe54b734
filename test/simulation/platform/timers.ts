/** In place of `node:timers/promises`. */
import { platform } from "./current.ts";

export function setTimeout<T>(
  ms = 1,
  value?: T,
  { signal }: { readonly signal?: AbortSignal } = {},
): Promise<T | undefined> {
  return wait(Math.max(1, ms), value, signal);
}

export function setImmediate<T>(
  value?: T,
  { signal }: { readonly signal?: AbortSignal } = {},
): Promise<T | undefined> {
  return wait(0, value, signal);
}

function wait<T>(ms: number, value: T | undefined, signal: AbortSignal | undefined): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const aborted = () => reject(new DOMException("The operation was aborted", "AbortError"));
    if (signal?.aborted) {
      aborted();
      return;
    }
    const onAbort = () => {
      timer.cancel();
      aborted();
    };
    const timer = platform().scheduler.after(ms, () => {
      signal?.removeEventListener("abort", onAbort);
      resolve(value);
    });
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}
