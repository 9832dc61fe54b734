import { itemSize } from "../layout/index.ts";
import type { Spec, SpecSide } from "../model/spec.ts";
import type { PatternStats, Plan, PlanStats, RankStats, Schedule } from "../plan/index.ts";
import { largest } from "./plan-budget.ts";
import { formatBytes, formatCount, formatDuration, formatRanks, plural } from "./ui/format.ts";
import type { Output } from "./ui/output.ts";
import { type Column, formatFields, formatTable } from "./ui/table.ts";

/** Longer tables are cut to what matters most. */
const mostRows = 16;
/** The names of the stages, by their numbers. */
export const stageNames = ["reduce", "cross", "fanout"] as const;

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
  return [
    `${colors.bold(file)}  ${describeSide(source)} -> ${describeSide(target)}`,
    "",
    formatFields(output, summary(report, stats)),
    "",
    colors.bold("Stages"),
    formatStages(output, stats),
    "",
    colors.bold("Patterns") + colors.dim("  tensors of the same shape, types and layouts"),
    formatPatterns(output, stats.patterns),
    "",
    colors.bold("Sides") + colors.dim("  least, mean and most of any rank"),
    formatSides(output, [source, target], stats.ranks),
    "",
    colors.bold("Ranks") + colors.dim(stats.ranks.length > mostRows ? "  the busiest" : ""),
    formatRankRows(output, busiest(stats.ranks), [source, target]),
    "",
  ].join("\n");
}

function describeSide({ name, mesh }: SpecSide): string {
  const dims = mesh.dimNames === undefined ? "" : ` ${mesh.dimNames.join(" x ")}`;
  return `${name} (mesh ${mesh.shape.join(" x ")}${dims}, ranks ${formatRanks(mesh.ranks)})`;
}

function summary({ spec, plan, verified }: Report, stats: PlanStats): [string, string][] {
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
    ["between ranks", formatBytes(sent)],
  ];
  if (stats.bytes.copy > 0n) fields.push(["within ranks", `${formatBytes(stats.bytes.copy)} copied`]);
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
  if (schedule !== undefined) fields.push(["predicted", describeSchedule(schedule)]);
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

function tensorBytes(pattern: PatternStats, type: "dtype" | "targetDtype"): bigint {
  return pattern.shape.reduce((product, extent) => product * BigInt(extent), BigInt(itemSize(pattern[type])));
}

function describeBalance({ busiest: rank, imbalance, ranks }: PlanStats): string {
  if (rank === undefined) return "nothing is sent";
  const sent = ranks.find((entry) => entry.rank === rank)!.sent;
  return `rank ${rank} sends most, ${formatBytes(sent)}, ${imbalance.toFixed(3)} times the mean`;
}

function describeSchedule({ makespan, ratio, boundBy, busiest, hostBytes, networkBytes }: Schedule): string {
  if (busiest === undefined) return "nothing is sent";
  const does = busiest.direction === "out" ? "sends" : "receives";
  const where = busiest.reach === "host" ? "within its host" : "across hosts";
  const bound =
    boundBy === "chain" ? "the longest chain of buckets" : `all that rank ${busiest.rank} ${does} ${where}`;
  const bytes = `${formatBytes(networkBytes)} across hosts and ${formatBytes(hostBytes)} within them`;
  return `${formatDuration(makespan / 1e9)}, ${ratio.toFixed(3)} times the least, ${bound}; ${bytes}`;
}

function formatStages(output: Output, stats: PlanStats): string {
  const rows = stats.stages
    .filter(({ chunks }) => chunks > 0)
    .map(({ stage, chunks, buckets, bytes, waves }) => [
      stageNames[stage],
      ...[chunks, buckets].map(formatCount),
      formatBytes(bytes),
      formatCount(waves),
    ]);
  return formatTable(output, [{ head: "stage" }, ...numbers("chunks", "buckets", "bytes", "waves")], rows);
}

