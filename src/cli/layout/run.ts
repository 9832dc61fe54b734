/** What `tensorbus layout` does. */
import { TensorBusError } from "../../errors.ts";
import type { Model } from "../../model/config.ts";
import { applyParts } from "../../model/parts/apply.ts";
import { describeParameter } from "../../model/parts/describe.ts";
import { LocalLayouts } from "../../model/parts/local.ts";
import { proveParts } from "../../model/parts/proof.ts";
import { rankParameters } from "../../model/parts/rank.ts";
import { presetSide } from "../../model/presets/side.ts";
import { loadModel } from "../model/load-model.ts";
import type { CommandContext } from "../ui/context.ts";
import type { LayoutOptions } from "./command.ts";
import { dtypeName, formatLayout } from "./report.ts";
import { sideViews } from "./views.ts";

/** Says what the ranks of an engine hold. */
export async function runLayout(context: CommandContext, options: LayoutOptions): Promise<void> {
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
  const { source, target } = options;
  if (options.rank !== undefined && (source ?? target) !== undefined) {
    const other = source ?? target!;
    const views = sideViews(model, layouts, other, source === undefined ? "source" : "target", options.rank);
    await context.stdout.line(JSON.stringify(views));
    return;
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
