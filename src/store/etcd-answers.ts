/** What etcd's gateway answers, checked before it is used: what listens there may be anything. */
import * as z from "zod";
import { TensorBusError } from "../errors.ts";

/** Numbers of 64 bits are text in JSON. */
const integer = z.union([z.string().regex(/^-?\d{1,20}$/), z.int()]).transform(BigInt);
const count = z
  .union([z.string().regex(/^\d{1,15}$/), z.int().min(0)])
  .transform(Number)
  .default(0);
/** Base64; left out if there is nothing. */
const bytes = z.string().default("");
const keyValue = z.object({ key: bytes, value: bytes, mod_revision: integer });
const range = z.object({ kvs: z.array(keyValue).default([]), count });

export const rangeAnswer = range;
export const deleteAnswer = z.object({ deleted: count });
export const swapAnswer = z.object({
  succeeded: z.boolean().default(false),
  responses: z.array(z.object({ response_range: range.optional() })).default([]),
});
/** The transaction that looks keys up: as of which revision, and an answer for each. */
export const lookAnswer = z.object({
  header: z.object({ revision: integer }),
  responses: z.array(z.object({ response_range: range })),
});
export const watchAnswer = z.object({
  events: z.array(z.object({ kv: z.object({ key: bytes }) })).default([]),
  canceled: z.boolean().default(false),
  cancel_reason: z.string().optional(),
  /** Set if a watch was cancelled because its revision was compacted away. */
  compact_revision: integer.optional(),
});
export const grantAnswer = z.object({ ID: integer.transform(String), TTL: count });
export const renewalAnswer = z.object({ result: z.object({ TTL: count }).default({ TTL: 0 }) });

export type EtcdKeyValue = z.infer<typeof keyValue>;

/** The answer as its schema has it; `TB_STORE_PROTOCOL` says what is wrong with it. */
export function checkAnswer<Schema extends z.ZodType>(
  schema: Schema,
  path: string,
  answer: unknown,
): z.infer<Schema> {
  const { success, data, error } = schema.safeParse(answer);
  if (success) return data;
  const issue = error.issues[0];
  const place = issue?.path.join(".") ?? "";
  const at = place === "" ? "" : ` at ${place}`;
  throw new TensorBusError(
    "TB_STORE_PROTOCOL",
    `etcd's answer to ${path} is malformed${at}: ${issue?.message ?? "it is not what was asked for"}`,
    {
      details: { path, place: place || "it" },
    },
  );
}