function formatPatterns(output: Output, patterns: readonly PatternStats[]): string {
  const bytesOf = (pattern: PatternStats): bigint => BigInt(pattern.tensors) * tensorBytes(pattern, "dtype");
  const sorted = [...patterns].sort((a, b) => Number(bytesOf(b) - bytesOf(a)));
  const rows = sorted
    .slice(0, mostRows)
    .map((pattern) => [
      formatCount(pattern.tensors),
      pattern.shape.join(" x ") || "scalar",
      pattern.dtype === pattern.targetDtype ? pattern.dtype : `${pattern.dtype} -> ${pattern.targetDtype}`,
      `[${pattern.source.join(", ")}] -> [${pattern.target.join(", ")}]`,
      formatBytes(bytesOf(pattern)),
      formatCount(BigInt(pattern.tensors) * pattern.chunks),
      formatStrategy(pattern),
    ]);
  const columns: Column[] = [
    { head: "tensors", align: "right" },
    { head: "shape" },
    { head: "type" },
    { head: "layouts" },
    ...numbers("bytes", "chunks"),
    { head: "strategy" },
  ];
  return formatTable(output, columns, rows) + remaining(output, patterns.length, "pattern");
}

/** How a pattern travels, and why where that was not asked for. */
export function formatStrategy({
  strategy,
  groups,
  reason,
}: Pick<PatternStats, "strategy" | "groups" | "reason">): string {
  const way =
    strategy === "direct" ? strategy : `${strategy} ${groups === "host" ? "within hosts" : "over all"}`;
  return reason === "asked for" ? way : `${way} (${reason})`;
}

function formatSides(output: Output, sides: readonly SpecSide[], ranks: readonly RankStats[]): string {
  const byRank = new Map(ranks.map((entry) => [entry.rank, entry]));
  const rows = sides.map(({ name, mesh }) => {
    const own = [...mesh.ranks].map((rank) => byRank.get(rank)!);
    const spread = (key: "sent" | "received" | "stagingBytes"): string => {
      const values = own.map((entry) => Number(entry[key]));
      const mean = values.reduce((a, b) => a + b, 0) / values.length;
      const [least, most] = [
        values.reduce((a, b) => Math.min(a, b)),
        values.reduce((a, b) => Math.max(a, b)),
      ];
      const texts = [least, Math.round(mean), most].map(formatBytes);
      return new Set(texts).size === 1 ? texts[0]! : texts.join(" / ");
    };
    return [name, formatCount(own.length), spread("sent"), spread("received"), spread("stagingBytes")];
  });
  return formatTable(output, [{ head: "side" }, ...numbers("ranks", "sent", "received", "staging")], rows);
}

/** All ranks of a small world; of a large one those that send and those that receive most. */
function busiest(ranks: readonly RankStats[]): RankStats[] {
  if (ranks.length <= mostRows) return [...ranks];
  const top = (key: "sent" | "received"): RankStats[] =>
    [...ranks]
      .sort((a, b) => (a[key] === b[key] ? a.rank - b.rank : a[key] < b[key] ? 1 : -1))
      .slice(0, mostRows / 2);
  return [...new Set([...top("sent"), ...top("received")])];
}

/** Columns of which every entry is zero are left out. */
function formatRankRows(output: Output, ranks: readonly RankStats[], sides: readonly SpecSide[]): string {
  const members = sides.map(({ name, mesh }) => ({ name, ranks: new Set(mesh.ranks) }));
  const shown = byteColumns.filter(({ key }) => ranks.some((entry) => entry[key] > 0n));
  const rows = ranks.map((entry) => [
    String(entry.rank),
    members.flatMap(({ name, ranks: own }) => (own.has(entry.rank) ? [name] : [])).join(", "),
    ...shown.map(({ key }) => formatBytes(entry[key])),
    formatCount(entry.chunks),
  ]);
  const columns: Column[] = [
    { head: "rank", align: "right" },
    { head: "side" },
    ...numbers(...shown.map(({ head }) => head), "chunks"),
  ];
  return formatTable(output, columns, rows);
}

const byteColumns = [
  { head: "sent", key: "sent" },
  { head: "received", key: "received" },
  { head: "copied", key: "copied" },
  { head: "reduced", key: "reduced" },
  { head: "staging", key: "stagingBytes" },
] as const;

function numbers(...heads: string[]): Column[] {
  return heads.map((head) => ({ head, align: "right" }));
}

function remaining(output: Output, count: number, what: string): string {
  return count <= mostRows
    ? ""
    : `\n${output.colors.dim(`  ... and ${plural(count - mostRows, `more ${what}`)}`)}`;
}
