import type { z } from "zod";
import { TensorBusError } from "../errors.ts";
import { type DType, isDType } from "../layout/index.ts";
import { deepseekTensors } from "./config-deepseek.ts";
import { llamaTensors, qwen2Tensors, qwen3MoeTensors, qwen3Tensors } from "./config-dense.ts";
import { deepseekSchema, denseSchema, type HeadConfig, headSchema, qwen3MoeSchema } from "./config-schema.ts";
import { readTextFile } from "./files.ts";
import { describeIssue } from "./issues.ts";
import type { ModelTensor } from "./tensor.ts";
import { type BlockQuantization, TensorList } from "./tensor-list.ts";

export interface ConfigOptions {
  /** The element type instead of the config's own; what is always float32 stays so. */
  readonly dtype?: DType;
  /** Whether multi-token prediction layers are included; not unless asked. */
  readonly mtp?: boolean;
  /** Float8 weights with a `weight_scale_inv` per block, as `quantization_config` describes them; not unless asked. */
  readonly quantized?: boolean;
}

type Family = (list: TensorList, config: unknown, options: ConfigOptions, file: string) => void;

/** The most tensors that a config.json can ask for. */
const maxTensors = 2 ** 22;
const maxConfigBytes = 2 ** 20;

const families: Readonly<Record<string, Family>> = {
  llama: family(denseSchema, (list, config) => llamaTensors(list, config)),
  qwen2: family(denseSchema, (list, config) => qwen2Tensors(list, config)),
  qwen3: family(denseSchema, (list, config) => qwen3Tensors(list, config)),
  qwen3_moe: family(qwen3MoeSchema, (list, config) => qwen3MoeTensors(list, config)),
  deepseek_v3: family(deepseekSchema, (list, config, options) =>
    deepseekTensors(list, config, options.mtp === true),
  ),
  kimi_k2: family(deepseekSchema, (list, config, options) =>
    deepseekTensors(list, config, options.mtp === true),
  ),
};
/** Families whose quantized checkpoints are published with float32 scales per block. */
const quantizedFamilies = ["deepseek_v3", "kimi_k2"];

/** The `model_type`s that are known. */
export const modelTypes: readonly string[] = Object.keys(families);

/** Reads a Hugging Face `config.json`. `TB_FILE` or `TB_MODEL_CONFIG`, naming the file and the field. */
export async function readModelConfig(path: string, options: ConfigOptions = {}): Promise<ModelTensor[]> {
  return modelTensors(await readTextFile(path, maxConfigBytes), options, path);
}

/**
 * The tensors of a model from the text of its Hugging Face `config.json`, in the order of the model's modules, with the
 * names, shapes and types that its checkpoint has. `file` is the name for messages. `TB_MODEL_CONFIG`.
 */
export function modelTensors(text: string, options: ConfigOptions = {}, file = "config.json"): ModelTensor[] {
  const config = parseJson(text, file);
  const head = check(headSchema, config, file);
  const write = Object.hasOwn(families, head.model_type) ? families[head.model_type] : undefined;
  if (write === undefined) {
    throw configError(
      file,
      `model_type ${JSON.stringify(head.model_type)} is unknown; known are ${modelTypes.join(", ")}`,
      {
        modelType: head.model_type,
        known: modelTypes,
      },
    );
  }
  const list = new TensorList(elementType(head, options, file), quantization(head, options, file));
  write(list, config, options, file);
  return list.tensors;
}

function family<Schema extends z.ZodType>(
  schema: Schema,
  write: (list: TensorList, config: z.infer<Schema>, options: ConfigOptions) => void,
): Family {
  return (list, value, options, file) => {
    const config = check(schema, value, file);
    checkHeads(config as HeadCounts, file);
    checkCount(config as TensorCounts, file);
    write(list, config, options);
  };
}

interface HeadCounts {
  readonly hidden_size: number;
  readonly num_attention_heads: number;
  readonly head_dim?: number | null;
  readonly kv_lora_rank?: number;
}

/** Without a `head_dim` the heads share the hidden size evenly; latent attention has dimensions of its own. */
function checkHeads(config: HeadCounts, file: string): void {
  const { hidden_size: hidden, num_attention_heads: heads } = config;
  if (config.kv_lora_rank !== undefined || config.head_dim != null || hidden % heads === 0) return;
  throw configError(
    file,
    `hidden_size ${hidden} is no multiple of num_attention_heads ${heads}, and there is no head_dim`,
    {
      hidden_size: hidden,
      num_attention_heads: heads,
    },
  );
}

interface TensorCounts {
  readonly num_hidden_layers: number;
  readonly num_experts?: number;
  readonly n_routed_experts?: number | null;
}

function checkCount(config: TensorCounts, file: string): void {
  const experts = config.num_experts ?? config.n_routed_experts ?? 1;
  const count = config.num_hidden_layers * experts * 3;
  if (count <= maxTensors) return;
  throw configError(
    file,
    `${config.num_hidden_layers} layers of ${experts} experts are more than ${maxTensors} tensors`,
    {
      layers: config.num_hidden_layers,
      experts,
      maxTensors,
    },
  );
}

function elementType(head: HeadConfig, options: ConfigOptions, file: string): DType {
  const name = options.dtype ?? head.torch_dtype ?? head.dtype;
  if (name == null)
    throw configError(file, "it has no torch_dtype; give the element type with the model", {});
  const dtype = name.replace(/^torch\./, "");
  if (isDType(dtype)) return dtype;
  throw configError(file, `torch_dtype ${JSON.stringify(name)} is unknown`, { torch_dtype: name });
}

function quantization(head: HeadConfig, options: ConfigOptions, file: string): BlockQuantization | undefined {
  if (options.quantized !== true) return undefined;
  const block = head.quantization_config?.weight_block_size;
  if (
    block == null ||
    head.quantization_config?.quant_method !== "fp8" ||
    !quantizedFamilies.includes(head.model_type)
  ) {
    throw configError(
      file,
      `quantized tensors are known for ${quantizedFamilies.join(" and ")} with a quantization_config of quant_method "fp8" and a weight_block_size`,
      { modelType: head.model_type, quantization_config: head.quantization_config ?? null },
    );
  }
  return { block };
}

function parseJson(text: string, file: string): unknown {
  try {
    return JSON.parse(text);
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
