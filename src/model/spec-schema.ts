// All of it by name, so that a bundle for browsers takes only what is used.
import * as z from "zod";
import { type DType, dtypes, type Placement, parsePlacement } from "../layout/index.ts";
import { describeFound, describeIssue } from "./issues.ts";
import { joinPlacements, parseRanks, parseSize } from "./spec-values.ts";

/** A value whose form decides by which schema it is read, so that messages speak of that form alone. */
function chosen<T>(choose: (value: unknown) => z.ZodType<T>): z.ZodType<T> {
  return z.unknown().transform((value, context): T => {
    const result = choose(value).safeParse(value, { reportInput: true });
    if (result.success) return result.data;
    for (const { message, path } of result.error.issues.map(describeIssue)) {
      context.issues.push({ code: "custom", message, path: [...path], input: value });
    }
    return z.NEVER;
  });
}

/** A value read by a function of ours: `what` says what it has to be. */
function parsed<T>(read: (value: unknown) => T | undefined, what: string): z.ZodType<T> {
  return z.unknown().transform((value, context): T => {
    const result = read(value);
    if (result !== undefined) return result;
    context.issues.push({
      code: "custom",
      message: `must be ${what}, ${describeFound(value)}`,
      input: value,
    });
    return z.NEVER;
  });
}

const size = parsed(parseSize, 'a size such as "8MiB" or a number of bytes');
const ranks = parsed(parseRanks, "ranks such as 0..31 or a list of them");
const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const dtype = z.enum(dtypes);
const reading = z.enum(["split", "order"]);
const pattern = z.string().min(1);

const placementTexts = z
  .array(
    parsed(
      (value) => (typeof value === "string" || typeof value === "number" ? value : undefined),
      "a placement such as S(0)",
    ),
  )
  .min(1)
  .transform((texts, context): Placement[] => {
    try {
      return joinPlacements(texts).map(parsePlacement);
    } catch (error) {
      context.issues.push({ code: "custom", message: (error as Error).message, input: texts });
      return z.NEVER;
    }
  });

/** A number, or `$1`: what the rule's expression captured. */
const captured = parsed(
  (value) =>
    (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) ||
    (typeof value === "string" && /^\$\d+$/.test(value))
      ? (value as number | string)
      : undefined,
  "a number or a capture such as $1",
);

const rulePlacements = z.strictObject({
  placements: placementTexts,
  select: z.strictObject({ dim: captured, index: captured, of: captured }).optional(),
  stridedShard: reading.optional(),
});
export type RuleSide = z.infer<typeof rulePlacements>;

const ruleSide = chosen<RuleSide>((value) => {
  if (Array.isArray(value)) return placementTexts.transform((placements): RuleSide => ({ placements }));
  if (typeof value === "object" && value !== null) return rulePlacements;
  return parsed<RuleSide>(() => undefined, "a list of placements, or a map with placements");
});

const tensor = z.strictObject({ name: z.string().min(1), shape: z.array(count), dtype });

const model = z
  .strictObject({
    config: z.string().min(1).optional(),
    safetensors: z.string().min(1).optional(),
    tensors: z.array(tensor).min(1).optional(),
    dtype: dtype.optional(),
    mtp: z.boolean().optional(),
    quantized: z.boolean().optional(),
  })
  .superRefine((value, context) => {
    const given = [value.config, value.safetensors, value.tensors].filter(
      (entry) => entry !== undefined,
    ).length;
    if (given !== 1) context.addIssue("give exactly one of config, safetensors and tensors");
    for (const key of ["dtype", "mtp", "quantized"] as const) {
      if (value[key] !== undefined && value.config === undefined) {
        context.addIssue({
          code: "custom",
          message: "belongs to a model's config",
          path: [key],
          input: value,
        });
      }
    }
  });

const side = z.strictObject({
  name: z.string().min(1).optional(),
  mesh: z.array(z.number()).min(1),
  ranks: ranks.optional(),
  dimNames: z.array(z.string()).optional(),
  stridedShard: reading.optional(),
});
export type SpecSideInput = z.infer<typeof side>;

const dtypeRules = z.array(z.strictObject({ match: pattern, dtype })).min(1);
export type DtypeRule = z.infer<typeof dtypeRules>[number];

const topology = z
  .strictObject({
    ranksPerHost: count.min(1).optional(),
    hosts: z.array(count).optional(),
    hostMBps: count.min(1),
    networkMBps: count.min(1),
    latencyUs: count,
  })
  .superRefine((value, context) => {
    if ((value.ranksPerHost === undefined) === (value.hosts === undefined)) {
      context.addIssue("give exactly one of ranksPerHost and hosts");
    }
  });

const budget = z.strictObject({
  rankEgressBytes: size.optional(),
  stagingBytes: size.optional(),
  imbalance: z.number().min(1).optional(),
});
/** What a plan may cost at most; `plan` compares. */
export type Budget = z.infer<typeof budget>;

/** A spec as it stands in its file, version 1. */
export const specSchema = z.strictObject({
  version: z.literal(1),
  model,
  source: side,
  target: side,
  colocated: z.boolean().optional(),
  placements: z.array(z.strictObject({ match: pattern, source: ruleSide, target: ruleSide })).min(1),
  targetDtype: chosen<DType | DtypeRule[]>((value) => (Array.isArray(value) ? dtypeRules : dtype)).optional(),
  bucketBytes: size.optional(),
  bucketsInFlight: count.min(1).optional(),
  peersInFlight: count.min(1).optional(),
  strategy: z.enum(["auto", "direct", "striped"]).optional(),
  topology: topology.optional(),
  maxChunks: count.min(1).optional(),
  budget: budget.optional(),
});
export type SpecInput = z.infer<typeof specSchema>;
