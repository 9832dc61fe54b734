import { TensorBusError } from "../errors.ts";
import type { Budget } from "../model/spec.ts";
import type { PlanStats, RankStats } from "../plan/index.ts";
import { formatBytes } from "./ui/format.ts";
import type { Output } from "./ui/output.ts";
import { formatTable } from "./ui/table.ts";

/** A budget of the spec that the plan does not keep to. */
export interface Excess {
  readonly budget: keyof Budget;
  readonly limit: number;
  readonly found: number;
  /** The first rank that has the most; none where the whole plan is meant. */
  readonly rank: number | undefined;
}

/** Compares a plan with the budgets of its spec. */
export function findExcesses(budget: Budget, stats: PlanStats): Excess[] {
  const sender = largest(stats.ranks, ({ sent }) => sent);
  const stager = largest(stats.ranks, ({ stagingBytes }) => stagingBytes);
  const found: Record<keyof Budget, { found: number; rank: number | undefined }> = {
    rankEgressBytes: { found: Number(sender?.sent ?? 0n), rank: sender?.rank },
    stagingBytes: { found: Number(stager?.stagingBytes ?? 0n), rank: stager?.rank },
    imbalance: { found: stats.imbalance, rank: stats.busiest },
  };
  return Object.entries(found).flatMap(([name, entry]) => {
    const limit = budget[name as keyof Budget];
    return limit === undefined || entry.found <= limit
      ? []
      : [{ budget: name as keyof Budget, limit, ...entry }];
  });
}

/** What was exceeded, and by how much. */
export function formatExcesses(output: Output, excesses: readonly Excess[]): string {
  const rows = excesses.map(({ budget, limit, found, rank }) => {
    const text = budget === "imbalance" ? (value: number) => value.toFixed(3) : formatBytes;
    const over = `${text(found - limit)} (${((found / limit - 1) * 100).toFixed(1)} %)`;
    return [budget, text(limit), text(found), over, rank === undefined ? "" : String(rank)];
  });
  const columns = [
    { head: "budget" },
    { head: "limit", align: "right" },
    { head: "found", align: "right" },
    { head: "over by", align: "right" },
    { head: "rank", align: "right" },
  ] as const;
  return formatTable(output, columns, rows);
}

/** `TB_BUDGET`, naming the budgets. */
export function budgetError(file: string, excesses: readonly Excess[]): TensorBusError {
  const names = excesses.map(({ budget }) => budget).join(", ");
  return new TensorBusError("TB_BUDGET", `the plan exceeds what ${file} allows: ${names}`, {
    details: { excesses },
  });
}

/** The first rank that has the most; none where there are no ranks. */
export function largest(
  ranks: readonly RankStats[],
  key: (rank: RankStats) => bigint,
): RankStats | undefined {
  return ranks.reduce<RankStats | undefined>(
    (most, rank) => (most === undefined || key(rank) > key(most) ? rank : most),
    undefined,
  );
}
