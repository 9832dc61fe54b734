import * as z from "zod";
import { TensorBusError } from "../errors.ts";
import { type DType, isDType } from "../layout/index.ts";
import { type Head, headOf, knownArchitectures } from "./families/architecture.ts";
import { fillKeys, isFault, schemaOf } from "./families/config-keys.ts";
import { expand } from "./families/expand.ts";
import { evaluate } from "./families/expression.ts";
import { families } from "./families/known.ts";
import { type Quantization, quantizationForm, quantizationSchema } from "./families/quantization.ts";
import type { Config, Family, ModelForm } from "./families/table.ts";
import { readTextFile } from "./files.ts";
import { describeIssue } from "./issues.ts";
import { parseJson } from "./json-keys.ts";
import type { ModelTensor } from "./tensor.ts";

export interface ConfigOptions {
  /** The element type instead of the config's own; what is always float32 stays so. */
  readonly dtype?: DType;
  /** True if layers that predict further tokens are included; not unless asked. */
  readonly mtp?: boolean;
  /**
   * True if weights are stored as the config's `quantization_config` says, with their scales: as it says unless given;
   * `false` lists plain floats, which a trainer holds.
   */
  readonly quantized?: boolean;
  /** The form of names and shapes: as published (the default), or as transformers 5 holds the model in memory. */
  readonly form?: ModelForm;
}

/** A model as its config describes it: its family's keys filled in, and its tensors. */
export interface Model {
  readonly modelType: string;
  readonly config: Config;
  readonly head: Head;
  readonly form: ModelForm;
  /** The type of all tensors that have no type of their own. */
  readonly dtype: DType;
  /** True if config or caller name that type; else `bfloat16` stands for it, which no type of a tensor's own is. */
  readonly hasDtype: boolean;
  /** Rows and columns of a block of weights that shares a scale. */
  readonly block: readonly [number, number] | undefined;
  readonly quantMethod: string | undefined;
  readonly tensors: readonly ModelTensor[];
  readonly file: string;
}

/** The most tensors that a config.json can ask for. */
const maxTensors = 2 ** 22;
const maxConfigBytes = 2 ** 20;

const headSchema = z.looseObject({
  model_type: z.string(),
  torch_dtype: z.string().nullish(),
  dtype: z.string().nullish(),
  architectures: z.array(z.string()).nullish(),
  id2label: z.record(z.string(), z.unknown()).nullish(),
  num_labels: z
    .number()
    .int()
    .min(1)
    .max(2 ** 20)
    .nullish(),
  quantization_config: quantizationSchema.nullish(),
  text_config: z.looseObject({ model_type: z.string().nullish() }).nullish(),
});
type HeadConfig = z.infer<typeof headSchema>;

/** The `model_type`s that are known. */
export const modelTypes: readonly string[] = Object.keys(families);

/** Reads a Hugging Face `config.json`. `TB_FILE` or `TB_MODEL_CONFIG`, naming the file and the field. */
export async function readModel(path: string, options: ConfigOptions = {}): Promise<Model> {
  return modelOf(await readTextFile(path, maxConfigBytes), options, path);
}

/**
 * The tensors of a model from the text of its Hugging Face `config.json`, in the order of the model's modules, with the
 * names, shapes and types that its checkpoint has. `file` is the name for messages. `TB_MODEL_CONFIG`, for a config
 * without an element type too.
 */
export function modelTensors(text: string, options: ConfigOptions = {}, file = "config.json"): ModelTensor[] {
  const model = modelOf(text, options, file);
  if (!model.hasDtype) throw missingDType(model);
  return [...model.tensors];
}

/** Plans count bytes: a model without an element type has none to count. */
export function missingDType({ file }: Model): TensorBusError {
  return configError(file, "torch_dtype is missing; give the element type with the model", {});
}

/** The model of a config's text: what its family's table says of it. `TB_MODEL_CONFIG`. */
export function modelOf(text: string, options: ConfigOptions = {}, file = "config.json"): Model {
  const given = parseConfig(text, file);
  const head = check(headSchema, given, file);
  const family = familyOf(head, file);
  const filled = fillKeys(family, check(schemaOf(family), given, file));
  if (isFault(filled)) throw configError(file, filled.what, filled.details);
  const form = options.form ?? "checkpoint";
  const kind = architectureOf(family, head, file);
  const { flags, quantization } = quantizationOf(family, head, options, form, file);
  const config: Config = { ...filled, ...flags };
  const refused = family.refuse?.(config);
  if (refused !== undefined) throw configError(file, refused, {});
  checkCount(family, config, file);
  const named = elementType(head, options, file);
  const dtype = named ?? "bfloat16";
  const tensors = expand(family, config, {
    dtype,
    form,
    head: kind,
    labels: head.num_labels ?? (head.id2label == null ? 2 : Object.keys(head.id2label).length),
    prediction: options.mtp === true,
    quantization,
  });
  const quantized = quantization !== undefined || Object.keys(flags).length > 0;
  return {
    modelType: head.model_type,
    config,
    head: kind,
    form,
    dtype,
    hasDtype: named !== undefined,
    block: quantized ? (head.quantization_config?.weight_block_size ?? undefined) : undefined,
    quantMethod: quantized ? (head.quantization_config?.quant_method ?? undefined) : undefined,
    tensors,
    file,
  };
}

