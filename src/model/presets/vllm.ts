import { DeviceMesh, type Placement } from "../../layout/index.ts";
import type { Model } from "../config.ts";
import { evaluate } from "../families/expression.ts";
import type { PartRule, SideRules, SlotRule } from "../parts/rule.ts";
import { type MeshDim, meshOf, replicate, shard } from "./meshes.ts";
import { type PresetText, presetError } from "./options.ts";
import {
  dealsRoundRobin,
  expertRanks,
  readVllmOptions,
  replicatesShared,
  stageBounds,
  type VllmOptions,
} from "./vllm-options.ts";
import { checkVllm, expertCount, number, paddedVocabulary } from "./vllm-requirements.ts";
import { type Cut, type EngineRow, type EngineTable, vllmTables } from "./vllm-table.ts";

/** The rules of an engine of vLLM for a model; `firstRank` is the number of its rank 0. `TB_PRESET` for what it refuses. */
export function vllmSide(preset: PresetText, model: Model, firstRank = 0): SideRules {
  const options = readVllmOptions(preset);
  const table = Object.hasOwn(vllmTables, model.modelType) ? vllmTables[model.modelType] : undefined;
  if (table === undefined) {
    throw presetError(
      `${preset.text}: how vLLM holds ${model.modelType} was never compared with its own loader; known are ${Object.keys(vllmTables).join(", ")}`,
      { preset: preset.text, modelType: model.modelType, known: Object.keys(vllmTables) },
    );
  }
  checkVllm(model, table, options);
  return new RuleWriter(table, model, options, firstRank).side();
}

class RuleWriter {
  readonly #table: EngineTable;
  readonly #model: Model;
  readonly #options: VllmOptions;
  readonly #first: number;
  readonly #meshes: Record<string, DeviceMesh> = {};
  readonly #rules: PartRule[] = [];

  constructor(table: EngineTable, model: Model, options: VllmOptions, first: number) {
    this.#table = table;
    this.#model = model;
    this.#options = options;
    this.#first = first;
  }

  side(): SideRules {
    const { tp, dp, pp } = this.#options;
    const layers = number(this.#model, "num_hidden_layers");
    this.#rules.push({
      match: "{L}.{*}",
      layers: [layers, Number.MAX_SAFE_INTEGER],
      drop: "the engine loads layers that predict further tokens only to speculate with them",
    });
    const bounds = stageBounds(this.#options, layers);
    for (let stage = 0; stage < pp; stage++) this.#ends(stage);
    for (let stage = 0; stage < pp; stage++) this.#layers(stage, [bounds[stage]!, bounds[stage + 1]!]);
    return {
      ranks: Array.from({ length: tp * dp * pp }, (_, rank) => this.#first + rank),
      meshes: this.#meshes,
      parameters: this.#rules,
    };
  }

  #ends(stage: number): void {
    const { ends, tiedLast, embedding = "model.embed_tokens.weight" } = this.#table;
    const last = stage === this.#options.pp - 1;
    const everywhere = ends === "everywhere";
    const tied = this.#model.config.tie_word_embeddings === true;
    // A tensor of several stages is taken by a rule of each.
    const also = this.#options.pp > 1;
    const add = (row: EngineRow): void => this.#add(row, stage, also);
    if (everywhere || stage === 0 || (last && tied && tiedLast === true)) {
      const hasHead = tied && (everywhere || last);
      add({
        match: "model.embed_tokens.weight",
        into: embedding,
        cut: "vocabulary",
        ...(hasHead && { aliases: ["lm_head.weight"] }),
      });
    }
    if (everywhere || last) {
      add({ match: "model.norm.weight", into: "model.norm.weight", cut: "replicate" });
      if (!tied) add({ match: "lm_head.weight", into: "lm_head.weight", cut: "vocabulary" });
    }
  }

