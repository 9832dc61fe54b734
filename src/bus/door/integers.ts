/**
 * Integers of the socket. In MessagePack an integer is its value, whatever its width; the schemas of commands tell 64-bit
 * integers (bigint) from counts (number), as JavaScript must. What comes is converted to what the schema asks for; what goes
 * out is never written as a float.
 */
import type { z } from "zod";

interface Definition {
  readonly type: string;
  readonly shape?: Readonly<Record<string, z.ZodType>>;
  readonly element?: z.ZodType;
  readonly innerType?: z.ZodType;
  readonly options?: readonly z.ZodType[];
  readonly items?: readonly z.ZodType[];
  readonly values?: readonly unknown[];
}

function definitionOf(schema: z.ZodType): Definition {
  return schema.def as unknown as Definition;
}

/** A value with its integers as the schema wants them. What does not fit the schema is left for it to refuse. */
export function fitIntegers(schema: z.ZodType, value: unknown): unknown {
  const { type, shape, element, innerType, options, items } = definitionOf(schema);
  switch (type) {
    case "bigint":
      return Number.isSafeInteger(value) ? BigInt(value as number) : value;
    case "number":
      return plainInteger(value);
    case "optional":
    case "nullable":
      return value === undefined || value === null ? value : fitIntegers(innerType!, value);
    case "object":
      return isMap(value) ? fitMembers(shape!, value) : value;
    case "array":
      return Array.isArray(value) && hasIntegers(element!)
        ? value.map((item) => fitIntegers(element!, item))
        : value;
    case "tuple":
      return Array.isArray(value)
        ? value.map((item, index) => (items?.[index] === undefined ? item : fitIntegers(items[index], item)))
        : value;
    case "union":
      return fitUnion(options!, value);
    default:
      return value;
  }
}

function fitMembers(shape: Readonly<Record<string, z.ZodType>>, value: object): unknown {
  return Object.fromEntries(
    Object.entries(value).map(([name, member]) => {
      const schema = Object.hasOwn(shape, name) ? shape[name] : undefined;
      return [name, schema === undefined ? member : fitIntegers(schema, member)];
    }),
  );
}

/** Picks of several maps the one whose literals are the value's; other values become a number, if one takes it. */
function fitUnion(options: readonly z.ZodType[], value: unknown): unknown {
  if (!isMap(value)) {
    const forms = [plainInteger(value), value];
    return forms.find((form) => options.some((option) => option.safeParse(form).success)) ?? value;
  }
  const own = options.find((option) =>
    Object.entries(definitionOf(option).shape ?? {}).every(([name, member]) => {
      const { type, values } = definitionOf(member);
      return type !== "literal" || values!.includes((value as Record<string, unknown>)[name]);
    }),
  );
  return own === undefined ? value : fitIntegers(own, value);
}

/** Long lists of text are not walked. */
function hasIntegers(schema: z.ZodType): boolean {
  return definitionOf(schema).type !== "string";
}

function isMap(value: unknown): value is object {
  return (
    typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array)
  );
}

function plainInteger(value: unknown): unknown {
  const exact =
    typeof value === "bigint" && value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER;
  return exact ? Number(value) : value;
}

/** A value of maps and lists with its integers as numbers, as far as those are exact. */
export function plainIntegers(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plainIntegers);
  if (!isMap(value)) return plainInteger(value);
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, plainIntegers(member)]));
}

/** A value as MessagePack is to write it: an integer that a number of 32 bits does not hold would become a float. */
export function exactIntegers(value: unknown): unknown {
  if (typeof value === "number") {
    return Number.isSafeInteger(value) && Math.abs(value) > 0x7fff_ffff ? BigInt(value) : value;
  }
  if (Array.isArray(value)) return value.map(exactIntegers);
  if (!isMap(value)) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, member]) => member !== undefined)
      .map(([name, member]) => [name, exactIntegers(member)]),
  );
}
