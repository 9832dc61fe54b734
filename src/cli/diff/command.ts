import { Command, Option } from "commander";
import type { CommandContext } from "../ui/context.ts";

export interface DiffOptions {
  readonly json?: boolean;
  readonly markdown?: boolean;
  readonly exitCode?: boolean;
}

/** `tensorbus diff`: what changed between two plans. */
export function diffCommand(context: CommandContext): Command {
  return new Command("diff")
    .argument("<before>", "a spec or a saved plan")
    .argument("<after>", "a spec or a saved plan")
    .option("--json", "print one JSON object")
    .addOption(new Option("--markdown", "print a summary for a pull request").conflicts("json"))
    .option("--exit-code", "end with exit code 1 if the plans differ, like git diff")
    .addHelpText(
      "after",
      `
Examples:
  $ tensorbus diff old.yaml new.yaml
  $ tensorbus diff weights.tbplan weights.yaml --exit-code
  $ tensorbus diff base.tbplan weights.yaml --markdown >> "$GITHUB_STEP_SUMMARY"

Plans are equal if their digests are. Budgets and names of sides are not part of a plan.`,
    )
    .action(async (before: string, after: string, options: DiffOptions) => {
      const { runDiff } = await import("./run.ts");
      await runDiff(context, before, after, options);
    });
}