const wayOut = "name its tensors with `safetensors` or `tensors` in a spec instead";

function familyOf(head: HeadConfig, file: string): Family {
  const { model_type: modelType, text_config: text } = head;
  if (Object.hasOwn(families, modelType)) return families[modelType]!;
  const inner = text?.model_type;
  const hint =
    inner != null && Object.hasOwn(families, inner)
      ? `; its text_config is of the family ${inner}, which is known: as a config.json of its own it lists the language model alone`
      : "";
  throw configError(
    file,
    `model_type ${JSON.stringify(modelType)} is unknown; known are ${modelTypes.join(", ")}${hint}; or ${wayOut}`,
    { modelType, known: modelTypes, ...(inner != null && { text: inner }) },
  );
}

function architectureOf(family: Family, head: HeadConfig, file: string): Head {
  const architecture = head.architectures?.[0];
  const kind = headOf(family, architecture);
  if (kind !== undefined) return kind;
  const known = knownArchitectures(family);
  throw configError(
    file,
    `architectures names ${architecture}, whose tensors are not known; known are ${known.join(", ")}; or ${wayOut}`,
    { architecture, known },
  );
}

function quantizationOf(
  family: Family,
  head: HeadConfig,
  options: ConfigOptions,
  form: ModelForm,
  file: string,
): { readonly flags: Readonly<Record<string, boolean>>; readonly quantization: Quantization | undefined } {
  const given = head.quantization_config;
  const refuse = (why: string) =>
    configError(file, why, { modelType: head.model_type, quantization_config: given ?? null });
  if (options.quantized === false || (given == null && options.quantized !== true)) {
    return { flags: {}, quantization: undefined };
  }
  if (given == null) {
    throw refuse(
      "quantized tensors need a quantization_config, as those of deepseek_v3 and gpt_oss are published with",
    );
  }
  const found = quantizationForm(family, given);
  if (found.kind === "unknown") {
    throw refuse(
      `quantization_config: ${found.why}; \`quantized: false\` lists the plain weights, ` + `or ${wayOut}`,
    );
  }
  if (found.kind === "rows") return { flags: { [found.flag]: true }, quantization: undefined };
  if (form === "state_dict" && family.experts !== undefined) {
    throw refuse(
      "tensorbus does not know how quantized experts lie in memory; use `form: checkpoint` or `quantized: false`",
    );
  }
  return { flags: {}, quantization: found.quantization };
}

function checkCount(family: Family, config: Config, file: string): void {
  const layers = config.num_hidden_layers as number;
  const experts =
    family.experts === undefined ? 1 : evaluate(family.experts, (key) => (config[key] as number) ?? 1);
  if (layers * experts * 3 <= maxTensors) return;
  throw configError(file, `${layers} layers of ${experts} experts are more than ${maxTensors} tensors`, {
    layers,
    experts,
    maxTensors,
  });
}

function elementType(head: HeadConfig, options: ConfigOptions, file: string): DType | undefined {
  const name = options.dtype ?? head.torch_dtype ?? head.dtype;
  if (name == null) return undefined;
  const dtype = name.replace(/^torch\./, "");
  if (isDType(dtype)) return dtype;
  throw configError(file, `torch_dtype ${JSON.stringify(name)} is unknown`, { torch_dtype: name });
}

function parseConfig(text: string, file: string): unknown {
  try {
    return parseJson(text);
  } catch (cause) {
    throw configError(file, `it is not JSON: ${(cause as Error).message}`, {}, cause);
  }
}

function check<Schema extends z.ZodType>(schema: Schema, value: unknown, file: string): z.infer<Schema> {
  const result = schema.safeParse(value, { reportInput: true });
  if (result.success) return result.data;
  const { message, path } = describeIssue(result.error.issues[0]!);
  const field = path.join(".");
  throw configError(file, `${field === "" ? "it" : field} ${message}`, { field });
}

function configError(
  file: string,
  what: string,
  details: Readonly<Record<string, unknown>>,
  cause?: unknown,
): TensorBusError {
  return new TensorBusError("TB_MODEL_CONFIG", `${file}: ${what}`, { details: { file, ...details }, cause });
}
