import { Command, InvalidArgumentError, Option } from "commander";
import { maxRanks } from "../layout/index.ts";
import { loadSpec, type Spec } from "../model/spec.ts";
import { type Plan, planTransfer, toJSON } from "../plan/index.ts";
import type { CommandContext } from "./context.ts";
import { budgetError, type Excess, findExcesses, formatExcesses } from "./plan-budget.ts";
import { writeChunks } from "./plan-chunks.ts";
import { type Prediction, predict } from "./plan-predict.ts";
import { formatRank, reportRank } from "./plan-rank.ts";
import { formatReport } from "./plan-report.ts";
import type { Output } from "./ui/output.ts";

interface PlanOptions {
  readonly json?: boolean;
  readonly chunks?: boolean;
  readonly rank?: number;
  readonly verify?: boolean;
}

/** `tensorbus plan`: what a transfer would take, without moving anything. */
export function planCommand(context: CommandContext): Command {
  return new Command("plan")
    .description("Plans the transfer of a spec and says what it would take, without moving anything.")
    .argument("<spec>", "a YAML or JSON file; docs/spec.md says what stands in it")
    .option("--json", "print one JSON object")
    .addOption(new Option("--chunks", "print every chunk, one JSON object a line").conflicts("json"))
    .option("--rank <rank>", "only what this rank sends, receives and copies", parseRank)
    .option("--verify", "prove that every element is written exactly once, from the right source")
    .addHelpText(
      "after",
      `
Examples:
  $ tensorbus plan spec.yaml
  $ tensorbus plan spec.yaml --verify
  $ tensorbus plan spec.yaml --rank 3
  $ tensorbus plan spec.yaml --json | jq .digest
  $ tensorbus plan spec.yaml --chunks --rank 3 | head

Exit code 1 where a budget of the spec is exceeded, with what was exceeded and by how much.`,
    )
    .action(async (path: string, options: PlanOptions) => {
      const spec = await loadSpec(path);
      const plan = await planTransfer(spec.input);
      if (options.verify) plan.verify();
      const excesses = findExcesses(spec.budget, plan.stats());
      if (options.chunks) {
        await writeChunks(
          context.stdout,
          plan.chunks(options.rank === undefined ? {} : { rank: options.rank }),
        );
      } else if (options.json) {
        const report = jsonReport(spec, plan, options, excesses);
        await context.stdout.line(JSON.stringify(toJSON(report)));
      } else {
        await context.stdout.line(textReport(context.stdout, spec, plan, options, excesses));
      }
      if (excesses.length > 0) throw budgetError(spec.file, excesses);
    });
}

function textReport(
  output: Output,
  spec: Spec,
  plan: Plan,
  options: PlanOptions,
  excesses: readonly Excess[],
): string {
  const report =
    options.rank === undefined
      ? formatReport(output, {
          spec,
          plan,
          prediction: predictionOf(spec, plan),
          verified: options.verify === true,
        })
      : formatRank(output, spec, plan, reportRank(spec, plan, options.rank));
  if (excesses.length === 0) return report.trimEnd();
  return `${report}\n${output.colors.red("Budgets exceeded")}\n${formatExcesses(output, excesses)}`;
}

function jsonReport(spec: Spec, plan: Plan, options: PlanOptions, excesses: readonly Excess[]) {
  const side = ({ name, mesh }: Spec["source"]) => ({ name, mesh: mesh.shape, ranks: [...mesh.ranks] });
  return {
    spec: spec.file,
    digest: plan.digest,
    source: side(spec.source),
    target: side(spec.target),
    ...(options.rank === undefined
      ? { stats: plan.stats(), prediction: predictionOf(spec, plan) ?? null }
      : { rank: reportRank(spec, plan, options.rank) }),
    verified: options.verify === true,
    budgets: { exceeded: excesses },
  };
}

function predictionOf(spec: Spec, plan: Plan): Prediction | undefined {
  return spec.input.topology === undefined ? undefined : predict(plan, spec.input.topology);
}

function parseRank(text: string): number {
  const rank = Number(text);
  if (/^\d+$/.test(text) && rank < maxRanks) return rank;
  throw new InvalidArgumentError(`A rank is a number from 0 to ${maxRanks - 1}.`);
}
