import * as z from "zod";
import { forms, specSchema } from "./spec-schema.ts";

/**
 * The JSON Schema (draft 7, which editors know) of a spec: what stands in its file, before it is read. Whatever
 * `specSchema` takes keeps to it; it cannot say all that a spec has to be.
 */
export function specJsonSchema(): z.core.JSONSchema.JSONSchema {
  const { $schema, ...schema } = toJsonSchema(specSchema);
  return { $schema: $schema!, title: "A spec of tensorbus", ...schema };
}

function toJsonSchema(schema: z.ZodType): z.core.JSONSchema.JSONSchema {
  return z.toJSONSchema(schema, {
    io: "input",
    target: "draft-7",
    override: ({ zodSchema, jsonSchema }) => {
      const form = formOf(zodSchema);
      if (form !== undefined) Object.assign(jsonSchema, isList(form) ? anyOf(form) : form);
    },
  }) as z.core.JSONSchema.JSONSchema;
}

/** The form of a schema, which a copy with a description shares with the one that it was made of. */
function formOf(schema: z.core.$ZodType): ReturnType<typeof forms.get> {
  const { parent } = schema._zod;
  return forms.get(schema) ?? (parent && formOf(parent));
}

function anyOf(alternatives: readonly z.ZodType[]): z.core.JSONSchema.BaseSchema {
  return {
    anyOf: alternatives.map((alternative) => {
      const { $schema: _, ...schema } = toJsonSchema(alternative);
      return schema;
    }),
  };
}

function isList(value: unknown): value is readonly z.ZodType[] {
  return Array.isArray(value);
}
