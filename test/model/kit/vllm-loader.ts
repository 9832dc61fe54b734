/**
 * A naive loader: what each rank of vLLM holds of a small checkpoint, tensor by tensor and row by row, written from vLLM's
 * model classes and loaders (narrow, concatenate, stack) and from nothing of this package. It says for families without a
 * recording of vLLM's own what is expected, and is itself compared with the recordings of those that have one.
 */
interface NaiveTensor {
  readonly shape: readonly number[];
  readonly data: readonly number[];
}

/** A parameter of a rank: its name, then its other names; `dtype` if the class fixes it. */
export interface NaiveParameter extends NaiveTensor {
  readonly aliases: readonly string[];
  readonly dtype: "model" | "float32";
}

export interface NaiveParallel {
  readonly tp: number;
  readonly dp?: number;
  readonly pp?: number;
  readonly ep?: boolean;
  readonly redundant?: number;
  readonly roundRobin?: boolean;
}

type Config = Readonly<Record<string, number | boolean | null | undefined>>;
type Checkpoint = ReadonlyMap<string, NaiveTensor>;

/** `count` rows of the first dimension from `start` on; rows behind the end are zeros. */
function rows({ shape, data }: NaiveTensor, start: number, count: number): NaiveTensor {
  const width = shape.slice(1).reduce((a, b) => a * b, 1);
  const taken = data.slice(start * width, (start + count) * width);
  while (taken.length < count * width) taken.push(0);
  return { shape: [count, ...shape.slice(1)], data: taken };
}

/** Columns of a matrix. */
function columns({ shape, data }: NaiveTensor, start: number, count: number): NaiveTensor {
  const [height, width] = shape as [number, number];
  const taken: number[] = [];
  for (let row = 0; row < height; row++) {
    taken.push(...data.slice(row * width + start, row * width + start + count));
  }
  return { shape: [height, count], data: taken };
}

function below(...parts: readonly NaiveTensor[]): NaiveTensor {
  const height = parts.reduce((sum, { shape }) => sum + shape[0]!, 0);
  return { shape: [height, ...parts[0]!.shape.slice(1)], data: parts.flatMap(({ data }) => data) };
}

function stack(parts: readonly NaiveTensor[]): NaiveTensor {
  return { shape: [parts.length, ...parts[0]!.shape], data: parts.flatMap(({ data }) => data) };
}

/** Rows and columns exchanged. */
function transpose({ shape, data }: NaiveTensor): NaiveTensor {
  const [height, width] = shape as [number, number];
  const turned: number[] = [];
  for (let column = 0; column < width; column++) {
    for (let row = 0; row < height; row++) turned.push(data[row * width + column]!);
  }
  return { shape: [width, height], data: turned };
}

const zerosLike = ({ shape, data }: NaiveTensor): NaiveTensor => ({ shape, data: data.map(() => 0) });

/** One of the things that a three-dimensional tensor holds. */
function nth({ shape, data }: NaiveTensor, index: number): NaiveTensor {
  const size = shape.slice(1).reduce((a, b) => a * b, 1);
  return { shape: shape.slice(1), data: data.slice(index * size, (index + 1) * size) };
}

/** Everything that one rank holds. */
class NaiveRank {
  readonly held = new Map<string, NaiveParameter>();
  readonly #config: Config;
  readonly #checkpoint: Checkpoint;
  readonly #parallel: Required<NaiveParallel>;
  readonly #tpRank: number;
  readonly #ppRank: number;
  readonly #dpRank: number;

  constructor(config: Config, checkpoint: Checkpoint, parallel: NaiveParallel, rank: number) {
    this.#config = config;
    this.#checkpoint = checkpoint;
    this.#parallel = { dp: 1, pp: 1, ep: false, redundant: 0, roundRobin: false, ...parallel };
    const { tp, pp } = this.#parallel;
    this.#tpRank = rank % tp;
    this.#ppRank = Math.floor(rank / tp) % pp;
    this.#dpRank = Math.floor(rank / (tp * pp));
  }

