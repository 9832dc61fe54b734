import { TensorBusError } from "../../errors.ts";
import type { Spec } from "../../model/spec.ts";
import type { Plan, RankStats, Stage } from "../../plan/index.ts";
import { formatBytes, formatCount, plural } from "../ui/format.ts";
import type { Output } from "../ui/output.ts";
import { formatFields, formatTable } from "../ui/table.ts";
import { stageNames } from "./tables.ts";

/** What one rank exchanges with another in one stage and direction. */
interface Exchange {
  readonly direction: "to" | "from" | "within";
  readonly peer: number;
  readonly stage: Stage;
  readonly buckets: number;
  /** Payload bytes on the wire, padding included. */
  readonly bytes: bigint;
}

/** The part of a plan that one rank runs. */
interface RankReport {
  readonly stats: RankStats;
  readonly sides: readonly string[];
  /** Local tensors that its program touches, and the bytes from their first to their last element. */
  readonly buffers: number;
  readonly bufferBytes: bigint;
  readonly programBytes: number;
  readonly exchanges: readonly Exchange[];
}

/** `TB_MESH` if the rank is on neither side. */
export function reportRank(spec: Spec, plan: Plan, rank: number): RankReport {
  const sides = [spec.source, spec.target]
    .filter(({ mesh }) => mesh.ranks.includes(rank))
    .map(({ name }) => name);
  const stats = plan.stats().ranks.find((entry) => entry.rank === rank);
  if (sides.length === 0 || stats === undefined) {
    throw new TensorBusError("TB_MESH", `rank ${rank} is on neither side of ${spec.file}`, {
      details: { rank },
    });
  }
  const program = plan.program(rank);
  return {
    stats,
    sides,
    buffers: program.buffers.length,
    bufferBytes: program.buffers.reduce((sum, { span }) => sum + span, 0n),
    programBytes: program.bytes.length,
    exchanges: exchangesOf(plan, rank),
  };
}

function exchangesOf(plan: Plan, rank: number): Exchange[] {
  const exchanges = new Map<string, { -readonly [K in keyof Exchange]: Exchange[K] }>();
  for (const { stage, srcRank, dstRank, bytes } of plan.buckets({ rank })) {
    const direction = srcRank === dstRank ? "within" : srcRank === rank ? "to" : "from";
    const peer = srcRank === rank ? dstRank : srcRank;
    const key = `${direction} ${peer} ${stage}`;
    const exchange = exchanges.get(key) ?? { direction, peer, stage, buckets: 0, bytes: 0n };
    exchange.buckets++;
    exchange.bytes += bytes;
    exchanges.set(key, exchange);
  }
  return [...exchanges.values()].sort(
    (a, b) => a.stage - b.stage || a.direction.localeCompare(b.direction) || a.peer - b.peer,
  );
}

export function formatRank(output: Output, spec: Spec, plan: Plan, report: RankReport): string {
  const { stats } = report;
  const [to, from] = (["to", "from"] as const).map(
    (direction) =>
      new Set(report.exchanges.filter((entry) => entry.direction === direction).map(({ peer }) => peer)).size,
  );
  const fields: [string, string][] = [
    ["digest", plan.digest],
    ["sends", `${formatBytes(stats.sent)} to ${plural(to!, "rank")}`],
    ["receives", `${formatBytes(stats.received)} from ${plural(from!, "rank")}`],
    ["copies", formatBytes(stats.copied)],
    ["reduces", formatBytes(stats.reduced)],
    ["staging", formatBytes(stats.stagingBytes)],
    ["tensors", `${formatCount(report.buffers)} local, ${formatBytes(report.bufferBytes)}`],
    ["chunks", formatCount(stats.chunks)],
    ["program", formatBytes(report.programBytes)],
  ];
  const rows = report.exchanges.map(({ direction, peer, stage, buckets, bytes }) => [
    direction,
    direction === "within" ? "" : String(peer),
    stageNames[stage],
    formatCount(buckets),
    formatBytes(bytes),
  ]);
  const columns = [
    { head: "" },
    { head: "rank", align: "right" },
    { head: "stage" },
    { head: "buckets", align: "right" },
    { head: "bytes", align: "right" },
  ] as const;
  return [
    `${output.colors.bold(`rank ${stats.rank}`)} of ${report.sides.join(" and ")} in ${spec.file}`,
    "",
    formatFields(output, fields),
    "",
    output.colors.bold("Channels"),
    formatTable(output, columns, rows),
    "",
  ].join("\n");
}
