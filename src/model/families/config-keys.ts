import * as z from "zod";
import { evaluate } from "./expression.ts";
import type { Config, Family, Key } from "./table.ts";
import { evenHeads } from "./table.ts";

/** The most that a size in a config.json may be: beyond it, products would not be exact. */
const maxSize = 2 ** 31;

/** What is wrong with a config: the keys that it is about, and what to say. */
interface Fault {
  readonly what: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/** The schema of a family's keys. Unknown keys are Hugging Face's matter and ignored. */
export function schemaOf(family: Family) {
  const shape: Record<string, z.ZodType> = {};
  for (const [name, key] of Object.entries(family.keys)) {
    const value = valueSchema(key);
    shape[name] = key.absent === undefined && key.aliases === undefined ? value : value.nullish();
    for (const alias of key.aliases ?? []) shape[alias] = value.nullish();
  }
  return z.looseObject(shape);
}

function valueSchema({ kind, most = maxSize }: Key): z.ZodType {
  switch (kind) {
    case "flag":
      return z.boolean();
    case "text":
      return z.string();
    case "list":
      return z.array(z.number().int().min(0).max(maxSize));
    default:
      return z
        .number()
        .int()
        .min(kind === "size" ? 1 : 0)
        .max(most);
  }
}

/** The keys of a checked config, what is missing filled in as transformers' class does. */
export function fillKeys(family: Family, given: Readonly<Record<string, unknown>>): Config | Fault {
  const config: Record<string, Config[string]> = {};
  const open: [string, string][] = [];
  for (const [name, key] of Object.entries(family.keys)) {
    const names = [name, ...(key.aliases ?? [])].filter((alias) => given[alias] !== undefined);
    const values = new Set(names.map((alias) => given[alias]));
    if (key.kind !== "list" && values.size > 1) {
      const details = Object.fromEntries(names.map((alias) => [alias, given[alias]]));
      return { what: `${names.join(" and ")} mean the same and differ`, details };
    }
    const value = names.length === 0 ? key.absent : (given[names[0]!] ?? key.none);
    if (value === undefined) return { what: `${name} must be a number, not null`, details: { field: name } };
    if (typeof value === "string" && key.kind !== "text") open.push([name, value]);
    else config[name] = value as Config[string];
  }
  for (const [name, expression] of open) {
    const value = evaluate(expression, (key) => config[key] as number);
    if (!Number.isInteger(value)) return unevenHeads(config);
    config[name] = value;
  }
  return config;
}

function unevenHeads(config: Config): Fault {
  const { hidden_size, num_attention_heads } = config;
  return {
    what: `hidden_size ${hidden_size} is not a multiple of num_attention_heads ${num_attention_heads}, and there is no head_dim`,
    details: { hidden_size, num_attention_heads, expression: evenHeads },
  };
}

export function isFault(value: Config | Fault): value is Fault {
  return typeof (value as Fault).what === "string";
}