  number(key: string): number {
    return Number(this.#config[key] ?? 0);
  }

  get isFirst(): boolean {
    return this.#ppRank === 0;
  }

  get isLast(): boolean {
    return this.#ppRank === this.#parallel.pp - 1;
  }

  tensor(name: string): NaiveTensor {
    const found = this.#checkpoint.get(name);
    if (found === undefined) throw new Error(`the checkpoint lacks ${name}`);
    return found;
  }

  has(name: string): boolean {
    return this.#checkpoint.has(name);
  }

  put(
    name: string,
    value: NaiveTensor,
    aliases: readonly string[] = [],
    dtype: "model" | "float32" = "model",
  ): void {
    this.held.set(name, { ...value, aliases, dtype });
  }

  /** vLLM's own sharing out of layers: the remainder goes to stages before the last. */
  *layers(): Generator<number> {
    const count = this.number("num_hidden_layers");
    const { pp } = this.#parallel;
    const sizes = Array.from({ length: pp }, () => Math.floor(count / pp));
    for (let more = 0; more < count % pp; more++) sizes[pp - 2 - more]! += 1;
    const first = sizes.slice(0, this.#ppRank).reduce((a, b) => a + b, 0);
    for (let layer = first; layer < first + sizes[this.#ppRank]!; layer++) yield layer;
  }

  column(tensor: NaiveTensor): NaiveTensor {
    const each = tensor.shape[0]! / this.#parallel.tp;
    return rows(tensor, each * this.#tpRank, each);
  }

  row(tensor: NaiveTensor): NaiveTensor {
    const each = tensor.shape[1]! / this.#parallel.tp;
    return columns(tensor, each * this.#tpRank, each);
  }

  vocabulary(tensor: NaiveTensor): NaiveTensor {
    const each = (Math.ceil(tensor.shape[0]! / 64) * 64) / this.#parallel.tp;
    return rows(tensor, each * this.#tpRank, each);
  }

  /** A rank's heads of keys or values: several ranks have the same one if there are fewer heads than ranks. */
  keyValue(tensor: NaiveTensor): NaiveTensor {
    const heads = this.number("num_key_value_heads");
    const { tp } = this.#parallel;
    const headRows = tensor.shape[0]! / heads;
    const own = Math.max(1, heads / tp);
    const first = heads >= tp ? own * this.#tpRank : Math.floor(this.#tpRank / (tp / heads));
    return rows(tensor, first * headRows, own * headRows);
  }

  /** Experts that the rank holds, slot by slot: the number of the checkpoint's expert. */
  experts(count: number): number[] {
    const { tp, dp, ep, redundant, roundRobin } = this.#parallel;
    const slots = Array.from({ length: count + redundant }, (_, slot) => slot % count);
    if (!ep) return slots;
    const ranks = tp * dp;
    const own = this.#dpRank * tp + this.#tpRank;
    if (roundRobin) return slots.filter((_, slot) => slot % ranks === own);
    const each = Math.floor(slots.length / ranks);
    const more = slots.length % ranks;
    const first = own * each + Math.min(own, more);
    return slots.slice(first, first + each + (own < more ? 1 : 0));
  }

  /** Shared experts are whole on each rank where those of an engine share tokens out. */
  get hasWholeShared(): boolean {
    const { tp, dp, ep } = this.#parallel;
    return ep && tp > 1 && dp > 1;
  }

  /** The range of an expert's intermediate size that this rank has. */
  within(intermediate: number): readonly [number, number] {
    const { tp, dp, ep } = this.#parallel;
    if (ep) return [0, intermediate];
    const each = intermediate / (tp * dp);
    return [each * (this.#dpRank * tp + this.#tpRank), each];
  }

  /** w13 and w2 of an expert: each half cut by itself, over all ranks of both dimensions where experts are not dealt. */
  expert(gate: NaiveTensor, up: NaiveTensor, down: NaiveTensor): readonly [NaiveTensor, NaiveTensor] {
    const [start, each] = this.within(gate.shape[0]!);
    return [below(rows(gate, start, each), rows(up, start, each)), columns(down, start, each)];
  }
}

/** The parameters of a rank, of a model of that model_type. */
export function naiveRank(
  modelType: string,
  config: Config,
  checkpoint: Checkpoint,
  parallel: NaiveParallel,
  rank: number,
): Map<string, NaiveParameter> {
  const held = new NaiveRank(config, checkpoint, parallel, rank);
  // Kimi-K2 has DeepSeek-V3's class, and Mistral is as Llama.
  const family = modelType === "kimi_k2" ? "deepseek_v3" : modelType;
  const tied = config.tie_word_embeddings === true;
  const everywhere = ["qwen2_moe", "qwen3_moe", "mixtral", "gemma3_text", "gpt_oss"].includes(family);
  const head = everywhere || held.isLast;
  if (everywhere || held.isFirst || (tied && held.isLast)) {
    const embedding = held.vocabulary(held.tensor("model.embed_tokens.weight"));
    const name = family === "gpt_oss" ? "model.embedding.weight" : "model.embed_tokens.weight";
    held.put(name, embedding, tied && head ? ["lm_head.weight"] : []);
  }
  for (const layer of held.layers()) loadLayer(family, held, `model.layers.${layer}`);
  if (head) {
    held.put("model.norm.weight", held.tensor("model.norm.weight"));
    if (!tied) held.put("lm_head.weight", held.vocabulary(held.tensor("lm_head.weight")));
  }
  return held.held;
}

function loadLayer(family: string, held: NaiveRank, layer: string): void {
  const norms = ["input_layernorm", "post_attention_layernorm"];
  if (family === "gemma3_text") norms.push("pre_feedforward_layernorm", "post_feedforward_layernorm");
  for (const name of norms) held.put(`${layer}.${name}.weight`, held.tensor(`${layer}.${name}.weight`));
  const mlp = `${layer}.mlp`;
  switch (family) {
    case "deepseek_v3":
      loadLatent(held, `${layer}.self_attn`);
      break;
    case "gpt_oss":
      loadAttention(family, held, `${layer}.self_attn`, `${layer}.attn`);
      held.put(`${layer}.attn.sinks`, held.column(held.tensor(`${layer}.self_attn.sinks`)));
      loadTransposed(held, mlp);
      return;
    case "mixtral":
      loadAttention(family, held, `${layer}.self_attn`);
      loadMixtral(held, mlp, `${layer}.block_sparse_moe`);
      return;
    default:
      loadAttention(family, held, `${layer}.self_attn`);
  }
  const router = `${mlp}.gate.weight`;
  if (!held.has(router)) {
    loadMlp(held, mlp);
    return;
  }
  if (family === "deepseek_v3") {
    const gate = `${mlp}.experts.gate`;
    held.put(router, held.tensor(router), [`${gate}.weight`]);
    const bias = `${mlp}.gate.e_score_correction_bias`;
    const aliases = [
      `${gate}.e_score_correction_bias`,
      `${mlp}.experts.routed_experts.e_score_correction_bias`,
    ];
    held.put(bias, held.tensor(bias), aliases, "float32");
    if (held.has(`${mlp}.shared_experts.gate_proj.weight`)) {
      const whole = held.hasWholeShared;
      loadMlp(held, `${mlp}.shared_experts`, `${mlp}.experts._shared_experts._layer`, whole);
    }
  } else if (family === "glm4_moe") {
    held.put(router, held.tensor(router), [], "float32");
    const bias = `${mlp}.gate.e_score_correction_bias`;
    held.put(bias, held.tensor(bias), [`${mlp}.experts.routed_experts.e_score_correction_bias`], "float32");
    loadMlp(held, `${mlp}.shared_experts`, `${mlp}.experts._shared_experts._layer`);
  } else if (family === "qwen2_moe") {
    held.put(router, held.tensor(router));
    const gate = `${mlp}.shared_expert_gate.weight`;
    held.put(gate, held.tensor(gate), [
      `${mlp}.shared_expert.expert_gate.weight`,
      `${mlp}.experts._shared_experts._layer.expert_gate.weight`,
    ]);
    loadMlp(held, `${mlp}.shared_expert`, `${mlp}.experts._shared_experts._layer`);
  } else {
    held.put(router, held.tensor(router), [`${mlp}.experts.gate.weight`]);
  }
  loadExperts(held, mlp, held.tensor(router).shape[0]!);
}

/** Latent attention: what comes in is one parameter, whole on each rank; heads are cut. */
function loadLatent(held: NaiveRank, at: string): void {
  const put = (name: string, value: NaiveTensor) =>
    held.put(`${at}.${name}.weight`, value, [`${at}.mla_attn.${name}.weight`]);
  const tensor = (name: string) => held.tensor(`${at}.${name}.weight`);
  if (held.has(`${at}.q_a_proj.weight`)) {
    put("fused_qkv_a_proj", below(tensor("q_a_proj"), tensor("kv_a_proj_with_mqa")));
    put("q_a_layernorm", tensor("q_a_layernorm"));
    put("q_b_proj", held.column(tensor("q_b_proj")));
  } else {
    put("q_proj", held.column(tensor("q_proj")));
    put("kv_a_proj_with_mqa", tensor("kv_a_proj_with_mqa"));
  }
  put("kv_a_layernorm", tensor("kv_a_layernorm"));
  put("kv_b_proj", held.column(tensor("kv_b_proj")));
  put("o_proj", held.row(tensor("o_proj")));
}

function loadMixtral(held: NaiveRank, memory: string, sparse: string): void {
  const fused = held.has(`${memory}.experts.gate_up_proj`);
  const router = held.tensor(`${fused ? memory : sparse}.gate.weight`);
  held.put(`${sparse}.gate.weight`, router);
  const names = ["w1", "w3", "w2"] as const;
  loadExperts(held, fused ? memory : sparse, router.shape[0]!, { to: sparse, names });
}

/** gpt-oss: experts stand transposed in the checkpoint, gate and up row by row; a bias is added by one rank. */
function loadTransposed(held: NaiveRank, mlp: string): void {
  for (const suffix of ["weight", "bias"]) {
    held.put(`${mlp}.router.${suffix}`, held.tensor(`${mlp}.router.${suffix}`));
  }
  const experts = `${mlp}.experts`;
  const of = (name: string) => held.tensor(`${experts}.${name}`);
  const [start, each] = held.within(of("down_proj").shape[1]!);
  const own = held.experts(of("down_proj").shape[0]!);
  const put = (name: string, values: readonly NaiveTensor[]) =>
    held.put(`${experts}.routed_experts.${name}`, stack(values));
  put(
    "w13_weight",
    own.map((expert) => rows(transpose(nth(of("gate_up_proj"), expert)), 2 * start, 2 * each)),
  );
  put(
    "w13_bias",
    own.map((expert) => rows(nth(of("gate_up_proj_bias"), expert), 2 * start, 2 * each)),
  );
  put(
    "w2_weight",
    own.map((expert) => columns(transpose(nth(of("down_proj"), expert)), start, each)),
  );
  put(
    "w2_bias",
    own.map((expert) => {
      const bias = nth(of("down_proj_bias"), expert);
      return start === 0 ? bias : zerosLike(bias);
    }),
  );
}

function loadAttention(family: string, held: NaiveRank, at: string, to = at): void {
  for (const suffix of ["weight", "bias"]) {
    if (family === "phi3") {
      if (suffix === "bias") continue;
      const all = held.tensor(`${at}.qkv_proj.weight`);
      const head = held.number("head_dim") || held.number("hidden_size") / held.number("num_attention_heads");
      const queries = head * held.number("num_attention_heads");
      const keys = head * held.number("num_key_value_heads");
      const [q, k, v] = [
        rows(all, 0, queries),
        rows(all, queries, keys),
        rows(all, queries + keys, keys),
      ] as const;
      held.put(`${at}.qkv_proj.weight`, below(held.column(q), held.keyValue(k), held.keyValue(v)));
    } else if (held.has(`${at}.q_proj.${suffix}`)) {
      const [q, k, v] = ["q", "k", "v"].map((name) => held.tensor(`${at}.${name}_proj.${suffix}`));
      held.put(`${to}.qkv_proj.${suffix}`, below(held.column(q!), held.keyValue(k!), held.keyValue(v!)));
    }
    const output = `${at}.o_proj.${suffix}`;
    const isIgnored = suffix === "bias" && ["qwen3", "qwen3_moe"].includes(family);
    if (held.has(output) && !isIgnored) {
      const value = held.tensor(output);
      held.put(`${to}.o_proj.${suffix}`, suffix === "bias" ? value : held.row(value));
    }
  }
  for (const name of ["q_norm", "k_norm"]) {
    if (held.has(`${at}.${name}.weight`))
      held.put(`${at}.${name}.weight`, held.tensor(`${at}.${name}.weight`));
  }
}

function loadMlp(held: NaiveRank, at: string, alias?: string, whole = false): void {
  const column = (value: NaiveTensor) => (whole ? value : held.column(value));
  const row = (value: NaiveTensor) => (whole ? value : held.row(value));
  const other = (name: string) => (alias === undefined ? [] : [`${alias}.${name}`]);
  for (const suffix of ["weight", "bias"]) {
    if (held.has(`${at}.gate_up_proj.${suffix}`)) {
      const both = held.tensor(`${at}.gate_up_proj.${suffix}`);
      const half = both.shape[0]! / 2;
      held.put(
        `${at}.gate_up_proj.${suffix}`,
        below(column(rows(both, 0, half)), column(rows(both, half, half))),
      );
    } else if (held.has(`${at}.gate_proj.${suffix}`)) {
      const [gate, up] = ["gate_proj", "up_proj"].map((name) => held.tensor(`${at}.${name}.${suffix}`));
      held.put(
        `${at}.gate_up_proj.${suffix}`,
        below(column(gate!), column(up!)),
        other(`gate_up_proj.${suffix}`),
      );
    }
    const down = `${at}.down_proj.${suffix}`;
    if (held.has(down)) {
      const value = held.tensor(down);
      held.put(down, suffix === "bias" ? value : row(value), other(`down_proj.${suffix}`));
    }
  }
}

function loadExperts(
  held: NaiveRank,
  mlp: string,
  count: number,
  {
    to = mlp,
    names = ["gate_proj", "up_proj", "down_proj"],
  }: { to?: string; names?: readonly string[] } = {},
): void {
  const fused = held.has(`${mlp}.experts.gate_up_proj`);
  const pairs = held.experts(count).map((expert) => {
    if (!fused) {
      const [gate, up, down] = names.map((name) => held.tensor(`${mlp}.experts.${expert}.${name}.weight`));
      return held.expert(gate!, up!, down!);
    }
    const both = nth(held.tensor(`${mlp}.experts.gate_up_proj`), expert);
    const half = both.shape[0]! / 2;
    return held.expert(
      rows(both, 0, half),
      rows(both, half, half),
      nth(held.tensor(`${mlp}.experts.down_proj`), expert),
    );
  });
  held.put(`${to}.experts.routed_experts.w13_weight`, stack(pairs.map(([w13]) => w13)));
  held.put(`${to}.experts.routed_experts.w2_weight`, stack(pairs.map(([, w2]) => w2)));
}
