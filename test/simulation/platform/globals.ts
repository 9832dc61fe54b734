/** What bundled modules find in place of the globals of Node.js: see `../build.mjs`. */
import type { Timer } from "../world/scheduler.ts";
import { platform } from "./current.ts";

export { AbortController, AbortSignal } from "./abort.ts";

type Callback = (...values: unknown[]) => void;

export function setTimeout(callback: Callback, ms = 1, ...values: unknown[]): Timer {
  // Node.js takes less than a millisecond for one.
  return platform().scheduler.after(Math.max(1, ms), () => callback(...values));
}

export function clearTimeout(timer: Timer | undefined): void {
  timer?.cancel();
}

export function setInterval(callback: Callback, ms = 1, ...values: unknown[]): Timer {
  const { scheduler } = platform();
  let timer: Timer;
  const again = () => {
    timer = scheduler.after(Math.max(1, ms), () => {
      again();
      callback(...values);
    });
  };
  again();
  return { cancel: () => timer.cancel(), unref: () => {}, ref: () => {} };
}

export const clearInterval = clearTimeout;

export function setImmediate(callback: Callback, ...values: unknown[]): Timer {
  return platform().scheduler.after(0, () => callback(...values));
}

export const clearImmediate = clearTimeout;

export const performance = {
  now: (): number => platform().scheduler.now,
};

/** When every world begins: a moment like any other. */
const epochMs = 1_700_000_000_000;

class VirtualDate extends globalThis.Date {
  static override now(): number {
    return epochMs + Math.floor(platform().scheduler.now);
  }
}

export { VirtualDate as Date };
