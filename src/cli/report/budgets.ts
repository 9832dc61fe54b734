import type { Budget } from "../../model/spec-schema.ts";
import type { Plan } from "../../plan/index.ts";
import { type BudgetCheck, checkBudgets, describeCheck } from "../budget/budget.ts";
import type { ReportBudget } from "./report.ts";

/** The budgets of a spec, kept and exceeded, as the page shows them. */
export function reportBudgets(budget: Budget, plan: Plan): ReportBudget[] {
  return checkBudgets(budget, plan).map((check): ReportBudget => {
    const { limit, found, over, where } = describeCheck(check);
    return {
      name: check.budget,
      ...{ limit, found, where },
      over: check.exceeded ? over : undefined,
      bytes: bytesOfRank(check),
    };
  });
}

/** The limit of each rank, if it is one of bytes. */
function bytesOfRank({ budget, limit }: BudgetCheck): number | undefined {
  const isOfRank = budget === "rankEgressBytes" || budget === "rankIngressBytes" || budget === "stagingBytes";
  return isOfRank ? Number(limit) : undefined;
}
