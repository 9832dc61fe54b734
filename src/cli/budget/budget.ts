import { TensorBusError } from "../../errors.ts";
import type { Budget } from "../../model/spec-schema.ts";
import type { Channels, Plan, PlanStats, RankStats } from "../../plan/index.ts";
import { formatBytes, formatCount, formatDuration } from "../ui/format.ts";

/** What a plan has the most of, and where; without a place if the whole plan is meant. */
interface Found {
  readonly found: number | string;
  readonly where?: Where | undefined;
}
type Where =
  | { readonly rank: number }
  | { readonly srcRank: number; readonly dstRank: number }
  | { readonly srcHost: number; readonly dstHost: number };

/** A budget of the spec, and what the plan has of it. */
export interface BudgetCheck extends Found {
  readonly budget: keyof Budget;
  readonly limit: number | string;
  readonly exceeded: boolean;
}

interface Measure {
  readonly find: (plan: Plan, stats: PlanStats) => Found;
  readonly format: (value: number) => string;
}

/** How each budget is measured, in the order in which they are shown. */
const measures: Readonly<Record<keyof Budget, Measure>> = {
  rankEgressBytes: { find: (_, { ranks }) => mostOf(ranks, "sent"), format: formatBytes },
  rankIngressBytes: { find: (_, { ranks }) => mostOf(ranks, "received"), format: formatBytes },
  rankLinkBytes: { find: (plan) => mostOfLinks(plan.channels()), format: formatBytes },
  hostLinkBytes: { find: (_, stats) => mostOfHosts(stats), format: formatBytes },
  stagingBytes: { find: (_, { ranks }) => mostOf(ranks, "stagingBytes"), format: formatBytes },
  imbalance: {
    find: (_, { imbalance, busiest }) => ({
      found: imbalance,
      where: busiest === undefined ? undefined : { rank: busiest },
    }),
    format: formatRatio,
  },
  predictedSeconds: {
    find: (plan) => ({ found: (plan.schedule()?.makespan ?? 0) / 1e9 }),
    format: formatDuration,
  },
  lowerBoundRatio: { find: (plan) => ({ found: plan.schedule()?.ratio ?? 1 }), format: formatRatio },
  digest: { find: ({ digest }) => ({ found: digest }), format: String },
};
const names = Object.keys(measures) as (keyof Budget)[];

/** Compares a plan with the budgets of its spec; only what has a budget is measured. */
export function checkBudgets(budget: Budget, plan: Plan): BudgetCheck[] {
  return names.flatMap((name) => {
    const limit = budget[name];
    if (limit === undefined) return [];
    const found = measures[name].find(plan, plan.stats());
    const exceeded = typeof limit === "string" ? found.found !== limit : Number(found.found) > limit;
    return [{ budget: name, limit, ...found, exceeded }];
  });
}

/** The first rank that has the most of something. */
function mostOf(ranks: readonly RankStats[], key: "sent" | "received" | "stagingBytes"): Found {
  const rank = largest(ranks, (entry) => entry[key]);
  return rank === undefined ? { found: 0 } : { found: Number(rank[key]), where: { rank: rank.rank } };
}

/** The pair of ranks with the most bytes in all stages together. */
function mostOfLinks({ count, srcRank, dstRank, bytes }: Channels): Found {
  const links = new Map<number, number>();
  let most = 0;
  let where: Where | undefined;
  for (let row = 0; row < count; row++) {
    if (srcRank[row] === dstRank[row]) continue;
    const key = srcRank[row]! * 2 ** 20 + dstRank[row]!;
    const sum = (links.get(key) ?? 0) + bytes[row]!;
    links.set(key, sum);
    if (sum <= most) continue;
    most = sum;
    where = { srcRank: srcRank[row]!, dstRank: dstRank[row]! };
  }
  return { found: most, where };
}

function mostOfHosts({ hosts }: PlanStats): Found {
  let most: Found = { found: 0 };
  for (const { srcHost, dstHost, bytes } of hosts) {
    if (srcHost === dstHost || Number(bytes) <= Number(most.found)) continue;
    most = { found: Number(bytes), where: { srcHost, dstHost } };
  }
  return most;
}

/** A check in words. */
export function describeCheck({ budget, limit, found, where }: BudgetCheck): {
  readonly limit: string;
  readonly found: string;
  readonly over: string;
  readonly where: string;
} {
  const at = where === undefined ? "" : describeWhere(where);
  if (typeof limit === "string" || typeof found === "string") {
    const short = (text: string | number) => `${String(text).slice(0, 8)}...`;
    return { limit: short(limit), found: short(found), over: "another plan", where: at };
  }
  const { format } = measures[budget];
  return {
    limit: format(limit),
    found: format(found),
    over: found > limit ? `${format(found - limit)}${describeExcess(found / limit)}` : "",
    where: at,
  };
}

/** By how much more than the limit, if that can be said. */
function describeExcess(times: number): string {
  if (!Number.isFinite(times)) return "";
  return times < 10 ? ` (${((times - 1) * 100).toFixed(1)} %)` : ` (${formatCount(Math.round(times))} x)`;
}

function describeWhere(where: Where): string {
  if ("rank" in where) return `rank ${where.rank}`;
  if ("srcRank" in where) return `rank ${where.srcRank} -> ${where.dstRank}`;
  return `host ${where.srcHost} -> ${where.dstHost}`;
}

function formatRatio(value: number): string {
  return value.toFixed(3);
}

/** `TB_BUDGET`, naming the budgets. */
export function budgetError(file: string, excesses: readonly BudgetCheck[]): TensorBusError {
  const exceeded = excesses.map(({ budget }) => budget).join(", ");
  return new TensorBusError("TB_BUDGET", `the plan exceeds what ${file} allows: ${exceeded}`, {
    details: { excesses },
  });
}

/** The first rank that has the most; none if there are no ranks. */
export function largest(
  ranks: readonly RankStats[],
  key: (rank: RankStats) => bigint,
): RankStats | undefined {
  return ranks.reduce<RankStats | undefined>(
    (most, rank) => (most === undefined || key(rank) > key(most) ? rank : most),
    undefined,
  );
}
