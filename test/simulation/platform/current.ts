/**
 * The world that the platform of a simulated module belongs to. A bundle of the simulation runs one world at a time; only
 * what stands in place of the platform (`./globals.ts`, `./timers.ts`, `./crypto.ts`) asks for it.
 */
import type { Random } from "../../kit/random.ts";
import type { Scheduler } from "../world/scheduler.ts";

export interface Platform {
  readonly scheduler: Scheduler;
  /** What modules of the product draw nonces from. */
  readonly chance: Random;
}

let current: Platform | undefined;

export function usePlatform(platform: Platform | undefined): void {
  current = platform;
}

/** `undefined` while modules are loaded. */
export function currentPlatform(): Platform | undefined {
  return current;
}

export function platform(): Platform {
  if (current !== undefined) return current;
  throw new Error("time was asked for outside of any simulated world");
}
