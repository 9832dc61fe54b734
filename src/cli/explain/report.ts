import { bytesOf, formatPlacement, type Holding } from "../../layout/index.ts";
import type { PartView } from "../../model/parts/views.ts";
import type { Spec } from "../../model/spec.ts";
import type { Box, Explanation, PairInput, Place, Plan, TensorInput } from "../../plan/index.ts";
import { formatStrategy } from "../plan/tables.ts";
import { formatBytes, plural } from "../ui/format.ts";
import type { Output } from "../ui/output.ts";
import { type Column, formatTable } from "../ui/table.ts";
import {
  arrivalGroups,
  departureGroups,
  type PartColumn,
  type PartGroup,
  passedOnGroups,
  type ShownPart,
} from "./groups.ts";

/** One rank's parts of one tensor, and what there is to say about them. */
export interface Explained {
  readonly spec: Spec;
  readonly plan: Plan;
  readonly tensor: TensorInput;
  readonly pair: PairInput;
  readonly rank: number;
  readonly explanation: Explanation;
  /** The parameter that each side's local tensor is a view of, if the spec's sides have parameters. */
  readonly views: { readonly source?: PartView | undefined; readonly target?: PartView | undefined };
}

/** Longer tables are cut; `--json` has all. */
const mostRows = 16;

export function formatExplanation(output: Output, explained: Explained): string {
  const { tensor, pair, explanation } = explained;
  const { source, target, arrivals, departures } = explanation;
  const sections: string[] = [describeTensor(output, explained)];
  if (target !== undefined) {
    const groups = arrivalGroups(tensor, pair, arrivals);
    sections.push(...formatSection(output, tensor, "Where its part of the target comes from", groups));
  }
  if (source !== undefined) {
    const groups = departureGroups(tensor, pair, departures);
    sections.push(...formatSection(output, tensor, "Where its part of the source goes", groups));
    if (groups.length === 0) sections.push("  Nowhere: others that hold the same send it.");
  }
  const passedOn = passedOnGroups(departures);
  if (passedOn.length > 0) sections.push(...formatSection(output, tensor, "What it passes on", passedOn));
  return sections.join("\n\n");
}

function describeTensor({ colors }: Output, explained: Explained): string {
  const { tensor, pair, explanation } = explained;
  const { dtype, targetDtype = dtype } = tensor;
  const layouts = [pair.source, pair.target].map(
    ({ placements }) => `[${placements.map(formatPlacement).join(", ")}]`,
  );
  const types = dtype === targetDtype ? dtype : `${dtype} -> ${targetDtype}`;
  const held = (["source", "target"] as const).flatMap((side) => {
    const holding = explanation[side];
    if (holding === undefined) return [];
    const view = explained.views[side];
    return [describeHolding(explained, side, holding), ...(view === undefined ? [] : [describeView(view)])];
  });
  return [
    `${colors.bold(tensor.name)}  ${tensor.shape.join(" x ") || "scalar"}, ${types}`,
    `${layouts.join(" -> ")}, ${formatStrategy(explanation.routing)}`,
    ...held,
  ].join("\n");
}

function describeHolding(
  { spec, tensor, rank }: Explained,
  side: "source" | "target",
  { runs, localShape }: Holding,
): string {
  const { dtype, targetDtype = dtype } = tensor;
  const elements = localShape.reduce((product, extent) => product * BigInt(extent), 1n);
  const bytes = bytesOf(side === "source" ? dtype : targetDtype, elements);
  const held = runs.map((own, dim) => formatRuns(own, tensor.shape[dim]!)).join(", ");
  const local = localShape.length === 0 ? "" : `, ${localShape.join(" x ")} locally`;
  return `rank ${rank} of ${spec[side].name} holds [${held}]${local}, ${formatBytes(bytes)}`;
}

/** The place of the local tensor in a parameter: it moves to and from there in place. */
function describeView({ parameter, parameterShape, dtype, offset, strides }: PartView): string {
  const steps = strides.length === 0 ? "" : `, strides [${strides.join(", ")}]`;
  return `  within ${parameter} [${parameterShape.join(", ")}] ${dtype}, from element ${offset} on${steps}`;
}

const mostRuns = 3;

/** `0:4+8:12`: strided shards hold several runs of a dimension. */
function formatRuns(runs: Holding["runs"][number], extent: number): string {
  const [first] = runs;
  if (first?.start === 0 && first.length === extent) return ":";
  const slices = runs.slice(0, mostRuns).map(({ start, length }) => `${start}:${start + length}`);
  return slices.join("+") + (runs.length > mostRuns ? "+..." : "");
}

function formatSection(
  output: Output,
  tensor: TensorInput,
  title: string,
  groups: readonly PartGroup[],
): string[] {
  const [first = "", ...others] = groups.map((group) => formatGroup(output, tensor, group));
  return [`${output.colors.bold(title)}\n${first}`.trimEnd(), ...others];
}

function formatGroup(output: Output, { shape }: TensorInput, group: PartGroup): string {
  const { title, here, parts, columns } = group;
  const there = here === "from" ? "to" : "from";
  const shown: { readonly column: Column; readonly text: (part: ShownPart) => string }[] = [
    { column: { head: "part" }, text: ({ global }) => formatBox(global, shape) },
    { column: { head: "here", leaves: 2 }, text: (part) => formatPlace(part[here]) },
    { column: { head: "bytes", align: "right", leaves: 1 }, text: ({ bytes }) => formatBytes(bytes) },
    ...columns.map((column) => ({
      column: { head: headOf(column, there), ...(column.kind === "peer" ? {} : { leaves: 0 }) },
      text: (part: ShownPart) => textOf(column, part, there),
    })),
  ];
  // "then to" is said only if something goes on.
  const said = shown.filter(({ text }) => parts.some((part) => text(part) !== ""));
  const rows = parts.slice(0, mostRows).map((part) => said.map(({ text }) => text(part)));
  const bytes = parts.reduce((sum, part) => sum + part.bytes, 0n);
  const lines = [
    `  ${title}: ${plural(parts.length, "part")}, ${formatBytes(bytes)}`,
    formatTable(
      output,
      said.map(({ column }) => column),
      rows,
    ),
  ];
  if (parts.length > mostRows) {
    const more = plural(parts.length - mostRows, "more part");
    lines.push(output.colors.dim(`  ... and ${more} (--json has them all)`));
  }
  return lines.join("\n");
}

function headOf(column: PartColumn, there: "from" | "to"): string {
  if (column.kind === "ranks") return column.head;
  return column.kind === "peer" ? there : "there";
}

function textOf(column: PartColumn, part: ShownPart, there: "from" | "to"): string {
  if (column.kind === "ranks") return column.of(part);
  return column.kind === "peer" ? `rank ${part[there].rank}` : formatPlace(part[there]);
}

function formatPlace({ box, shape }: Place): string {
  return formatBox(box, shape);
}

/** `[0:128, :]`, as Python slices a tensor of this shape. */
function formatBox(box: Box, shape: readonly number[]): string {
  const slices = box.map(([start, end], dim) =>
    start === 0n && end === BigInt(shape[dim]!) ? ":" : `${start}:${end}`,
  );
  return `[${slices.join(", ")}]`;
}
