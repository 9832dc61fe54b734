import { Command, Option } from "commander";
import { parseRank } from "../ui/arguments.ts";
import type { CommandContext } from "../ui/context.ts";
import { addPresetOptions, type SubjectOptions } from "./subject-options.ts";

export interface PlanOptions extends SubjectOptions {
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

Exit code 1 if a budget of the spec is exceeded; what was exceeded, and by how much, is printed. Plan and
page were written by then. A saved plan has no budgets.`,
    )
    .action(async (path: string | undefined, options: PlanOptions, command: Command) => {
      const { runPlan } = await import("./run.ts");
      await runPlan(context, command, path, options);
    });
}
