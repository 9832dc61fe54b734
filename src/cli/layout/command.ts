import { Command, Option } from "commander";
import { presetForms } from "../../model/presets/forms.ts";
import { addModelOptions, type ModelOptions } from "../model/model-options.ts";
import { parseRank } from "../ui/arguments.ts";
import type { CommandContext } from "../ui/context.ts";

export interface LayoutOptions extends ModelOptions {
  readonly model: string;
  readonly engine: string;
  readonly rank?: number;
  readonly json?: boolean;
  readonly source?: string;
  readonly target?: string;
}

/** `tensorbus layout`: the parameters of an engine's ranks, and where their elements come from. */
export function layoutCommand(context: CommandContext): Command {
  const command = new Command("layout")
    .description("Says which parameters a rank of an engine or a trainer has, and what they are made of.")
    .requiredOption("--engine <preset>", `${Object.values(presetForms).join("; ")}`)
    .option("--rank <rank>", "only this rank", parseRank)
    .option("--json", 'print JSON: {"params": [...]} of a rank, {"ranks": [...]} of all')
    .addOption(
      new Option(
        "--source <preset>",
        "with --rank and --json: the tensors that come from there, as views of the rank's parameters",
      ).conflicts("target"),
    )
    .option("--target <preset>", "the same of the tensors that go there");
  return addModelOptions(command, true)
    .addHelpText(
      "after",
      `
Examples:
  $ tensorbus layout --model ./Qwen3-8B --engine vllm:tp=4
  $ tensorbus layout --model config.json --engine vllm:tp=8,dp=2,ep --rank 3
  $ tensorbus layout --model config.json --engine vllm:tp=4 --rank 0 --json | jq '.params[].name'
  $ tensorbus layout --model config.json --engine vllm:tp=4 --source fsdp2:dp=8 --rank 0 --json | jq '.views[0]'`,
    )
    .action(async (options: LayoutOptions) => {
      const hasOther = options.source !== undefined || options.target !== undefined;
      if (hasOther && (options.rank === undefined || options.json !== true))
        command.error("error: options '--source' and '--target' need '--rank <rank>' and '--json'");
      const { runLayout } = await import("./run.ts");
      await runLayout(context, options);
    });
}
