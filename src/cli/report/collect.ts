import { itemSize } from "../../layout/index.ts";
import type { JoinedSides } from "../../model/parts/join.ts";
import type { PartedSide } from "../../model/parts/parted.ts";
import type { PartsProof } from "../../model/parts/proof.ts";
import { summarizeParts } from "../../model/parts/summary.ts";
import type { ResolvedSpec, SpecSide } from "../../model/spec-resolve.ts";
import type { PatternStats, Plan, PlanStats, TopologyInput } from "../../plan/index.ts";
import { reportBudgets } from "./budgets.ts";
import { channelColumns, describeSchedule } from "./channels.ts";
import type { RankColumns, Report, ReportParameters, ReportPattern, ReportSide, Summary } from "./report.ts";

/** What is said of a plan besides what it holds. */
interface ReportSource extends Omit<ResolvedSpec, "ruleOf"> {
  readonly file: string;
  readonly plan: Plan;
  readonly verified: boolean;
  /** If both sides have parameters. */
  readonly parts?: ReportedParts;
}

/** What is said of the target's parameters. */
interface ReportedParts {
  readonly target: PartedSide;
  readonly joined: JoinedSides;
  readonly proofs: { readonly target: PartsProof };
}

/** Makes the report of a plan; the same in the command line and in the page that plans again. */
export function collectReport(from: ReportSource): Report {
  const stats = from.plan.stats();
  const schedule = from.plan.schedule();
  return {
    summary: { ...summarize(from, stats), schedule: schedule && describeSchedule(schedule) },
    ranks: rankColumns(stats, from.input.topology),
    channels: channelColumns(from.plan.channels(), schedule),
  };
}

function summarize(from: ReportSource, stats: PlanStats): Omit<Summary, "schedule"> {
  const withinOf = parameterNames(from.parts);
  const patterns = stats.patterns.map((pattern) => describePattern(pattern, withinOf.get(pattern.example)));
  return {
    name: nameOf(from.file),
    digest: from.plan.digest,
    verified: from.verified,
    sides: [from.source, from.target].map(describeSide),
    hasHosts: from.input.topology !== undefined,
    tensors: stats.tensors,
    sourceBytes: patterns.reduce((sum, { bytes }) => sum + bytes, 0),
    targetBytes: stats.patterns.reduce((sum, one) => sum + bytesOf(one, one.targetDtype), 0),
    sent: Number(stats.ranks.reduce((sum, rank) => sum + rank.sent, 0n)),
    copied: Number(stats.bytes.copy),
    chunks: stats.chunks,
    buckets: stats.buckets,
    waves: stats.waves,
    busiest: stats.busiest,
    imbalance: stats.imbalance,
    stages: stats.stages.map((stage) => ({ ...stage, bytes: Number(stage.bytes) })),
    patterns,
    parameters: from.parts && describeParameters(from.parts),
    budgets: reportBudgets(from.budget, from.plan),
  };
}

function nameOf(file: string): string {
  return file.slice(file.lastIndexOf("/") + 1).replace(/\.(ya?ml|json|tbplan)$/, "");
}

function describeSide({ name, mesh }: SpecSide): ReportSide {
  return { name, mesh: mesh.shape, dimNames: mesh.dimNames ?? [], ranks: [...mesh.ranks] };
}

function describeParameters({ target, joined, proofs }: ReportedParts): ReportParameters {
  const { parameters: count, pieces } = proofs.target;
  return { count, pieces, groups: summarizeParts(target, joined) };
}

/** By planned tensor, the parameter of the target that it is a part of, if that has another name. */
function parameterNames(parts: ReportedParts | undefined): ReadonlyMap<string, string> {
  const names = new Map<string, string>();
  if (parts === undefined) return names;
  const { target, joined } = parts;
  for (const planned of joined.parts) {
    const { name } = target.parameters[target.parts[planned.target]!.parameter]!;
    if (name !== planned.name) names.set(planned.name, name);
  }
  return names;
}

function describePattern(pattern: PatternStats, within: string | undefined): ReportPattern {
  const { shape, dtype, targetDtype, source, target, tensors, example } = pattern;
  const { strategy, groups, reason, costs } = pattern;
  const seconds = (nanoseconds: bigint) => Number(nanoseconds) / 1e9;
  return {
    ...{ shape, dtype, targetDtype, source, target, tensors, example, within, strategy, groups, reason },
    bytes: bytesOf(pattern, dtype),
    chunks: tensors * Number(pattern.chunks),
    costs: costs && {
      direct: seconds(costs.direct),
      ...(costs.all !== undefined && { all: seconds(costs.all) }),
      ...(costs.host !== undefined && { host: seconds(costs.host) }),
    },
  };
}

function bytesOf({ shape, tensors }: PatternStats, dtype: PatternStats["dtype"]): number {
  return shape.reduce((product, extent) => product * extent, tensors * itemSize(dtype));
}

function rankColumns(stats: PlanStats, topology: TopologyInput | undefined): RankColumns {
  const column = (key: "sent" | "received" | "copied" | "reduced" | "stagingBytes") =>
    Float64Array.from(stats.ranks, (entry) => Number(entry[key]));
  return {
    rank: Uint32Array.from(stats.ranks, ({ rank }) => rank),
    host: Uint32Array.from(stats.ranks, ({ rank }) => hostOf(topology, rank)),
    sent: column("sent"),
    received: column("received"),
    copied: column("copied"),
    reduced: column("reduced"),
    staged: column("stagingBytes"),
  };
}

function hostOf(topology: TopologyInput | undefined, rank: number): number {
  if (topology?.ranksPerHost !== undefined) return Math.floor(rank / topology.ranksPerHost);
  return topology?.hosts?.[rank] ?? rank;
}
