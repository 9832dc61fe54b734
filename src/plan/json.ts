import type { Bucket, Chunk } from "./input/types.ts";
import type { Plan } from "./plan.ts";

/** A value as JSON has it: bigint become decimal text. */
type Json<T> = T extends bigint
  ? string
  : T extends readonly (infer E)[]
    ? Json<E>[]
    : T extends object
      ? { -readonly [K in keyof T]: Json<T[K]> }
      : T;

/** Turns every bigint of a plain value into decimal text, so that `JSON.stringify` takes it. */
export function toJSON<T>(value: T): Json<T> {
  if (typeof value === "bigint") return String(value) as Json<T>;
  if (Array.isArray(value)) return value.map(toJSON) as Json<T>;
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, toJSON(entry)])) as Json<T>;
  }
  return value as Json<T>;
}

/** A chunk or a bucket for JSON. */
export function chunkToJSON<T extends Chunk | Bucket>(chunk: T): Json<T> {
  return toJSON(chunk);
}

/** Digest and statistics of a plan for JSON. */
export function planToJSON(plan: Plan) {
  return { digest: plan.digest, bytes: plan.bytes.length, stats: toJSON(plan.stats()) };
}
