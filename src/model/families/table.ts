import type { DType } from "../../layout/index.ts";

/** `checkpoint`: as published and as `save_pretrained` writes it; `state_dict`: as transformers 5 holds it in memory. */
export const modelForms = ["checkpoint", "state_dict"] as const;
export type ModelForm = (typeof modelForms)[number];

/**
 * A key of a family's config. `absent` and `none` are what transformers' class makes of a key that is missing or null: a
 * number, an expression of other keys, or `null` for "there is none". A key without `absent` has to be there.
 */
export interface Key {
  readonly kind: "size" | "count" | "flag" | "list" | "text";
  readonly absent?: number | boolean | string | null;
  readonly none?: number | boolean | string | null;
  /** Other names of the key, which one version of transformers or another writes. */
  readonly aliases?: readonly string[];
  /** The most that it may be. */
  readonly most?: number;
}

/**
 * A tensor, or one of each layer (`{l}` in its name) and expert (`{e}`). `when` names keys and traits of the layer which
 * must be set, or with `!` must not be.
 */
export interface Row {
  readonly name: string;
  readonly shape: readonly string[];
  readonly when?: string;
  /** The type that it always has; that of the model unless given. */
  readonly dtype?: DType;
  /** Only in this form. */
  readonly form?: ModelForm;
  /** The weight of a linear layer, which quantization may replace. */
  readonly linear?: boolean;
  /** Only beside a head that predicts tokens. */
  readonly head?: boolean;
  /** Only in layers that predict further tokens. */
  readonly prediction?: boolean;
}

export type Config = Readonly<Record<string, number | boolean | string | readonly number[] | null>>;

export interface Family {
  /** The names of transformers' classes less what follows `For…` or `Model`. */
  readonly classes: readonly string[];
  readonly keys: Readonly<Record<string, Key>>;
  readonly rows: readonly Row[];
  /** How many experts a layer has, as an expression. */
  readonly experts?: string;
  /** True if a layer has experts: the trait `sparse`. */
  readonly sparse?: (config: Config, layer: number) => boolean;
  /** How many prediction layers there are, as an expression. */
  readonly predictionLayers?: string;
  /** Methods of quantization whose published form is known. */
  readonly quantized?: readonly ("fp8" | "mxfp4")[];
  /** Why a config is not of this family after all. */
  readonly refuse?: (config: Config) => string | undefined;
}

export const size = (absent?: Key["absent"], more: Partial<Key> = {}): Key => ({
  kind: "size",
  ...(absent !== undefined && { absent }),
  ...more,
});
export const flag = (absent: boolean): Key => ({ kind: "flag", absent, none: absent });

/** The keys that a config must have: one without them is no config of a model. */
export const decoderKeys = {
  vocab_size: size(),
  hidden_size: size(),
  num_hidden_layers: size(undefined, { most: 4096 }),
  num_attention_heads: size(),
  intermediate_size: size(),
} as const satisfies Record<string, Key>;

/** Heads of keys and values: what the class has by default; as many as queries if null. */
export const keyValueHeads = (absent: number | "num_attention_heads"): Key =>
  size(absent, { none: "num_attention_heads" });

/** Shared evenly unless the class or the config has another: the expression that says so is checked. */
export const evenHeads = "hidden_size / num_attention_heads";
export const headDim = (absent: number | typeof evenHeads): Key => size(absent, { none: evenHeads });

const layer = "model.layers.{l}";

/** `torch.nn.Linear`: its weight is (out, in). `bias` is the condition under which there is one. */
export function linear(name: string, out: string, into: string, bias?: string, when?: string): Row[] {
  const conditions = [when, bias === "always" ? undefined : bias].filter((part) => part !== undefined);
  const rows: Row[] = [
    { name: `${name}.weight`, shape: [out, into], linear: true, ...(when !== undefined && { when }) },
  ];
  if (bias !== undefined) {
    rows.push({
      name: `${name}.bias`,
      shape: [out],
      ...(conditions.length > 0 && { when: conditions.join(" ") }),
    });
  }
  return rows;
}

export function norm(name: string, width = "hidden_size", when?: string): Row {
  return { name: `${name}.weight`, shape: [width], ...(when !== undefined && { when }) };
}

