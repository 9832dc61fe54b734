import { Command } from "commander";
import { presetForms } from "../../model/presets/forms.ts";
import { addModelOptions, type ModelOptions } from "../model/model-options.ts";
import { parseRank } from "../ui/arguments.ts";
import type { CommandContext } from "../ui/context.ts";

export interface LayoutOptions extends ModelOptions {
  readonly model: string;
  readonly engine: string;
  readonly rank?: number;
  readonly json?: boolean;
}

/** `tensorbus layout`: the parameters of an engine's ranks, and where their elements come from. */
export function layoutCommand(context: CommandContext): Command {
  const command = new Command("layout")
    .description("Says which parameters a rank of an engine or a trainer has, and what they are made of.")
    .requiredOption("--engine <preset>", `${Object.values(presetForms).join("; ")}`)
    .option("--rank <rank>", "only this rank", parseRank)
    .option("--json", 'print JSON: {"params": [...]} of a rank, {"ranks": [...]} of all');
  return addModelOptions(command, true)
    .addHelpText(
      "after",
      `
Examples:
  $ tensorbus layout --model ./Qwen3-8B --engine vllm:tp=4
  $ tensorbus layout --model config.json --engine vllm:tp=8,dp=2,ep --rank 3
  $ tensorbus layout --model config.json --engine vllm:tp=4 --rank 0 --json | jq '.params[].name'`,
    )
    .action(async (options: LayoutOptions) => {
      const { runLayout } = await import("./run.ts");
      await runLayout(context, options);
    });
}
