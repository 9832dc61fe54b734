/**
 * The files that vLLM's ShardedStateLoader reads (`--load-format sharded_state`): one for each rank of its tensor parallelism, with
 * the state as `model.load_weights()` leaves it. Its rules, learned from that loader: a parameter stands under the smallest of
 * its names; attention layers have float32 scalars that no checkpoint has; empty parameters are left out.
 */
import { TensorBusError } from "../errors.ts";
import type { Model } from "../model/config.ts";
import { applyParts } from "../model/parts/apply.ts";
import { LocalLayouts } from "../model/parts/local.ts";
import { proveParts } from "../model/parts/proof.ts";
import { type RankParameter, rankParameters } from "../model/parts/rank.ts";
import { parsePreset } from "../model/presets/options.ts";
import { presetSide } from "../model/presets/side.ts";
import { readVllmOptions } from "../model/presets/vllm-options.ts";
import { SharedLists, type TargetFile, type TargetParameter } from "./target.ts";

interface EngineTarget {
  readonly files: readonly TargetFile[];
  /** Tensors of the checkpoint that the engine does without, and why. */
  readonly dropped: ReadonlyMap<string, string>;
  /** The name of the command that loads the files. */
  readonly tp: number;
  readonly ep: boolean;
}

/** What each attention layer keeps of scales that are not in use. */
const attentionScales = ["_q_scale", "_k_scale", "_v_scale", "_prob_scale"];

/**
 * `TB_PRESET` for sizes that the model does not have, or that such files cannot hold: their loader knows no rank but that of
 * tensor parallelism, so that stages of a pipeline, or data-parallel ranks that differ, would read each other's.
 */
export function engineTarget(preset: string, model: Model): EngineTarget {
  const parsed = parsePreset(preset);
  if (parsed.name !== "vllm") throw unsupported(preset, "only the sharded_state of vllm can be written");
  const { tp, dp, pp, ep } = readVllmOptions(parsed);
  if (pp > 1) {
    throw unsupported(
      preset,
      "its loader names files by the rank of tensor parallelism alone, and stages of a pipeline would share them",
    );
  }
  const side = applyParts(presetSide(preset, model), model.tensors, { modelDtype: model.dtype });
  const layouts = new LocalLayouts(side);
  proveParts(layouts);
  const parameters = side.ranks.map((rank) => [...rankParameters(layouts, rank)]);
  for (let rank = tp; rank < tp * dp; rank++) {
    const odd = firstDifference(parameters[rank]!, parameters[rank % tp]!);
    if (odd === undefined) continue;
    throw unsupported(
      preset,
      `data-parallel rank ${Math.floor(rank / tp)} holds another part of ${odd} than rank 0, and the loader gives both one file`,
    );
  }
  const lists = new SharedLists();
  const files = parameters.slice(0, tp).map((list, rank): TargetFile => {
    const written = list.flatMap((parameter) => parameterOf(parameter, lists));
    const scalars = attentionLayers(list).flatMap((layer) =>
      attentionScales.map(
        (name): TargetParameter => ({
          name: `${layer}.${name}`,
          shape: [],
          dtype: "float32",
          boxes: [],
          constant: 1,
        }),
      ),
    );
    const name = `model-rank-${rank}-part-0.safetensors`;
    return {
      name,
      parameters: [...written, ...scalars],
      metadata: {
        format: "pt",
        "tensorbus.file": name,
        "tensorbus.engine": preset,
        "tensorbus.rank": String(rank),
        "tensorbus.tp": String(tp),
        "tensorbus.ep": String(ep),
      },
    };
  });
  return { files, dropped: side.dropped, tp, ep };
}

function unsupported(preset: string, why: string): TensorBusError {
  return new TensorBusError("TB_PRESET", `${preset}: ${why}`, { details: { preset } });
}

/** Under the smallest of its names; nothing for one without elements. */
function parameterOf(
  { name, aliases, shape, dtype, boxes, constant }: RankParameter,
  lists: SharedLists,
): TargetParameter[] {
  if (shape.includes(0)) return [];
  const smallest = [name, ...aliases].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))[0]!;
  return [
    {
      name: smallest,
      shape: lists.share(shape),
      dtype,
      boxes: boxes.map(({ tensor, start, length, at, axes }) => ({
        tensor,
        start: lists.share(start),
        length: lists.share(length),
        at: lists.share(at),
        axes: lists.share(axes),
      })),
      ...(constant !== undefined && { constant }),
    },
  ];
}

/** The attention modules of a rank: `model.layers.0.self_attn.attn`, or where DeepSeek's wrapper has it. */
function attentionLayers(parameters: readonly RankParameter[]): string[] {
  const layers = new Map<string, string>();
  for (const { name, aliases } of parameters) {
    const [, module] = /^(.*\.\d+\.(?:self_attn|attn))\./.exec(name) ?? [];
    if (module === undefined) continue;
    const isWrapped = aliases.some((alias) => alias.startsWith(`${module}.mla_attn.`));
    if (isWrapped) layers.set(module, `${module}.mla_attn.mla_attn`);
    else if (!layers.has(module)) layers.set(module, `${module}.attn`);
  }
  return [...layers.values()];
}

/** The name of a parameter that two ranks hold differently. */
function firstDifference(one: readonly RankParameter[], other: readonly RankParameter[]): string | undefined {
  const texts = new Map(other.map((parameter) => [parameter.name, JSON.stringify(parameter)]));
  const odd = one.find((parameter) => texts.get(parameter.name) !== JSON.stringify(parameter));
  return (
    odd?.name ??
    (one.length === other.length
      ? undefined
      : other.find(({ name }) => !one.some((each) => each.name === name))?.name)
  );
}
