import type { Output } from "../ui/output.ts";
import { formatTable } from "../ui/table.ts";
import { type BudgetCheck, describeCheck } from "./budget.ts";

/** What was exceeded, and by how much. */
export function formatExcesses(output: Output, excesses: readonly BudgetCheck[]): string {
  const rows = excesses.map((check) => {
    const { limit, found, over, where } = describeCheck(check);
    return [check.budget, limit, found, over, where];
  });
  const columns = [
    { head: "budget" },
    { head: "limit", align: "right" },
    { head: "found", align: "right" },
    { head: "over by", align: "right", leaves: 0 },
    { head: "where", leaves: 1 },
  ] as const;
  return formatTable(output, columns, rows);
}
