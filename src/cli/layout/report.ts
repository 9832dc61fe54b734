import { itemSize } from "../../layout/index.ts";
import type { Model } from "../../model/config.ts";
import type { PartsProof } from "../../model/parts/proof.ts";
import type { ParameterBox, RankParameter } from "../../model/parts/rank.ts";
import { elementCount } from "../../model/tensor.ts";
import { formatBytes, formatRanks } from "../ui/format.ts";
import type { Output } from "../ui/output.ts";

interface LayoutReport {
  readonly engine: string;
  readonly model: Model;
  readonly rank: number;
  readonly proof: PartsProof;
  readonly parameters: readonly RankParameter[];
  readonly dropped: ReadonlyMap<string, string>;
}

/** The most tensors of a parameter that are named. */
const mostNamed = 6;

/** One rank's parameters: name, shape, type, and the tensors that they are made of; layers that are alike as one. */
export function formatLayout(output: Output, report: LayoutReport): string {
  const { engine, model, rank, proof, parameters, dropped } = report;
  const bytes = parameters.reduce(
    (sum, { shape, dtype }) => sum + (elementCount(shape) ?? 0) * itemSize(dtype),
    0,
  );
  const { bold, dim } = output.colors;
  const lines = [
    `${bold("Layout")} ${model.modelType} as ${engine}, rank ${rank} of ${proof.ranks}: ${parameters.length} parameters, ${formatBytes(bytes)}`,
    "",
  ];
  for (const { parameter, name, made } of alike(parameters)) {
    lines.push(`${name}  [${parameter.shape.join(", ")}] ${dtypeName(model, parameter)}`, dim(`    ${made}`));
  }
  lines.push(
    "",
    `${bold("Proved")} ${proof.tensors} tensors lie whole in ${proof.parameters} parameters on ${proof.ranks} ranks, ${proof.pieces} pieces`,
  );
  const reasons = new Map<string, number>();
  for (const reason of dropped.values()) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
  for (const [reason, count] of reasons) lines.push(`${bold("Left out")} ${count} tensors: ${reason}`);
  return lines.join("\n");
}

interface Alike {
  readonly parameter: RankParameter;
  /** With the numbers of all layers that have it, as `model.layers.{0..31}.input_layernorm.weight`. */
  readonly name: string;
  readonly made: string;
}

/** Parameters that differ by the number of their layer alone, in the order of the first. */
function alike(parameters: readonly RankParameter[]): Alike[] {
  const groups = new Map<
    string,
    { readonly parameter: RankParameter; readonly made: string; readonly layers: number[] }
  >();
  for (const parameter of parameters) {
    const layer = /\.layers\.(\d+)\./.exec(parameter.name)?.[1];
    const made = madeOf(parameter);
    const form =
      layer === undefined ? parameter.name : parameter.name.replace(`.layers.${layer}.`, ".layers.{}.");
    const key = `${form}|${parameter.shape.join()}|${parameter.dtype}|${made}`;
    const group = groups.get(key) ?? { parameter, made, layers: [] };
    if (layer !== undefined) group.layers.push(Number(layer));
    groups.set(key, group);
  }
  return Array.from(groups.values(), ({ parameter, made, layers }) => ({
    parameter,
    made,
    name:
      layers.length < 2
        ? parameter.name
        : parameter.name.replace(/\.layers\.\d+\./, `.layers.{${formatRanks(layers)}}.`),
  }));
}

/** Ranges of tensors as slices; those of experts are named by the first and counted. */
function madeOf({ boxes, zero, constant }: RankParameter): string {
  if (constant !== undefined) return `the constant ${constant}`;
  const named = boxes.slice(0, mostNamed).map(formatBox);
  if (boxes.length > mostNamed) named.push(`and ${boxes.length - mostNamed} more`);
  if (zero.length > 0) named.push("zeros");
  return named.join(" + ");
}

/** `self_attn.q_proj.weight[0:512, 0:64]`: a tensor's name within its layer, and the range of each dimension. */
function formatBox({ tensor, start, length }: ParameterBox): string {
  const name = tensor.replace(/^.*\.layers\.\d+\./, "");
  const ranges = start.map((begin, dim) => `${begin}:${begin + length[dim]!}`);
  return ranges.length === 0 ? name : `${name}[${ranges.join(", ")}]`;
}

/** `model` if the config has no type, and nothing else fixes it. */
export function dtypeName(model: Model, { dtype, fixedDtype }: RankParameter): string {
  return fixedDtype || model.hasDtype ? dtype : "model";
}
