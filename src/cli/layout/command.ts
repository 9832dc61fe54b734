import { Command } from "commander";
import { TensorBusError } from "../../errors.ts";
import type { Model } from "../../model/config.ts";
import { applyParts } from "../../model/parts/apply.ts";
import { describeParameter } from "../../model/parts/describe.ts";
import { LocalLayouts } from "../../model/parts/local.ts";
import { proveParts } from "../../model/parts/proof.ts";
import { rankParameters } from "../../model/parts/rank.ts";
import { presetForms, presetSide } from "../../model/presets/side.ts";
import { addModelOptions, loadModel, type ModelOptions } from "../model/model-options.ts";
import { parseRank } from "../ui/arguments.ts";
import type { CommandContext } from "../ui/context.ts";
import { dtypeName, formatLayout } from "./report.ts";

interface LayoutOptions extends ModelOptions {
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
      const model = await loadModel(options.model, options);
      const side = applyParts(presetSide(options.engine, model), model.tensors, { modelDtype: model.dtype });
      const layouts = new LocalLayouts(side);
      const proof = proveParts(layouts);
      if (options.rank !== undefined && !side.ranks.includes(options.rank)) {
        throw new TensorBusError(
          "TB_MESH",
          `${options.engine} has ranks 0 to ${side.ranks.length - 1}, not ${options.rank}`,
          {
            details: { rank: options.rank, ranks: side.ranks.length },
          },
        );
      }
      if (options.json === true) {
        await writeJson(context, model, layouts, options.rank);
        return;
      }
      const rank = options.rank ?? side.ranks[0]!;
      const parameters = [...rankParameters(layouts, rank)];
      await context.stdout.line(
        formatLayout(context.stdout, {
          engine: options.engine,
          model,
          rank,
          proof,
          parameters,
          dropped: side.dropped,
        }),
      );
    });
}

/** One line a rank: a list of all ranks can be longer than a text may be. */
async function writeJson(
  { stdout }: CommandContext,
  model: Model,
  layouts: LocalLayouts,
  rank: number | undefined,
): Promise<void> {
  if (rank !== undefined) {
    await stdout.line(JSON.stringify(describeRank(model, layouts, rank)));
    return;
  }
  await stdout.line('{"ranks": [');
  const { ranks } = layouts.side;
  for (const [index, one] of ranks.entries()) {
    const end = index < ranks.length - 1 ? "," : "";
    await stdout.line(`${JSON.stringify(describeRank(model, layouts, one))}${end}`);
  }
  await stdout.line("]}");
}

function describeRank(model: Model, layouts: LocalLayouts, rank: number): Record<string, unknown> {
  const params = Array.from(rankParameters(layouts, rank), (parameter) =>
    describeParameter(parameter, dtypeName(model, parameter)),
  );
  return { rank, params };
}
