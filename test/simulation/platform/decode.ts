/**
 * In place of `src/bus/queue/decode.ts`: all ranks read the same few records, again and again, and each is decoded and checked
 * once. What they share is frozen: who changes it fails.
 */
import type * as z from "zod";
import { unpack } from "../../../src/bus/queue/commands.ts";

const unpacked = new WeakMap<Uint8Array, { readonly value: unknown }>();
const results = new WeakMap<object, Map<z.ZodType, z.ZodSafeParseResult<unknown>>>();

export function decode<T>(schema: z.ZodType<T>, bytes: Uint8Array): z.ZodSafeParseResult<T> {
  let known = unpacked.get(bytes);
  if (known === undefined) {
    known = { value: unpack(bytes) };
    unpacked.set(bytes, known);
  }
  return checked(schema, known.value);
}

export function checked<T>(schema: z.ZodType<T>, value: unknown): z.ZodSafeParseResult<T> {
  if (typeof value !== "object" || value === null) return schema.safeParse(value);
  let known = results.get(value);
  if (known === undefined) {
    known = new Map();
    results.set(value, known);
  }
  let result = known.get(schema) as z.ZodSafeParseResult<T> | undefined;
  if (result === undefined) {
    result = schema.safeParse(value);
    freeze(result.data);
    known.set(schema, result);
  }
  return result;
}

function freeze(value: unknown): void {
  // The elements of views cannot be frozen.
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return;
  Object.freeze(value);
  for (const each of Object.values(value)) freeze(each);
}
