import * as z from "zod";
import { type DType, dtypes, type Placement, parsePlacement } from "../layout/index.ts";
import { modelForms } from "./families/table.ts";
import { describeFound, describeIssue } from "./issues.ts";
import { joinPlacements, parseRanks, parseSize } from "./spec-values.ts";

type JsonForm = z.core.JSONSchema.BaseSchema;

/** What values that functions of ours read look like, for the JSON Schema: the form, or schemas of which one holds. */
export const forms = new WeakMap<z.core.$ZodType, JsonForm | readonly z.ZodType[]>();

function withForm<T>(schema: z.ZodType<T>, form: JsonForm | readonly z.ZodType[]): z.ZodType<T> {
  forms.set(schema, form);
  return schema;
}

/** Issues say what they found; and code made for a schema would be run a few times only, which takes less time without. */
export const onceParsed = { reportInput: true, jitless: true } as const;

/** A value whose form decides by which schema it is read, so that messages speak of that form alone. */
function chosen<T>(
  choose: (value: unknown) => z.ZodType<T>,
  alternatives: readonly z.ZodType[],
): z.ZodType<T> {
  const schema = z.unknown().transform((value, context): T => {
    const result = choose(value).safeParse(value, onceParsed);
    if (result.success) return result.data;
    for (const { message, path } of result.error.issues.map(describeIssue)) {
      context.issues.push({ code: "custom", message, path: [...path], input: value });
    }
    return z.NEVER;
  });
  return withForm(schema, alternatives);
}

/** A value read by a function of ours: `what` says what it has to be, `form` says it to editors. */
function parsed<T>(read: (value: unknown) => T | undefined, what: string, form: JsonForm): z.ZodType<T> {
  const schema = z.unknown().transform((value, context): T => {
    const result = read(value);
    if (result !== undefined) return result;
    context.issues.push({
      code: "custom",
      message: `must be ${what}, ${describeFound(value)}`,
      input: value,
    });
    return z.NEVER;
  });
  return withForm(schema, form);
}

const naturalForm: JsonForm = { type: "integer", minimum: 0 };
const rankForm: JsonForm = {
  anyOf: [naturalForm, { type: "string", pattern: String.raw`^\s*\d+\s*(\.\.\s*\d+\s*)?$` }],
};

const size = parsed(parseSize, 'a size such as "8MiB" or a number of bytes', {
  anyOf: [
    naturalForm,
    { type: "string", pattern: String.raw`^\s*\d+(\.\d+)?\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?\s*$` },
  ],
});
const ranks = parsed(parseRanks, "ranks such as 0..31 or a list of them", {
  anyOf: [...rankForm.anyOf!, { type: "array", items: rankForm }],
});
const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const dtype = z.enum(dtypes);
const reading = z.enum(["split", "order"]);
const pattern = z.string().min(1);

/** A placement, or a piece of one: YAML cuts `[SS(0,2), S(1;3,4,3)]` at each comma. */
const placementTextForm: JsonForm = {
  type: "string",
  pattern: [
    String.raw`^\s*((R|Replicate)\s*(\(\s*\))?`,
    String.raw`(S|Shard)\s*\(\s*(\w+\s*=\s*)?-?\d+\s*\)`,
    String.raw`(S|Shard)\s*\(\s*(\w+\s*=\s*)?-?\d+\s*;\s*\d+\s*((,\s*\d+\s*)*\))?`,
    String.raw`(SS|_?StridedShard)\s*\(\s*(\w+\s*=\s*)?-?\d+\s*(,\s*(\w+\s*=\s*)?-?\d+\s*\))?`,
    String.raw`(\w+\s*=\s*)?-?\d+\s*\)`,
    String.raw`(P|Partial)\s*(\(\s*((\w+\s*=\s*)?(sum|avg|product|max|min))?\s*\))?)\s*$`,
  ].join("|"),
};

const placementForm: JsonForm = { anyOf: [placementTextForm, naturalForm] };

