import { Command, InvalidArgumentError, Option } from "commander";
import { maxRanks } from "../layout/index.ts";
import { loadSpec, type Spec } from "../model/spec.ts";
import { type Plan, planTransfer } from "../plan/index.ts";
import type { CommandContext } from "./context.ts";
import { writeChunks } from "./plan-chunks.ts";

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
      await showPlan(context, spec, plan, options);
    });
}

async function showPlan(
  context: CommandContext,
  spec: Spec,
  plan: Plan,
  options: PlanOptions,
): Promise<void> {
  const rank = options.rank === undefined ? {} : { rank: options.rank };
  if (options.chunks) await writeChunks(context.stdout, plan.chunks(rank));
  else await context.stdout.line(`${spec.file} ${plan.digest}`);
}

function parseRank(text: string): number {
  const rank = Number(text);
  if (/^\d+$/.test(text) && rank < maxRanks) return rank;
  throw new InvalidArgumentError(`A rank is a number from 0 to ${maxRanks - 1}.`);
}
