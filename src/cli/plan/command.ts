import { Command, Option } from "commander";
import { LocalLayouts } from "../../model/parts/local.ts";
import { summarizeParts } from "../../model/parts/summary.ts";
import { partViews } from "../../model/parts/views.ts";
import type { Spec } from "../../model/spec.ts";
import { formatPlacement, type Layout, type Plan, toJSON } from "../../plan/index.ts";
import { type BudgetCheck, budgetError, checkBudgets } from "../budget/budget.ts";
import { formatExcesses } from "../budget/table.ts";
import { parseRank } from "../ui/arguments.ts";
import type { CommandContext } from "../ui/context.ts";
import { formatBytes } from "../ui/format.ts";
import type { Output } from "../ui/output.ts";
import { writeChunks } from "./chunks.ts";
import { savePlan } from "./load.ts";
import { markdownReport } from "./markdown.ts";
import { formatRank, reportRank } from "./rank.ts";
import { formatReport } from "./report.ts";
import { addPresetOptions, loadSubject, type SubjectOptions } from "./subject.ts";

interface PlanOptions extends SubjectOptions {
  readonly save?: string;
  readonly html?: string;
  readonly json?: boolean;
  readonly markdown?: boolean;
  readonly chunks?: boolean;
  readonly rank?: number;
  readonly verify?: boolean;
}

/** `tensorbus plan`: what a transfer would take, without moving anything. */
export function planCommand(context: CommandContext): Command {
  const command = new Command("plan")
    .argument("[spec]", "a YAML or JSON file (docs/spec.md says what stands in it), or a saved plan")
    .option("--load <file>", "a plan that --save wrote, in place of a spec")
    .option("--save <file>", "write the plan to a file; its SHA-256 is the plan's digest")
    .option("--html <file>", "write a page with charts, which can plan again; it needs no network")
    .option("--json", "print one JSON object")
    .addOption(new Option("--chunks", "print every chunk, one JSON object a line").conflicts("json"))
    .addOption(
      new Option("--markdown", "print a summary for a pull request").conflicts(["json", "chunks", "rank"]),
    )
    .option("--rank <rank>", "only what this rank sends, receives and copies", parseRank)
    .option("--verify", "prove that every element is written exactly once, from the right source");
  return addPresetOptions(command)
    .addHelpText(
      "after",
      `
Examples:
  $ tensorbus plan spec.yaml
  $ tensorbus plan spec.yaml --verify
  $ tensorbus plan spec.yaml --rank 3
  $ tensorbus plan spec.yaml --json | jq .digest
  $ tensorbus plan spec.yaml --chunks --rank 3 | head
  $ tensorbus plan spec.yaml --html report.html
  $ tensorbus plan spec.yaml --save weights.tbplan
  $ tensorbus plan --load weights.tbplan --verify
  $ tensorbus plan spec.yaml --markdown >> "$GITHUB_STEP_SUMMARY"
  $ tensorbus plan --model ./Qwen3-8B --source fsdp2:dp=64 --target vllm:tp=8,dp=2

Exit code 1 where a budget of the spec is exceeded, with what was exceeded and by how much; plan and
page were written by then. A saved plan has no budgets.`,
    )
    .action(async (path: string | undefined, options: PlanOptions, command: Command) => {
      const { spec, plan } = await loadSubject(command, path, options);
      if (options.verify) plan.verify();
      if (options.save !== undefined) await savePlan(options.save, plan);
      const checks = checkBudgets(spec.budget, plan);
      const excesses = checks.filter(({ exceeded }) => exceeded);
      if (options.html !== undefined) await writeHtml(context, options.html, spec, plan, options);
      if (options.chunks) {
        await writeChunks(
          context.stdout,
          plan.chunks(options.rank === undefined ? {} : { rank: options.rank }),
        );
      } else if (options.json) {
        const report = jsonReport(spec, plan, options, checks);
        await context.stdout.line(JSON.stringify(toJSON(report)));
      } else if (options.markdown) {
        const report = { spec, plan, verified: options.verify === true };
        await context.stdout.line(markdownReport(report, checks));
      } else {
        await context.stdout.line(textReport(context.stdout, spec, plan, options, excesses));
      }
      if (excesses.length > 0) throw budgetError(spec.file, excesses);
    });
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

function jsonReport(spec: Spec, plan: Plan, options: PlanOptions, checks: readonly BudgetCheck[]) {
  const side = ({ name, mesh }: Spec["source"]) => ({ name, mesh: mesh.shape, ranks: [...mesh.ranks] });
  return {
    spec: spec.file,
    digest: plan.digest,
    source: side(spec.source),
    target: side(spec.target),
    ...(options.rank === undefined
      ? { stats: plan.stats(), schedule: scheduleReport(plan) }
      : { rank: reportRank(spec, plan, options.rank), ...rankViews(spec, options.rank) }),
    ...(spec.parts !== undefined && {
      parameters: summarizeParts(spec.parts.target, spec.parts.joined),
      proofs: spec.parts.proofs,
    }),
    verified: options.verify === true,
    saved: options.save ?? null,
    budgets: { checked: checks, exceeded: checks.filter(({ exceeded }) => exceeded) },
  };
}

/** Where a rank's planned tensors lie in its parameters: what a client registers them by, to receive in place. */
function rankViews({ parts }: Spec, rank: number): { readonly views?: object; readonly pairs?: object } {
  if (parts === undefined) return {};
  const { joined, source, target } = parts;
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
