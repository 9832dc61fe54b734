import { Command } from "commander";
import { addPresetOptions, type SubjectOptions } from "../plan/subject-options.ts";
import { parseRank } from "../ui/arguments.ts";
import type { CommandContext } from "../ui/context.ts";

export interface ExplainOptions extends SubjectOptions {
  readonly tensor: string;
  readonly rank: number;
  readonly json?: boolean;
}

/** `tensorbus explain`: where one rank's parts of a tensor come from and go to. */
export function explainCommand(context: CommandContext): Command {
  const command = new Command("explain")
    .argument("[spec]", "a spec or a saved plan")
    .requiredOption("--tensor <name>", "the whole name of a tensor")
    .requiredOption("--rank <rank>", "a rank of either side", parseRank)
    .option("--json", "print one JSON object, with every part");
  return addPresetOptions(command)
    .addHelpText(
      "after",
      `
Boxes are written as slices: [0:128, :] is rows 0 to 127, and all of the second dimension.

Examples:
  $ tensorbus explain spec.yaml --tensor model.norm.weight --rank 9
  $ tensorbus explain weights.tbplan --tensor model.norm.weight --rank 0 --json | jq .departures`,
    )
    .action(async (path: string | undefined, options: ExplainOptions, command: Command) => {
      const { runExplain } = await import("./run.ts");
      await runExplain(context, command, path, options);
    });
}
