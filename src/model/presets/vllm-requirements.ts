import type { Model } from "../config.ts";
import { evaluate } from "../families/expression.ts";
import { presetError } from "./options.ts";
import {
  expertRanks,
  expertTensorRanks,
  replicatesShared,
  stageBounds,
  type VllmOptions,
} from "./vllm-options.ts";
import type { EngineTable } from "./vllm-table.ts";

/** vLLM pads the rows of a vocabulary to a multiple of it. */
const vocabularyPadding = 64;

export function paddedVocabulary(rows: number): number {
  return Math.ceil(rows / vocabularyPadding) * vocabularyPadding;
}

/** `TB_PRESET` with the reason for what vLLM refuses, or what its layout was never compared for. */
export function checkVllm(model: Model, table: EngineTable, options: VllmOptions): void {
  checkModel(model, table, options);
  checkAttention(model, table, options);
  checkFeedForward(model, table, options);
  if (hasExperts(model)) checkExperts(model, table, options);
  else if (options.redundant > 0)
    throw refuse(options, "the model has no experts", { redundant: options.redundant });
  checkStages(model, table, options);
  if (model.block !== undefined) checkBlocks(model, table, options, model.block);
}

function refuse(options: VllmOptions, why: string, details: Readonly<Record<string, unknown>>): Error {
  return presetError(`${options.text}: ${why}`, { preset: options.text, ...details });
}

export function number(model: Model, key: string): number {
  return (model.config[key] as number | null | undefined) ?? 0;
}

export function expertCount(model: Model): number {
  return (
    number(model, "num_experts") || number(model, "num_local_experts") || number(model, "n_routed_experts")
  );
}

export function hasExperts(model: Model): boolean {
  return model.tensors.some(({ name }) => /\.experts\./.test(name));
}

function checkModel(model: Model, table: EngineTable, options: VllmOptions): void {
  if (model.head !== "causal") {
    throw refuse(
      options,
      "layouts are known for models that predict tokens (…ForCausalLM), not for other heads",
      {
        head: model.head,
      },
    );
  }
  if (model.quantMethod !== undefined && !table.quantized) {
    throw refuse(
      options,
      `how the engine holds ${model.modelType} in ${model.quantMethod} was never compared; \`quantized: false\` plans plain weights`,
      { modelType: model.modelType, quantMethod: model.quantMethod },
    );
  }
  for (const [key, value] of Object.entries(table.builtIn ?? {})) {
    const wanted = typeof value === "string" ? evaluate(value, (name) => number(model, name)) : value;
    const found = model.config[key];
    if (found === wanted) continue;
    throw refuse(
      options,
      `vLLM's class for ${model.modelType} has ${key} ${wanted} built in, and the config has ${found}`,
      { modelType: model.modelType, key, wanted, found },
    );
  }
  for (const [key, { value, what }] of Object.entries(table.needs ?? {})) {
    const found = model.config[key];
    if (found === value) continue;
    throw refuse(
      options,
      `vLLM's class for ${model.modelType} has ${what} only with ${key} ${value}, and the config has ${found ?? "none"}: its loader would stop at the checkpoint's`,
      { modelType: model.modelType, key, wanted: value, found },
    );
  }
}

function checkAttention(model: Model, table: EngineTable, options: VllmOptions): void {
  const { tp } = options;
  const heads = number(model, "num_attention_heads");
  if (heads % tp !== 0)
    throw refuse(options, `${heads} heads over tp=${tp} ranks would split a head`, { heads, tp });
  const keyValueHeads = number(model, "num_key_value_heads");
  if (keyValueHeads > 0) {
    const fits = keyValueHeads % tp === 0 || (table.replicatesKeyValues && tp % keyValueHeads === 0);
    if (!fits) {
      const how = table.replicatesKeyValues
        ? "neither is a multiple of the other"
        : "it does not replicate them";
      throw refuse(options, `${keyValueHeads} heads of keys and values over tp=${tp} ranks: ${how}`, {
        keyValueHeads,
        tp,
      });
    }
  }
  const rows = number(model, "vocab_size");
  const padded = paddedVocabulary(rows);
  if (padded % tp !== 0) {
    throw refuse(
      options,
      `${padded} rows of the vocabulary (${rows}, padded to ${vocabularyPadding}) over tp=${tp} ranks are uneven`,
      {
        rows,
        padded,
        tp,
      },
    );
  }
}

/** Intermediate sizes of the blocks that the model has. */
function checkFeedForward(model: Model, table: EngineTable, options: VllmOptions): void {
  const { tp, dp, pp } = options;
  const even = (what: string, size: number, ranks: number): void => {
    if (size % ranks === 0) return;
    throw refuse(options, `${what} ${size} over ${ranks} ranks is uneven`, { size, ranks });
  };
  if (model.tensors.some(({ name }) => /\.mlp\.(gate_proj|gate_up_proj|down_proj)\.weight$/.test(name))) {
    even("intermediate_size", number(model, "intermediate_size"), tp);
  }
  if (!hasExperts(model)) return;
  const experts = number(model, "moe_intermediate_size") || number(model, "intermediate_size");
  even(
    "the experts' intermediate size",
    experts,
    table.dividesByWorld === true ? tp * dp * pp : expertTensorRanks(options),
  );
  even("the shared experts' intermediate size", sharedSize(model), sharedRanks(table, options));
}

function sharedSize(model: Model): number {
  return (
    number(model, "shared_expert_intermediate_size") ||
    number(model, "n_shared_experts") * number(model, "moe_intermediate_size")
  );
}