interface AttentionTraits {
  /** Conditions of the biases of q, k and v, and of the output; none unless given. */
  readonly bias?: string;
  readonly outputBias?: string;
  /** Norms of q and k: over each head, or over all heads together; and their condition. */
  readonly norms?: "head" | "all";
  readonly normsWhen?: string;
}

const queries = "num_attention_heads * head_dim";
const keyValues = "num_key_value_heads * head_dim";

export function attention({ bias, outputBias, norms, normsWhen }: AttentionTraits): Row[] {
  const at = `${layer}.self_attn`;
  return [
    ...linear(`${at}.q_proj`, queries, "hidden_size", bias),
    ...linear(`${at}.k_proj`, keyValues, "hidden_size", bias),
    ...linear(`${at}.v_proj`, keyValues, "hidden_size", bias),
    ...linear(`${at}.o_proj`, "hidden_size", queries, outputBias),
    ...(norms === undefined
      ? []
      : [
          norm(`${at}.q_norm`, norms === "head" ? "head_dim" : queries, normsWhen),
          norm(`${at}.k_norm`, norms === "head" ? "head_dim" : keyValues, normsWhen),
        ]),
  ];
}

/** The three projections of a gated feed-forward block. */
export function gatedMlp(name: string, intermediate: string, bias?: string, when?: string): Row[] {
  return [
    ...linear(`${name}.gate_proj`, intermediate, "hidden_size", bias, when),
    ...linear(`${name}.up_proj`, intermediate, "hidden_size", bias, when),
    ...linear(`${name}.down_proj`, "hidden_size", intermediate, bias, when),
  ];
}

/** A gated block whose first two projections the checkpoint itself holds as one. */
export function fusedMlp(name: string, intermediate: string): Row[] {
  return [
    ...linear(`${name}.gate_up_proj`, `2 * ${intermediate}`, "hidden_size"),
    ...linear(`${name}.down_proj`, "hidden_size", intermediate),
  ];
}

export const denseMlp: Row[] = gatedMlp(`${layer}.mlp`, "intermediate_size");

/** The experts of a layer: one by one in a checkpoint, three-dimensional in memory. */
export function experts({
  checkpoint,
  memory = `${layer}.mlp`,
  count,
  intermediate,
}: {
  /** Says where the experts of the checkpoint stand, and what gate, up and down are called there. */
  readonly checkpoint: { readonly at: string; readonly names: readonly [string, string, string] };
  readonly memory?: string;
  readonly count: string;
  readonly intermediate: string;
}): Row[] {
  const [gate, up, down] = checkpoint.names.map((name) => `${checkpoint.at}.experts.{e}.${name}`);
  const single = [
    ...linear(gate!, intermediate, "hidden_size", undefined, "sparse"),
    ...linear(up!, intermediate, "hidden_size", undefined, "sparse"),
    ...linear(down!, "hidden_size", intermediate, undefined, "sparse"),
  ];
  return [
    ...single.map((row): Row => ({ ...row, form: "checkpoint" })),
    {
      name: `${memory}.experts.gate_up_proj`,
      shape: [count, `2 * ${intermediate}`, "hidden_size"],
      when: "sparse",
      form: "state_dict",
    },
    {
      name: `${memory}.experts.down_proj`,
      shape: [count, "hidden_size", intermediate],
      when: "sparse",
      form: "state_dict",
    },
  ];
}

export const gateNames = ["gate_proj", "up_proj", "down_proj"] as const;

export const blockNorms: readonly Row[] = [
  norm(`${layer}.input_layernorm`),
  norm(`${layer}.post_attention_layernorm`),
];

/** A decoder: the embedding, what each layer has, the last norm, and a head unless it is the embedding again. */
export function decoder(...layers: readonly (readonly Row[])[]): Row[] {
  return [
    { name: "model.embed_tokens.weight", shape: ["vocab_size", "hidden_size"] },
    ...layers.flat(),
    norm("model.norm"),
    {
      name: "lm_head.weight",
      shape: ["vocab_size", "hidden_size"],
      when: "!tie_word_embeddings",
      head: true,
    },
  ];
}
