import { nameWithinLayer, summarizeParts } from "../../model/parts/summary.ts";
import type { Spec, SpecSide } from "../../model/spec.ts";
import type { Plan, PlanStats, Schedule } from "../../plan/index.ts";
import { largest } from "../budget/budget.ts";
import { formatBytes, formatCount, formatDuration, formatRanks, plural } from "../ui/format.ts";
import type { Output } from "../ui/output.ts";
import { formatFields, formatTable, type TableOf } from "../ui/table.ts";
import { busiestRanks, patternTable, rankTable, sideTable, stageTable, tensorBytes } from "./tables.ts";

/** What stages take one after the other is said if it is more than the prediction by this factor. */
const noticeable = 1.01;
/** Longer tables are cut to what matters most. */
const mostRows = 16;

/** What `plan` shows of a whole plan. */
export interface Report {
  readonly spec: Spec;
  readonly plan: Plan;
  readonly verified: boolean;
}

export function formatReport(output: Output, report: Report): string {
  const stats = report.plan.stats();
  const { colors } = output;
  const { source, target, file } = report.spec;
  const sides = [source, target];
  const show = ({ columns, rows }: TableOf): string => formatTable(output, columns, rows);
  return [
    colors.bold(file),
    "",
    formatFields(output, [
      ["source", describeSide(source)],
      ["target", describeSide(target)],
      ...summaryOf(report, stats),
    ]),
    "",
    colors.bold("Stages"),
    show(stageTable(stats)),
    "",
    colors.bold("Patterns") + colors.dim("  tensors of the same shape, types and layouts"),
    show(patternTable(stats.patterns, mostRows)) + remaining(output, stats.patterns.length, "pattern"),
    ...parameterSection(output, report.spec),
    "",
    colors.bold("Sides") + colors.dim("  least, mean and most of any rank"),
    show(sideTable(sides, stats.ranks)),
    "",
    colors.bold("Ranks") + colors.dim(stats.ranks.length > mostRows ? "  the busiest" : ""),
    show(rankTable(busiestRanks(stats.ranks, mostRows), sides)),
    "",
  ].join("\n");
}

/** If the target has parameters of its own: what they are made of. */
function parameterSection(output: Output, { parts }: Spec): string[] {
  if (parts === undefined) return [];
  const summary = summarizeParts(parts.target, parts.joined);
  const { pieces, parameters } = parts.proofs.target;
  const lines = summary.map(({ parameter, count, parts: made }) => {
    const times = count > 1 ? output.colors.dim(`  x ${formatCount(count)}`) : "";
    return `  ${parameter}${times}\n    ${made.length === 0 ? "a constant" : made.map(nameWithinLayer).join(" + ")}`;
  });
  const proved = `  the target's ${formatCount(parameters)}, proved whole in ${formatCount(pieces)} pieces on its ranks`;
  return ["", output.colors.bold("Parameters") + output.colors.dim(proved), ...lines];
}

export function describeSide({ name, mesh }: SpecSide): string {
  const dims = mesh.dimNames === undefined ? "" : ` ${mesh.dimNames.join(" x ")}`;
  return `${name} (mesh ${mesh.shape.join(" x ")}${dims}, ranks ${formatRanks(mesh.ranks)})`;
}

/** The plan in a few words and numbers, with what they are. */
export function summaryOf({ spec, plan, verified }: Report, stats: PlanStats): [string, string][] {
  const { input } = spec;
  const [sourceBytes, targetBytes] = [modelBytes(stats, "dtype"), modelBytes(stats, "targetDtype")];
  const staging = largest(stats.ranks, ({ stagingBytes }) => stagingBytes)?.stagingBytes ?? 0n;
  const sent = stats.ranks.reduce((sum, rank) => sum + rank.sent, 0n);
  const fields: [string, string][] = [
    ["digest", plan.digest],
    [
      "tensors",
      `${formatCount(stats.tensors)}, ${formatBytes(sourceBytes)} at the source, ${formatBytes(targetBytes)} at the target`,
    ],
    ["sends", `${formatBytes(sent)} from rank to rank`],
  ];
  if (stats.bytes.copy > 0n) fields.push(["copies", `${formatBytes(stats.bytes.copy)} within ranks`]);
  const most = input.bucketBytes === undefined ? "" : ` of at most ${formatBytes(input.bucketBytes)}`;
  fields.push(
    [
      "chunks",
      `${formatCount(stats.chunks)} in ${plural(stats.buckets, "bucket")}${most}, ${plural(stats.waves, "wave")}`,
    ],
    ["balance", describeBalance(stats)],
    ["staging", `at most ${formatBytes(staging)} a rank`],
  );
  const schedule = plan.schedule();
  if (schedule !== undefined) {
    fields.push(["predicted", describeSchedule(schedule)]);
    if (schedule.stagesInTurn > schedule.makespan * noticeable)
      fields.push(["over NCCL", describeInTurn(schedule)]);
  }
  if (verified)
    fields.push(["verified", "every target element is written exactly once, from the right source"]);
  return fields;
}

function modelBytes(stats: PlanStats, type: "dtype" | "targetDtype"): bigint {
  return stats.patterns.reduce(
    (sum, pattern) => sum + BigInt(pattern.tensors) * tensorBytes(pattern, type),
    0n,
  );
}

function describeBalance({ busiest: rank, imbalance, ranks }: PlanStats): string {
  if (rank === undefined) return "nothing is sent";
  const sent = ranks.find((entry) => entry.rank === rank)!.sent;
  return `rank ${rank} sends most, ${formatBytes(sent)}, ${imbalance.toFixed(3)} times the mean`;
}

/** What is handed on while the rest still comes does not count over NCCL, whose stages follow one another. */
function describeInTurn({ stagesInTurn, makespan }: Schedule): string {
  const over = (stagesInTurn / makespan - 1) * 100;
  return `at least about ${formatDuration(stagesInTurn / 1e9)}, ${over.toFixed(0)} % more: its stages follow one another`;
}

function describeSchedule(schedule: Schedule): string {
  const { makespan, lowerBound, ratio, boundBy, busiest, hostBytes, networkBytes } = schedule;
  if (busiest === undefined) return "nothing is sent";
  const does = busiest.direction === "out" ? "sends" : "receives";
  const where = busiest.reach === "host" ? "within its host" : "across hosts";
  const bound =
    boundBy === "chain" ? "the longest chain of buckets" : `all that rank ${busiest.rank} ${does} ${where}`;
  const bytes = `${formatBytes(networkBytes)} across hosts and ${formatBytes(hostBytes)} within them`;
  const over = (ratio - 1) * 100;
  const least =
    over < 0.05 ? "which" : `${over.toFixed(1)} % over the ${formatDuration(lowerBound / 1e9)} that`;
  return `${formatDuration(makespan / 1e9)}, ${least} no schedule can beat: ${bound}; ${bytes}`;
}

function remaining(output: Output, count: number, what: string): string {
  return count <= mostRows
    ? ""
    : `\n${output.colors.dim(`  ... and ${plural(count - mostRows, `more ${what}`)}`)}`;
}