  #layers(stage: number, layers: readonly [number, number]): void {
    for (const row of this.#table.layer) {
      // Both halves of a fused tensor take it.
      this.#add(row, stage, row.slice !== undefined, this.#options.pp > 1 ? layers : undefined);
    }
  }

  #add(row: EngineRow, stage: number, also: boolean, layers?: readonly [number, number]): void {
    if (!this.#holds(row.when)) return;
    const { match } = row;
    const common = { match, ...(layers !== undefined && { layers }) };
    if (row.drop !== undefined) {
      this.#rules.push({ ...common, drop: row.drop });
      return;
    }
    const placed = this.#placed(row, row.cut ?? "replicate", stage);
    const { order, aliases, unit, dtype, slice, axes, constant } = row;
    this.#rules.push({
      ...common,
      ...(also && { also }),
      into: row.into!,
      ...(aliases !== undefined && { aliases }),
      ...placed,
      ...(order !== undefined && { order }),
      ...(unit !== undefined && { unit: this.#value(unit) }),
      ...(dtype !== undefined && { dtype }),
      ...(axes !== undefined && { axes }),
      ...(constant !== undefined && { constant }),
      ...(slice !== undefined && {
        slice: { dim: slice.dim, start: this.#value(slice.start), length: this.#value(slice.length) },
      }),
    });
  }

  /** Mesh, placements, and what follows from them. */
  #placed(row: EngineRow, cut: Cut, stage: number): Partial<PartRule> {
    if (row.experts !== undefined) return this.#expertPlaced(row, cut, stage);
    const { tp } = this.#options;
    const keyValueHeads = number(this.#model, "num_key_value_heads");
    switch (cut) {
      case "keyValue":
        if (keyValueHeads >= tp) return this.#dense("tp", [[tp, 1, shard(0)]], stage);
        return this.#dense(
          "kv",
          [
            [keyValueHeads, tp / keyValueHeads, shard(0)],
            [tp / keyValueHeads, 1, replicate],
          ],
          stage,
        );
      case "vocabulary": {
        const rows = number(this.#model, "vocab_size");
        const each = paddedVocabulary(rows) / tp;
        const sizes = Array.from({ length: tp }, (_, rank) =>
          Math.min(Math.max(rows - rank * each, 0), each),
        );
        const isEven = sizes.every((size) => size === each);
        return {
          ...this.#dense("tp", [[tp, 1, shard(0, isEven ? undefined : sizes)]], stage),
          ...(!isEven && { extent: each }),
        };
      }
      default: {
        const dim = this.#cutDim(cut);
        return this.#dense("tp", [[tp, 1, dim === undefined ? replicate : shard(dim)]], stage);
      }
    }
  }

  #cutDim(cut: Cut): number | undefined {
    if (cut === "sharedColumn" || cut === "sharedRow") {
      if (replicatesShared(this.#options)) return undefined;
      return cut === "sharedColumn" ? 0 : 1;
    }
    return cut === "column" ? 0 : cut === "row" ? 1 : undefined;
  }

  #expertPlaced(row: EngineRow, cut: Cut, stage: number): Partial<PartRule> {
    const { tp, dp, pp, redundant } = this.#options;
    const of = expertCount(this.#model);
    const dealt = expertRanks(this.#options) > 1;
    const dim = cut.startsWith("expertsDim") ? Number(cut.at(-1)) : undefined;
    const placement = dealt || dim === undefined ? replicate : shard(dim);
    // One row of ranks: data parallelism is outermost, tensor parallelism innermost.
    const ranks = Array.from(
      { length: dp * tp },
      (_, index) => Math.floor(index / tp) * pp * tp + (index % tp),
    );
    const groups = number(this.#model, "n_group");
    const slot: SlotRule = {
      ...(row.experts === "each" ? { index: "{e}" as const } : { axis: 0 }),
      of,
      ...(redundant > 0 && { copies: redundant }),
      ...(dealt && { dim: 0 }),
      ...(dealt && dealsRoundRobin(this.#options, groups) && { deal: "round_robin" as const }),
    };
    const placed =
      pp === 1 || dp === 1
        ? this.#mesh("experts", [{ size: dp * tp, stride: 1, placement }], stage)
        : this.#ranked("experts", ranks, placement, stage);
    const cutOver = !dealt && dp * tp > 1;
    return {
      ...placed,
      slot,
      ...(row.firstRankOnly === true && cutOver && { on: { dim: 0, coordinate: 0 } }),
    };
  }

  /** A mesh of dense parameters: data parallelism outermost, all engines alike. */
  #dense(
    name: string,
    inner: readonly (readonly [number, number, Placement])[],
    stage: number,
  ): Pick<PartRule, "mesh" | "placements"> {
    const { tp, dp, pp } = this.#options;
    return this.#mesh(
      name,
      [
        { size: dp, stride: pp * tp, placement: replicate },
        ...inner.map(([size, stride, placement]) => ({ size, stride, placement })),
      ],
      stage,
    );
  }

  #mesh(name: string, dims: readonly MeshDim[], stage: number): Pick<PartRule, "mesh" | "placements"> {
    const { mesh, placements } = meshOf(this.#firstOf(stage), dims);
    return { mesh: this.#named(name, stage, mesh), placements };
  }

  #ranked(
    name: string,
    ranks: readonly number[],
    placement: Placement,
    stage: number,
  ): Pick<PartRule, "mesh" | "placements"> {
    const first = this.#firstOf(stage);
    const own = new DeviceMesh([ranks.length], { ranks: ranks.map((rank) => first + rank) });
    return { mesh: this.#named(name, stage, own), placements: [placement] };
  }

  #firstOf(stage: number): number {
    return this.#first + stage * this.#options.tp;
  }

  /** The first mesh of a name stands for all: they are built alike. */
  #named(name: string, stage: number, mesh: DeviceMesh): string {
    const full = this.#options.pp > 1 ? `${name}@${stage}` : name;
    this.#meshes[full] ??= mesh;
    return full;
  }

  #value(expression: string): number {
    return evaluate(expression, (key) => number(this.#model, key));
  }

  #holds(when: string | undefined): boolean {
    if (when === undefined) return true;
    const { config, quantMethod } = this.#model;
    return when.split(" ").every((condition) => {
      const negated = condition.startsWith("!");
      const key = negated ? condition.slice(1) : condition;
      return (key === "fp8" ? quantMethod === "fp8" : Boolean(config[key])) !== negated;
    });
  }
}
