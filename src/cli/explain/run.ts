/** What `tensorbus explain` does. */
import type { Command } from "commander";
import { distance } from "fastest-levenshtein";
import { TensorBusError } from "../../errors.ts";
import { holdingOf } from "../../layout/index.ts";
import { LocalLayouts } from "../../model/parts/local.ts";
import type { PartedSide } from "../../model/parts/parted.ts";
import { partView } from "../../model/parts/views.ts";
import type { Spec, SpecSide } from "../../model/spec.ts";
import { formatPlacement, type PlanInput, type TensorInput, toJSON } from "../../plan/index.ts";
import type { Planned } from "../plan/load.ts";
import { loadSubject } from "../plan/subject.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatRanks } from "../ui/format.ts";
import type { ExplainOptions } from "./command.ts";
import { type Explained, formatExplanation } from "./report.ts";

/** Says where the parts of a rank come from and go to. */
export async function runExplain(
  context: CommandContext,
  command: Command,
  path: string | undefined,
  options: ExplainOptions,
): Promise<void> {
  const explained = explain(await loadSubject(command, path, options), options);
  const report = options.json
    ? JSON.stringify(jsonReport(explained))
    : formatExplanation(context.stdout, explained);
  await context.stdout.line(report);
}

function explain({ spec, plan }: Planned, { tensor: name, rank }: ExplainOptions): Explained {
  const { input } = plan;
  const index = input.tensors.findIndex((tensor) => tensor.name === name);
  if (index < 0) throw unknownError(spec, input, name);
  const tensor = input.tensors[index]!;
  const sides = [spec.source, spec.target].filter(({ mesh }) => mesh.ranks.includes(rank));
  if (sides.length === 0) {
    throw new TensorBusError("TB_MESH", `rank ${rank} is on neither side of ${spec.file}`, {
      details: { rank },
    });
  }
  const explanation = plan.explain(index, rank);
  if (explanation.source === undefined && explanation.target === undefined) {
    throw emptyError(input, tensor, rank, sides);
  }
  const { source, target } = input.pairs[tensor.pair]!;
  return {
    spec,
    plan,
    tensor,
    pair: { source, target },
    rank,
    explanation,
    views: viewsOf(spec, index, rank),
  };
}

/** The planned tensors of a parameter of the target. */
function partsOf({ target, joined }: NonNullable<Spec["parts"]>, name: string): string[] {
  return joined.parts
    .filter((planned) => {
      const parameter = target.parameters[target.parts[planned.target]!.parameter]!;
      return parameter.name === name || parameter.aliases.includes(name);
    })
    .map((planned) => planned.name);
}

/** Says where a planned tensor lies in the parameters of the rank's sides. */
function viewsOf({ parts }: Spec, index: number, rank: number): Explained["views"] {
  if (parts === undefined) return {};
  const { joined, source, target } = parts;
  const view = (side: "source" | "target", parted: PartedSide) =>
    partView(joined, new LocalLayouts(parted), side, index, rank);
  return { source: view("source", source), target: view("target", target) };
}

function unknownError({ file, parts }: Spec, { tensors }: PlanInput, name: string): TensorBusError {
  const made = parts === undefined ? [] : partsOf(parts, name);
  if (made.length > 0) {
    return new TensorBusError(
      "TB_TENSOR_UNKNOWN",
      `${name} is a parameter of the target, made of ${made.slice(0, 8).join(", ")}: name one of them`,
      {
        details: { parameter: name, parts: made },
      },
    );
  }
  const near = nearNames(
    tensors.map((tensor) => tensor.name),
    name,
  );
  const hint = near.length === 0 ? "" : `; near it: ${near.join(", ")}`;
  return new TensorBusError("TB_TENSOR_UNKNOWN", `${file} has no tensor ${JSON.stringify(name)}${hint}`, {
    details: { tensor: name, tensors: tensors.length, near },
  });
}

const mostNear = 3;

/** Names that have the name in them, or else those that differ from it in the fewest letters, if that is not most of it. */
function nearNames(names: readonly string[], name: string): string[] {
  const holding = names.filter((other) => name !== "" && other.includes(name));
  if (holding.length > 0) return holding.slice(0, mostNear);
  return names
    .map((other) => ({ other, letters: distance(name, other) }))
    .filter(({ letters }) => letters <= name.length / 2)
    .sort((a, b) => a.letters - b.letters)
    .slice(0, mostNear)
    .map(({ other }) => other);
}

function emptyError(
  input: PlanInput,
  tensor: TensorInput,
  rank: number,
  sides: readonly SpecSide[],
): TensorBusError {
  const holders = (["source", "target"] as const).map((side) => {
    const layout = input.pairs[tensor.pair]![side];
    return [...layout.mesh.ranks].filter((other) => {
      const holding = holdingOf(layout, tensor.shape, other, tensor[side] ?? {});
      return holding !== undefined && !holding.localShape.includes(0);
    });
  });
  const [source, target] = holders.map((ranks) => (ranks.length === 0 ? "none" : formatRanks(ranks)));
  return new TensorBusError(
    "TB_RANK_EMPTY",
    `rank ${rank} of ${sides.map(({ name }) => name).join(" and ")} holds nothing of ${tensor.name}; ` +
      `at the source ranks ${source} do, at the target ranks ${target}`,
    { details: { rank, tensor: tensor.name, source: holders[0], target: holders[1] } },
  );
}

function jsonReport({ spec, plan, tensor, pair, rank, explanation, views }: Explained) {
  const { routing, source, target, arrivals, departures } = explanation;
  return toJSON({
    spec: spec.file,
    digest: plan.digest,
    tensor: {
      name: tensor.name,
      shape: tensor.shape,
      dtype: tensor.dtype,
      targetDtype: tensor.targetDtype ?? tensor.dtype,
      source: pair.source.placements.map(formatPlacement),
      target: pair.target.placements.map(formatPlacement),
      strategy: routing.strategy,
      groups: routing.groups,
      reason: routing.reason,
    },
    rank,
    holds: { source: source ?? null, target: target ?? null },
    ...(spec.parts !== undefined && {
      views: { source: views.source ?? null, target: views.target ?? null },
    }),
    arrivals,
    departures,
  });
}
