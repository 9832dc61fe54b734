/** Records of others, checked where they are read: nobody acts on what is not as its schema says. */
import type * as z from "zod";
import { unpack } from "./commands.ts";

/** What bytes hold, as that schema has it. `TB_COMMAND` if they are no plain MessagePack. */
export function decode<T>(schema: z.ZodType<T>, bytes: Uint8Array): z.ZodSafeParseResult<T> {
  return checked(schema, unpack(bytes));
}

/** The same of a value that stood in a record. */
export function checked<T>(schema: z.ZodType<T>, value: unknown): z.ZodSafeParseResult<T> {
  return schema.safeParse(value);
}
