import { cancelledError } from "../deadline.ts";
import type { OpenOptions } from "./transport.ts";

/** An integer between two bounds, or the default if it is absent; `TypeError` otherwise. */
export function integerOption(
  name: string,
  value: number | undefined,
  { min, max, preset }: { readonly min: number; readonly max: number; readonly preset: number },
): number {
  if (value === undefined) return preset;
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw new TypeError(`${name} must be an integer from ${min} to ${max}, not ${value}`);
}

/** The rank, world and generation that a session is opened with; `TypeError` if they are none. */
export function checkMembership({ rank, world, generation, signal }: OpenOptions): {
  readonly rank: number;
  readonly world: number;
  readonly generation: bigint;
} {
  if (signal?.aborted) throw cancelledError("opening a session", signal);
  const size = integerOption("world", world, { min: 1, max: 2 ** 20, preset: 1 });
  return {
    rank: integerOption("rank", rank, { min: 0, max: size - 1, preset: 0 }),
    world: size,
    generation: BigInt(
      integerOption("generation", generation, { min: 0, max: Number.MAX_SAFE_INTEGER, preset: 0 }),
    ),
  };
}
