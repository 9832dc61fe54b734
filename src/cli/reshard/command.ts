import { Command, InvalidArgumentError } from "commander";
import { resolveCheckpoint } from "../../model/safetensors.ts";
import { planTransfer } from "../../plan/index.ts";
import { type TransportName, transportOption } from "../transports.ts";
import type { CommandContext } from "../ui/context.ts";
import { runReshardRank } from "./rank.ts";
import { requestOfFlags } from "./request.ts";
import { ResultFolder } from "./result.ts";
import { transferCheckpoint } from "./transfer.ts";

interface ReshardOptions {
  readonly source: string;
  readonly target: string;
  readonly rule: readonly string[];
  readonly targetDtype?: string;
  readonly out: string;
  readonly force?: boolean;
  readonly transport: TransportName;
  readonly verify: boolean;
  readonly timeout: number;
}

/** `tensorbus reshard`: a real checkpoint, from one layout to another, through one process a rank. */
export function reshardCommand(context: CommandContext): Command {
  return new Command("reshard")
    .argument("<checkpoint>", "a .safetensors file, an index, or a folder with either")
    .requiredOption("--source <layout>", "the layout it is read in: MESH:PLACEMENTS")
    .requiredOption("--target <layout>", "the layout it is written in")
    .requiredOption("--out <dir>", "where each target rank writes its file, rank-N.safetensors")
    .option("--force", "replace an earlier result in that folder, all of it")
    .option(
      "--rule <rule>",
      "REGEX=SOURCE->TARGET[:TYPE] placements, and type on the target, for some tensors; the first match wins",
      collect,
      [],
    )
    .option("--target-dtype <type>", "cast the checkpoint's main floating-point type to this one")
    .addOption(transportOption())
    .option("--no-verify", "do not compare what was written with the checkpoint")
    .option("--timeout <seconds>", "the longest that ranks wait for each other", seconds, 600)
    .addHelpText(
      "after",
      `
A layout is a mesh and one placement for each of its dimensions: S(d) shards tensor dimension d, R replicates,
SS(d,k) is a strided shard (add @split or @order for how it reads).

Examples:
  $ tensorbus reshard model.safetensors --source "4:S(0)" --target "2:S(0)" --out shards
  $ tensorbus reshard ./Llama-3-8B --source "2x4:R,S(0)" --target "8:S(0)" --target-dtype bfloat16 --out shards
  $ tensorbus reshard model.safetensors --source "4:S(0)" --target "2:S(1)" --rule "norm|bias=S(0)->R" --out shards
  $ tensorbus reshard ./DeepSeek --source "8:S(0)" --target "8:S(0)" --rule "e_score|mlp.gate=R->R:float32" --out shards

A tensor is cast by the rule that takes it, or by --target-dtype if it has the floating-point type that most of the checkpoint
has and no scale beside it: routers in float32 beside weights in bfloat16, and float8 with its scales, stay what they are.

No file appears under its final name before every rank has written and verified its own. tensorbus-manifest.json, written
last, says which files belong together; a folder without it is no result.`,
    )
    .action(async (checkpoint: string, options: ReshardOptions) => {
      const path = await resolveCheckpoint(checkpoint);
      const request = await requestOfFlags(path, { ...options, rules: options.rule });
      const result = await ResultFolder.open(options.out, options.force === true);
      const plan = await planTransfer(request.input);
      await transferCheckpoint(context, {
        plan,
        checkpoint: path,
        unlisted: request.unlisted,
        result,
        transport: options.transport,
        verify: options.verify,
        timeoutMs: options.timeout * 1000,
      });
    });
}

/** One rank of `reshard`; only `reshard` starts it. */
export function reshardRankCommand(): Command {
  return new Command("reshard-rank").action(runReshardRank);
}

function collect(value: string, previous: readonly string[]): string[] {
  return [...previous, value];
}

function seconds(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError("expected a positive number of seconds");
}