const placementTexts = z
  .array(
    parsed(
      (value) => (typeof value === "string" || typeof value === "number" ? value : undefined),
      "a placement such as S(0)",
      placementForm,
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
  { anyOf: [naturalForm, { type: "string", pattern: String.raw`^\$\d+$` }] },
);

const rulePlacements = z.strictObject({
  placements: placementTexts.describe("One placement for each dimension of the mesh."),
  select: z
    .strictObject({
      dim: captured,
      index: captured,
      of: captured,
      sizes: z
        .array(count)
        .min(1)
        .describe("How many of the things each coordinate owns, unless they are cut as by S.")
        .optional(),
    })
    .describe("Keeps of mesh dimension dim the one coordinate that owns index of `of` things.")
    .optional(),
  stridedShard: reading.describe("How strided shards of these tensors read.").optional(),
});
export type RuleSide = z.infer<typeof rulePlacements>;

const listedSide = placementTexts.transform((placements): RuleSide => ({ placements }));
const noSide = parsed<RuleSide>(() => undefined, "a list of placements, or a map with placements", {});
const ruleSide = chosen<RuleSide>(
  (value) => {
    if (Array.isArray(value)) return listedSide;
    return typeof value === "object" && value !== null ? rulePlacements : noSide;
  },
  [placementTexts, rulePlacements],
);

const tensor = z.strictObject({
  name: z.string().min(1).describe("The tensor's name, as rules see it."),
  shape: z.array(count).describe("Its global shape, in elements; [] for a scalar."),
  dtype: dtype.describe("Its element type."),
});

const model = z
  .strictObject({
    config: z.string().min(1).describe("A Hugging Face config.json, relative to the spec.").optional(),
    safetensors: z
      .string()
      .min(1)
      .describe("A .safetensors file, an index, or a folder with either; only headers are read.")
      .optional(),
    tensors: z.array(tensor).min(1).describe("The tensors themselves.").optional(),
    dtype: dtype.describe("Replaces the config's torch_dtype.").optional(),
    mtp: z.boolean().describe("Adds the config's multi-token prediction layers.").optional(),
    quantized: z
      .boolean()
      .describe(
        "Whether weights are stored as the config's quantization_config says; false lists plain floats.",
      )
      .optional(),
    form: z
      .enum(modelForms)
      .describe("Names and shapes as published (checkpoint), or as transformers 5 holds them (state_dict).")
      .optional(),
  })
  .superRefine((value, context) => {
    const given = [value.config, value.safetensors, value.tensors].filter(
      (entry) => entry !== undefined,
    ).length;
    if (given !== 1) context.addIssue("give exactly one of config, safetensors and tensors");
    for (const key of ["dtype", "mtp", "quantized", "form"] as const) {
      if (value[key] !== undefined && value.config === undefined) {
        context.addIssue({
          code: "custom",
          message: "belongs to a model's config",
          path: [key],
          input: value,
        });
      }
    }
  })
  .meta({
    oneOf: ["config", "safetensors", "tensors"].map((key) => ({ required: [key] })),
    dependencies: { dtype: ["config"], mtp: ["config"], quantized: ["config"], form: ["config"] },
  });

const template = z.string().min(1).max(1000);

/** Made when a side has one: most specs have none. */
const partRule = z.lazy(() =>
  z
    .strictObject({
      match: template.describe(
        "A template of tensors' names: {L} a layer's prefix, {e} an expert, {s} weight, bias or a scale.",
      ),
      also: z.boolean().describe("Later rules may take the tensors too.").optional(),
      layers: z.tuple([count, count]).describe("Only layers from the first to before the second.").optional(),
      drop: z.string().min(1).describe("The side does without these tensors; why.").optional(),
      into: template.describe("The parameter, a template.").optional(),
      aliases: z.array(template).describe("Further names of the parameter.").optional(),
      mesh: z.string().describe("One of the side's meshes.").optional(),
      placements: placementTexts.describe("One placement for each dimension of that mesh.").optional(),
      stridedShard: reading.describe("How strided shards read.").optional(),
      order: count
        .describe("The place among the parts of a slot, from 0 on, along the first dimension.")
        .optional(),
      slice: z
        .strictObject({ dim: count, start: count, length: count.min(1) })
        .describe("Only this range of a dimension of the tensor.")
        .optional(),
      slot: z
        .strictObject({
          index: z.literal("{e}").describe("Each tensor is one thing, by its number.").optional(),
          axis: count.describe("The dimension of the tensor that runs over the things.").optional(),
          of: count.min(1).describe("How many things there are."),
          copies: count.describe("Further slots, which hold the first things again.").optional(),
          dim: count.describe("The mesh dimension that slots are dealt over.").optional(),
          deal: z.enum(["linear", "round_robin"]).describe("In runs, or one by one.").optional(),
        })
        .describe("Things that are stacked in a parameter: experts.")
        .optional(),
      axes: z.array(count).describe("For each axis of the parameter the tensor's.").optional(),
      extent: count
        .min(1)
        .describe("The parameter's first extent; what its parts leave of it is zero.")
        .optional(),
      on: z
        .strictObject({ dim: count, coordinate: count })
        .describe("Only this coordinate holds it; its place is zero on others.")
        .optional(),
      select: z
        .strictObject({ dim: count, index: z.literal("{e}"), of: count.min(1) })
        .describe("Only the coordinate that owns {e} of `of` things has the parameter.")
        .optional(),
      unit: count.min(1).describe("Rows that must not be parted: a head.").optional(),
      dtype: dtype.describe("The parameter's type, if it is not the tensor's.").optional(),
      constant: z.number().describe("A parameter of one number beside each tensor that matches.").optional(),
    })
    .describe("Where tensors lie in a side's parameters; the first that matches takes a tensor."),
);

const side = z
  .strictObject({
    name: z.string().min(1).describe("A name for people.").optional(),
    mesh: z
      .array(z.number().meta({ type: "integer", minimum: 1 }))
      .min(1)
      .describe("The sizes of the mesh's dimensions.")
      .optional(),
    preset: z
      .string()
      .min(1)
      .describe(
        "A trainer or an engine that lays its parameters out itself, such as fsdp2:dp=64 or vllm:tp=8,ep.",
      )
      .optional(),
    meshes: z
      .record(z.string(), z.array(z.number().meta({ type: "integer", minimum: 1 })).min(1))
      .describe("Meshes of all ranks by name, for parameters.")
      .optional(),
    parameters: z
      .array(partRule)
      .min(1)
      .describe("Rules of parts: which parameters the side has, and what of which tensor lies in them.")
      .optional(),
    ranks: ranks
      .describe(
        "Its ranks, row-major: 0..31, or a list of numbers and such ranges. Counted out unless given.",
      )
      .optional(),
    dimNames: z.array(z.string()).describe("Names of the mesh's dimensions, for people.").optional(),
    stridedShard: reading
      .describe("How strided shards read: split as distribute_tensor makes them, order as FSDP2 holds them.")
      .optional(),
  })
  .superRefine((value, context) => {
    const kinds = [value.mesh, value.preset, value.parameters].filter((kind) => kind !== undefined);
    if (kinds.length !== 1) {
      const missing = kinds.length === 0;
      context.addIssue({
        code: "custom",
        message: missing
          ? "must be a list, and is missing: give mesh, preset or parameters"
          : "give one of mesh, preset and parameters",
        path: ["mesh"],
        input: value.mesh,
      });
    }
    if (value.parameters !== undefined && (value.ranks === undefined || value.meshes === undefined)) {
      context.addIssue({
        code: "custom",
        message: "needs ranks and meshes",
        path: ["parameters"],
        input: null,
      });
    }
  });
export type SpecSideInput = z.infer<typeof side>;
export type PartRuleInput = z.infer<typeof partRule>;

const match = pattern.describe("A regular expression in RE2's syntax, found anywhere in a tensor's name.");

const dtypeRules = z.array(z.strictObject({ match, dtype })).min(1);
export type DtypeRule = z.infer<typeof dtypeRules>[number];

const topology = z
  .strictObject({
    ranksPerHost: count.min(1).describe("Rank r stands on host floor(r / ranksPerHost).").optional(),
    hosts: z.array(count).describe("The host of each rank.").optional(),
    hostMBps: count.min(1).describe("Megabytes a second of a rank's link within its host."),
    networkMBps: count.min(1).describe("Megabytes a second of a rank's link to other hosts."),
    latencyUs: count.describe("Microseconds from the last byte of a bucket on its way to its arrival."),
    links: z
      .array(
        z.strictObject({
          hosts: z.tuple([count, count]).describe("Two hosts, or the same twice: within it."),
          MBps: count.min(1).describe("Megabytes a second of a rank's traffic between them, either way."),
        }),
      )
      .describe("Links that differ from that.")
      .optional(),
  })
  .superRefine((value, context) => {
    if ((value.ranksPerHost === undefined) === (value.hosts === undefined)) {
      context.addIssue("give exactly one of ranksPerHost and hosts");
    }
  })
  .meta({ oneOf: [{ required: ["ranksPerHost"] }, { required: ["hosts"] }] });

const budget = z.strictObject({
  rankEgressBytes: size.describe("The most bytes that any rank sends to others.").optional(),
  rankIngressBytes: size.describe("The most bytes that any rank receives from others.").optional(),
  rankLinkBytes: size.describe("The most bytes that any rank sends to any other one.").optional(),
  hostLinkBytes: size
    .describe("The most bytes that ranks of any host send to ranks of any other one; needs a topology.")
    .optional(),
  stagingBytes: size.describe("The most staging memory that any rank needs.").optional(),
  imbalance: z
    .number()
    .min(1)
    .describe("What the busiest source rank sends over the mean of the source's ranks; 1 is perfect.")
    .optional(),
  predictedSeconds: z
    .number()
    .min(0)
    .describe("How long the transfer is predicted to take; needs a topology.")
    .optional(),
  lowerBoundRatio: z
    .number()
    .min(1)
    .describe("The predicted time over what no schedule can beat; 1 is perfect. Needs a topology.")
    .optional(),
  digest: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .describe("The digest that the plan has to have: any change of the plan is then one of the spec.")
    .optional(),
});
/** What a plan may cost at most; `plan` compares. */
export type Budget = z.infer<typeof budget>;

const rule = z.strictObject({
  match,
  source: ruleSide.describe("Placements on the source's mesh."),
  target: ruleSide.describe("Placements on the target's mesh."),
  targetDtype: dtype
    .describe(
      "The element type on the target of the tensors that this rule takes; counts more than the spec's.",
    )
    .optional(),
});

/** A spec as it stands in its file, version 1. */
export const specSchema = z
  .strictObject({
    $schema: z.string().describe("Where editors find this schema; read by nothing else.").optional(),
    version: z.literal(1).describe("The version of this format."),
    model: model.describe("Which tensors move: exactly one of config, safetensors and tensors."),
    source: side.describe("The side that has the tensors."),
    target: side.describe("The side that gets them."),
    colocated: z.boolean().describe("The same processes are on both sides.").optional(),
    placements: z
      .array(rule)
      .min(1)
      .describe("Rules; the first whose match is found in a tensor's name takes it. Each has to take one.")
      .optional(),
    targetDtype: chosen<DType | DtypeRule[]>(
      (value) => (Array.isArray(value) ? dtypeRules : dtype),
      [dtype, dtypeRules],
    )
      .describe(
        "The element type on the target: one for all, or rules of which the first that is found decides.",
      )
      .optional(),
    bucketBytes: size.describe("The most bytes of a bucket; 8 MiB unless given.").optional(),
    bucketsInFlight: count
      .min(1)
      .describe("The most staged buckets of a channel; 2 unless given.")
      .optional(),
    peersInFlight: count
      .min(1)
      .describe("The most channels of a receiver in a wave; 4 unless given.")
      .optional(),
    strategy: z
      .enum(["auto", "direct", "striped"])
      .describe("How replicas of a target get what all of them want; auto unless given.")
      .optional(),
    topology: topology.describe("Where ranks stand and how fast links are.").optional(),
    maxChunks: count.min(1).describe("The most chunks that are listed.").optional(),
    budget: budget.describe("Limits that make `plan` end with exit code 1.").optional(),
  })
  .superRefine(({ source, target, placements, topology, budget }, context) => {
    const meshes = [source, target].filter(({ mesh }) => mesh !== undefined).length;
    if (meshes === 1) {
      context.addIssue({
        code: "custom",
        message:
          "has a mesh, and the other side parameters: give both in parts (`match: '{*}'` takes every tensor)",
        path: [source.mesh === undefined ? "target" : "source"],
        input: null,
      });
    }
    if ((meshes === 0) !== (placements === undefined)) {
      const message =
        placements === undefined
          ? "must be a list, and is missing"
          : "belong to meshes; these sides have parameters";
      context.addIssue({ code: "custom", message, path: ["placements"], input: placements });
    }
    for (const key of ["hostLinkBytes", "predictedSeconds", "lowerBoundRatio"] as const) {
      if (budget?.[key] === undefined || topology !== undefined) continue;
      context.addIssue({
        code: "custom",
        message: "needs a topology",
        path: ["budget", key],
        input: budget[key],
      });
    }
  });
export type SpecInput = z.infer<typeof specSchema>;
