import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { Command, InvalidArgumentError } from "commander";
import { resolveCheckpoint } from "../../model/safetensors.ts";
import { planTransfer } from "../../plan/index.ts";
import { type TransportName, transportOption } from "../transports.ts";
import type { CommandContext } from "../ui/context.ts";
import { runReshardRank } from "./rank.ts";
import { checkReshardable, specOfFlags } from "./request.ts";
import { transferCheckpoint } from "./transfer.ts";

interface ReshardOptions {
  readonly source: string;
  readonly target: string;
  readonly rule: readonly string[];
  readonly targetDtype?: string;
  readonly out: string;
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
    .option(
      "--rule <rule>",
      "REGEX=SOURCE->TARGET placements for some tensors; the first match wins",
      collect,
      [],
    )
    .option("--target-dtype <type>", "cast floating-point tensors to this type")
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

No file appears under its final name before every rank has written and verified its own.`,
    )
    .action(async (checkpoint: string, options: ReshardOptions) => {
      const path = await resolveCheckpoint(checkpoint);
      const spec = await specOfFlags(path, { ...options, rules: options.rule });
      checkReshardable(spec);
      const plan = await planTransfer(spec.input);
      await mkdir(options.out, { recursive: true });
      await transferCheckpoint(context, {
        plan,
        checkpoint: path,
        fileOf: (rank) => join(options.out, `rank-${rank}.safetensors`),
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
