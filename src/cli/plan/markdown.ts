import { summarizeParts } from "../../model/parts/summary.ts";
import { type BudgetCheck, describeCheck } from "../budget/budget.ts";
import { plural } from "../ui/format.ts";
import { code, details, markdownPage, markdownTable } from "../ui/markdown.ts";
import { describeSide, type Report, summaryOf } from "./report.ts";
import { busiestRanks, patternTable, rankTable, sideTable, stageTable } from "./tables.ts";

const mostPatterns = 64;
const mostRanks = 32;

/** A summary of a plan for a pull request or a job: budgets first, what is long folded. */
export function markdownReport(report: Report, checks: readonly BudgetCheck[]): string {
  const { spec, plan } = report;
  const stats = plan.stats();
  const sides = [spec.source, spec.target];
  const patterns = patternTable(stats.patterns, mostPatterns);
  const ranks = busiestRanks(stats.ranks, mostRanks);
  const summary = summaryOf(report, stats).map(([name, text]) => [name, text]);
  return markdownPage([
    `### Plan of ${code(spec.file)}`,
    sides.map((side) => code(describeSide(side))).join(" → "),
    ...budgetSections(checks),
    markdownTable({ columns: [{ head: "plan" }, { head: "" }], rows: summary }),
    details(
      `Patterns: ${shown(patterns.rows.length, stats.patterns.length)}, those with the most bytes first`,
      markdownTable(patterns),
    ),
    ...parameterSections(report),
    details("Stages", markdownTable(stageTable(stats))),
    details("Sides: least, mean and most of any rank", markdownTable(sideTable(sides, stats.ranks))),
    details(
      `Ranks: ${shown(ranks.length, stats.ranks.length)}${ranks.length < stats.ranks.length ? ", the busiest" : ""}`,
      markdownTable(rankTable(ranks, sides)),
    ),
  ]);
}

/** If the target has parameters of its own: what they are made of. */
function parameterSections({ spec: { parts } }: Report): string[] {
  if (parts === undefined) return [];
  const rows = summarizeParts(parts.target, parts.joined).map(({ parameter, count, parts: made }) => [
    parameter,
    String(count),
    made.length === 0 ? "a constant" : made.join(" + "),
  ]);
  const columns = [{ head: "parameter" }, { head: "count", align: "right" }, { head: "made of" }] as const;
  return [
    details(`Parameters of the target: ${parts.proofs.target.parameters}`, markdownTable({ columns, rows })),
  ];
}

function shown(count: number, all: number): string {
  return count === all ? String(all) : `${count} of ${all}`;
}

function budgetSections(checks: readonly BudgetCheck[]): string[] {
  if (checks.length === 0) return [];
  const exceeded = checks.filter((check) => check.exceeded);
  const columns = [
    { head: "budget" },
    { head: "limit", align: "right" },
    { head: "found", align: "right" },
    { head: "over by", align: "right" },
    { head: "where" },
  ] as const;
  const rows = [...exceeded, ...checks.filter((check) => !check.exceeded)].map((check) => {
    const { limit, found, over, where } = describeCheck(check);
    return [check.budget, limit, found, check.exceeded ? over : "kept", where];
  });
  const table = markdownTable({ columns, rows });
  if (exceeded.length > 0)
    return [`**${exceeded.length} of ${plural(checks.length, "budget")} exceeded**`, table];
  return [details(`${plural(checks.length, "budget")} kept`, table)];
}
