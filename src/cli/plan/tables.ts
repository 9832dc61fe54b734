import { bytesOf } from "../../layout/index.ts";
import type { SpecSide } from "../../model/spec.ts";
import type { PatternStats, PlanStats, RankStats } from "../../plan/index.ts";
import { formatBytes, formatCount } from "../ui/format.ts";
import type { Column, TableOf } from "../ui/table.ts";

/** The names of the stages, by their numbers. */
export const stageNames = ["reduce", "cross", "fanout"] as const;

export function stageTable(stats: PlanStats): TableOf {
  const rows = stats.stages
    .filter(({ chunks }) => chunks > 0)
    .map(({ stage, chunks, buckets, bytes, waves }) => [
      stageNames[stage],
      ...[chunks, buckets].map(formatCount),
      formatBytes(bytes),
      formatCount(waves),
    ]);
  const columns: Column[] = [
    { head: "stage" },
    { head: "chunks", align: "right", leaves: 3 },
    { head: "buckets", align: "right", leaves: 1 },
    ...numbers("bytes"),
    { head: "waves", align: "right", leaves: 2 },
  ];
  return { columns, rows };
}

/** Patterns, those with the most bytes first. */
export function patternTable(patterns: readonly PatternStats[], most: number): TableOf {
  const bytesOf = (pattern: PatternStats): bigint => BigInt(pattern.tensors) * tensorBytes(pattern, "dtype");
  const sorted = [...patterns].sort((a, b) => Number(bytesOf(b) - bytesOf(a)));
  const rows = sorted
    .slice(0, most)
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
    { head: "type", wraps: true, leaves: 2 },
    { head: "layouts", wraps: true, leaves: 4 },
    ...numbers("bytes"),
    { head: "chunks", align: "right", leaves: 1 },
    { head: "strategy", wraps: true, leaves: 3 },
  ];
  return { columns, rows };
}

/** How a pattern travels, and why if that was not asked for. */
export function formatStrategy({
  strategy,
  groups,
  reason,
}: Pick<PatternStats, "strategy" | "groups" | "reason">): string {
  const way =
    strategy === "direct" ? strategy : `${strategy} ${groups === "host" ? "within hosts" : "over all"}`;
  return reason === "asked for" ? way : `${way} (${reason})`;
}

/** What the ranks of each side send, receive and stage: the least, the mean and the most of them. */
export function sideTable(sides: readonly SpecSide[], ranks: readonly RankStats[]): TableOf {
  const byRank = new Map(ranks.map((entry) => [entry.rank, entry]));
  const rows = sides.flatMap(({ name, mesh }) => {
    const own = [...mesh.ranks].map((rank) => byRank.get(rank)!);
    return byteColumns.flatMap(({ head, key }) => {
      const values = own.map((entry) => Number(entry[key]));
      const sum = values.reduce((a, b) => a + b, 0);
      if (sum === 0) return [];
      const most = values.reduce((a, b) => Math.max(a, b));
      const least = values.reduce((a, b) => Math.min(a, b));
      const spread = [least, Math.round(sum / values.length), most].map(formatBytes);
      return [[name, formatCount(own.length), head, ...spread]];
    });
  });
  const columns: Column[] = [
    { head: "side" },
    { head: "ranks", align: "right", leaves: 0 },
    { head: "" },
    { head: "least", align: "right", leaves: 1 },
    { head: "mean", align: "right", leaves: 2 },
    { head: "most", align: "right" },
  ];
  return { columns, rows };
}

/** All ranks of a small world; of a large one those that send and those that receive most. */
export function busiestRanks(ranks: readonly RankStats[], most: number): RankStats[] {
  if (ranks.length <= most) return [...ranks];
  const top = (key: "sent" | "received"): RankStats[] =>
    [...ranks]
      .sort((a, b) => (a[key] === b[key] ? a.rank - b.rank : a[key] < b[key] ? 1 : -1))
      .slice(0, most / 2);
  return [...new Set([...top("sent"), ...top("received")])];
}

/** Columns of which every entry is zero are left out. */
export function rankTable(ranks: readonly RankStats[], sides: readonly SpecSide[]): TableOf {
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
    { head: "side", wraps: true },
    ...shown.map(({ head, leaves }): Column => ({ head, align: "right", leaves })),
    { head: "chunks", align: "right", leaves: 1 },
  ];
  return { columns, rows };
}

/** What is said of a rank in bytes: the head of a column, and the member of `RankStats`. */
export const byteColumns = [
  { head: "sent", key: "sent", leaves: 6 },
  { head: "received", key: "received", leaves: 5 },
  { head: "copied", key: "copied", leaves: 3 },
  { head: "reduced", key: "reduced", leaves: 4 },
  { head: "staging", key: "stagingBytes", leaves: 2 },
] as const;

function numbers(...heads: string[]): Column[] {
  return heads.map((head) => ({ head, align: "right" }));
}

export function tensorBytes(pattern: PatternStats, type: "dtype" | "targetDtype"): bigint {
  const elements = pattern.shape.reduce((product, extent) => product * BigInt(extent), 1n);
  return bytesOf(pattern[type], elements);
}