/** Ranks over which shared experts are cut. */
function sharedRanks(table: EngineTable, options: VllmOptions): number {
  const mayBeWhole = table.layer.some(({ cut }) => cut === "sharedColumn");
  return mayBeWhole && replicatesShared(options) ? 1 : options.tp;
}

function checkExperts(model: Model, table: EngineTable, options: VllmOptions): void {
  const { tp, redundant, ep } = options;
  const experts = expertCount(model);
  const ranks = expertRanks(options);
  if (table.ranksWithinExperts === true && tp > experts) {
    throw refuse(options, `tp=${tp} is more than the ${experts} experts`, { experts, tp });
  }
  if (ranks > experts + redundant) {
    throw refuse(options, `${experts + redundant} experts for ${ranks} ranks leave ranks without any`, {
      experts,
      ranks,
    });
  }
  if (table.evenExperts === true && experts % ranks !== 0) {
    throw refuse(options, `${experts} experts over ${ranks} ranks are uneven, which vLLM does not load`, {
      experts,
      ranks,
    });
  }
  if (redundant === 0) return;
  if (!ep) throw refuse(options, "redundant experts need ep", { redundant });
  if (table.redundantExperts !== true) {
    throw refuse(options, `vLLM balances no redundant experts for ${model.modelType}`, { redundant });
  }
  if ((experts + redundant) % ranks !== 0) {
    throw refuse(
      options,
      `${experts} experts and ${redundant} redundant ones over ${ranks} ranks are uneven, which EPLB does not serve`,
      {
        experts,
        redundant,
        ranks,
      },
    );
  }
}

function checkStages(model: Model, table: EngineTable, options: VllmOptions): void {
  const layers = number(model, "num_hidden_layers");
  const { pp, partition } = options;
  if (
    partition !== undefined &&
    (partition.length !== pp || partition.reduce((a, b) => a + b, 0) !== layers)
  ) {
    throw refuse(
      options,
      `partition ${partition.join(":")} does not share ${layers} layers out over pp=${pp} stages`,
      {
        partition,
        layers,
        pp,
      },
    );
  }
  const bounds = stageBounds(options, layers);
  const empty = bounds.findIndex((bound, stage) => stage > 0 && bound === bounds[stage - 1]);
  if (empty > 0)
    throw refuse(options, `${layers} layers leave stage ${empty - 1} of ${pp} without a layer`, {
      layers,
      pp,
    });
  if (table.expertsInEachStage !== true) return;
  const sparse = new Set(model.tensors.map(({ name }) => /\.layers\.(\d+)\..*\.experts\./.exec(name)?.[1]));
  for (let stage = 0; stage < pp; stage++) {
    const own = Array.from({ length: bounds[stage + 1]! - bounds[stage]! }, (_, at) => bounds[stage]! + at);
    if (own.some((layer) => sparse.has(String(layer)))) continue;
    throw refuse(
      options,
      `stage ${stage} of ${pp} has no layer with experts, without which vLLM's class for ${model.modelType} does not start`,
      { stage, pp, layers: own },
    );
  }
}

/** Blocks that share a scale must not be parted, and parts of a parameter begin with a block. */
function checkBlocks(
  model: Model,
  table: EngineTable,
  options: VllmOptions,
  [rows, columns]: readonly [number, number],
): void {
  const { tp } = options;
  const whole = (what: string, size: number, ranks: number, block: number, always = false): void => {
    if (size % (ranks * block) === 0 || (ranks === 1 && !always)) return;
    throw refuse(
      options,
      `${what} of ${size} over ${ranks} ranks would split a block of ${block} that shares a scale`,
      {
        size,
        ranks,
        block,
      },
    );
  };
  const heads = number(model, "num_attention_heads");
  const keyValueHeads = number(model, "num_key_value_heads");
  if (model.config.kv_lora_rank === undefined) {
    const headDim = number(model, "head_dim");
    whole("the queries", heads * headDim, tp, rows, true);
    whole("the keys", keyValueHeads * headDim, Math.min(tp, keyValueHeads), rows, true);
    whole("the attention's output", heads * headDim, tp, columns);
  } else {
    const { config } = model;
    if (config.q_lora_rank !== null) whole("q_lora_rank", number(model, "q_lora_rank"), 1, rows, true);
    whole(
      "q_b_proj",
      heads * (number(model, "qk_nope_head_dim") + number(model, "qk_rope_head_dim")),
      tp,
      rows,
    );
    whole("kv_b_proj", heads * (number(model, "qk_nope_head_dim") + number(model, "v_head_dim")), tp, rows);
    whole("the attention's output", heads * number(model, "v_head_dim"), tp, columns);
  }
  if (model.tensors.some(({ name }) => /\.mlp\.gate_proj\.weight$/.test(name))) {
    whole("intermediate_size", number(model, "intermediate_size"), tp, rows, true);
    whole("intermediate_size", number(model, "intermediate_size"), tp, columns);
  }
  if (!hasExperts(model)) return;
  const experts = number(model, "moe_intermediate_size");
  whole("the experts' intermediate size", experts, expertTensorRanks(options), rows, true);
  // The class looks at it for all of tp, dealt or not.
  whole("the experts' intermediate size", experts, expertTensorRanks(options), columns, tp > 1);
  const shared = sharedRanks(table, options);
  whole("the shared experts' intermediate size", sharedSize(model), shared, rows, true);
  whole("the shared experts' intermediate size", sharedSize(model), shared, columns);
}
