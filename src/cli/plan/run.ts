/** What `tensorbus plan` does. */
import type { Command } from "commander";
import type { Spec } from "../../model/spec.ts";
import { formatPlacement, type Layout, type Plan, toJSON } from "../../plan/index.ts";
import { type BudgetCheck, budgetError, checkBudgets } from "../budget/budget.ts";
import { formatExcesses } from "../budget/table.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatBytes } from "../ui/format.ts";
import type { Output } from "../ui/output.ts";
import { writeChunks } from "./chunks.ts";
import type { PlanOptions } from "./command.ts";
import { savePlan } from "./load.ts";
import { markdownReport } from "./markdown.ts";
import { formatRank, reportRank } from "./rank.ts";
import { formatReport } from "./report.ts";
import { loadSubject } from "./subject.ts";

/** Plans, and says what was asked. */
export async function runPlan(
  context: CommandContext,
  command: Command,
  path: string | undefined,
  options: PlanOptions,
): Promise<void> {
  const { spec, plan } = await loadSubject(command, path, options);
  if (options.verify) plan.verify();
  if (options.save !== undefined) await savePlan(options.save, plan);
  const checks = checkBudgets(spec.budget, plan);
  const excesses = checks.filter(({ exceeded }) => exceeded);
  if (options.html !== undefined) await writeHtml(context, options.html, spec, plan, options);
  if (options.chunks) {
    await writeChunks(context.stdout, plan.chunks(options.rank === undefined ? {} : { rank: options.rank }));
  } else if (options.json) {
    const report = await jsonReport(spec, plan, options, checks);
    await context.stdout.line(JSON.stringify(toJSON(report)));
  } else if (options.markdown) {
    const report = { spec, plan, verified: options.verify === true };
    await context.stdout.line(markdownReport(report, checks));
  } else {
    await context.stdout.line(textReport(context.stdout, spec, plan, options, excesses));
  }
  if (excesses.length > 0) throw budgetError(spec.file, excesses);
}

/** The page is made by code that other commands need not load. */
async function writeHtml(
  { stderr }: CommandContext,
  path: string,
  spec: Spec,
  plan: Plan,
  options: PlanOptions,
): Promise<void> {
  const { writeReport } = await import("../report/write.ts");
  const bytes = await writeReport(path, spec, plan, options.verify === true);
  await stderr.line(`wrote ${path}, ${formatBytes(bytes)}`);
}

function textReport(
  output: Output,
  spec: Spec,
  plan: Plan,
  options: PlanOptions,
  excesses: readonly BudgetCheck[],
): string {
  const report =
    options.rank === undefined
      ? formatReport(output, { spec, plan, verified: options.verify === true })
      : formatRank(output, spec, plan, reportRank(spec, plan, options.rank));
  const parts = [report.trimEnd()];
  if (options.save !== undefined) {
    parts.push(`${output.colors.bold("Saved")} to ${options.save}, ${formatBytes(plan.bytes.length)}`);
  }
  if (excesses.length > 0) {
    parts.push(`${output.colors.red("Budgets exceeded")}\n${formatExcesses(output, excesses)}`);
  }
  return parts.join("\n\n");
}

async function jsonReport(spec: Spec, plan: Plan, options: PlanOptions, checks: readonly BudgetCheck[]) {
  const side = ({ name, mesh }: Spec["source"]) => ({ name, mesh: mesh.shape, ranks: [...mesh.ranks] });
  return {
    spec: spec.file,
    digest: plan.digest,
    source: side(spec.source),
    target: side(spec.target),
    ...(options.rank === undefined
      ? { stats: plan.stats(), schedule: scheduleReport(plan) }
      : { rank: reportRank(spec, plan, options.rank), ...(await rankViews(spec, options.rank)) }),
    ...(spec.parts !== undefined && {
      parameters: (await parts()).summarizeParts(spec.parts.target, spec.parts.joined),
      proofs: spec.parts.proofs,
    }),
    verified: options.verify === true,
    saved: options.save ?? null,
    budgets: { checked: checks, exceeded: checks.filter(({ exceeded }) => exceeded) },
  };
}

/** Says where a rank's planned tensors lie in its parameters: what a client registers them by, to receive in place. */
async function rankViews(
  spec: Spec,
  rank: number,
): Promise<{ readonly views?: object; readonly pairs?: object }> {
  if (spec.parts === undefined) return {};
  const { LocalLayouts, partViews } = await parts();
  const { joined, source, target } = spec.parts;
  const views = (
    [
      ["source", source],
      ["target", target],
    ] as const
  ).map(([side, parted]) => [
    side,
    Array.from(partViews(joined, new LocalLayouts(parted), side, rank), ({ index, ...view }) => ({
      ...view,
      pair: joined.tensors[index]!.pair,
      globalShape: joined.tensors[index]!.shape,
    })),
  ]);
  const side = ({ mesh, placements, stridedShard }: Layout) => ({
    mesh: { shape: mesh.shape, ranks: [...mesh.ranks] },
    placements: placements.map(formatPlacement),
    stridedShard: stridedShard ?? null,
  });
  const pairs = Object.entries(joined.pairs).map(([name, pair]) => [
    name,
    { source: side(pair.source), target: side(pair.target) },
  ]);
  return { views: Object.fromEntries(views), pairs: Object.fromEntries(pairs) };
}

/** Without its channels, which may be hundreds of thousands. */
function scheduleReport(plan: Plan) {
  const schedule = plan.schedule();
  if (schedule === undefined) return null;
  const { channels: _, start: __, end: ___, ...rest } = schedule;
  return rest;
}

/** Loaded for the plans of parameters alone. */
async function parts() {
  const [{ LocalLayouts }, { summarizeParts }, { partViews }] = await Promise.all([
    import("../../model/parts/local.ts"),
    import("../../model/parts/summary.ts"),
    import("../../model/parts/views.ts"),
  ]);
  return { LocalLayouts, summarizeParts, partViews };
}
