/** `tensorbus reshard`: a checkpoint from one layout to another, from files to files. */
import { availableParallelism } from "node:os";
import { Command, InvalidArgumentError } from "commander";
import type { CommandContext } from "../ui/context.ts";
import { type TransportName, transportOption } from "../ui/transport-option.ts";

export interface ReshardOptions {
  readonly source: string;
  readonly target: string;
  readonly rule: readonly string[];
  readonly targetDtype?: string;
  readonly with?: string;
  readonly model?: string;
  readonly prefix?: string;
  readonly out: string;
  readonly force?: boolean;
  readonly verify: boolean;
  readonly threads: number;
  readonly processes?: boolean;
  readonly transport: TransportName;
  readonly timeout: number;
}

export function reshardCommand(context: CommandContext): Command {
  return new Command("reshard")
    .argument("<checkpoint>", "safetensors, a distributed checkpoint of torch, or a result of reshard")
    .option("--source <layout>", "the layout it is read in, for --processes: MESH:PLACEMENTS", "1:R")
    .requiredOption("--target <layout>", "MESH:PLACEMENTS, vllm:tp=N[,ep], or hf")
    .requiredOption("--out <dir>", "the folder of the result")
    .option("--force", "replace an earlier result in that folder, all of it")
    .option(
      "--rule <rule>",
      "REGEX=SOURCE->TARGET[:TYPE] placements, and type on the target, for some tensors; the first match wins",
      collect,
      [],
    )
    .option("--target-dtype <type>", "cast the checkpoint's main floating-point type to this one")
    .option("--model <path>", "the model's config.json for vllm: (default: beside the checkpoint)")
    .option("--with <checkpoint>", "for hf: the original, which has what an engine does without")
    .option("--prefix <text>", "only tensors whose names begin so, without it: model.")
    .option("--no-verify", "do not compare what was written with what was read")
    .option("--threads <n>", "threads that read and write", count, Math.min(4, availableParallelism()))
    .option("--processes", "through one process for each rank of both sides, over a transport")
    .addOption(transportOption())
    .option(
      "--timeout <seconds>",
      "with --processes: the longest that ranks wait for each other",
      seconds,
      600,
    )
    .addHelpText(
      "after",
      `
A layout is a mesh and one placement for each of its dimensions: S(d) shards tensor dimension d, R replicates,
SS(d,k) is a strided shard (add @split or @order for how it reads).

Examples:
  $ tensorbus reshard model.safetensors --target "2:S(0)" --out shards
  $ tensorbus reshard ./Llama-3-8B --target "8:S(0)" --target-dtype bfloat16 --out shards
  $ tensorbus reshard ./Qwen3-8B --target vllm:tp=4 --out sharded
  $ tensorbus reshard ./sharded --target hf --out Qwen3-8B
  $ tensorbus reshard ./DeepSeek --target "8:S(0)" --rule "e_score|mlp.gate=R->R:float32" --out shards
  $ tensorbus reshard model.safetensors --processes --source "4:S(0)" --target "2:S(1)" --rule "norm|bias=S(0)->R" --out shards

A tensor is cast by the rule that takes it, or by --target-dtype if it has the floating-point type that most of the checkpoint
has and no scale beside it: routers in float32 beside weights in bfloat16, and float8 with its scales, stay what they are.

No file appears under its final name before all are written and verified. tensorbus-manifest.json, written last, says which
files belong together; a folder without it is not a result. A run that was killed goes on where it was, by the same command.`,
    )
    .action(async (checkpoint: string, options: ReshardOptions) => {
      if (options.processes === true) {
        const { transferFiles } = await import("./transfer.ts");
        await transferFiles(context, checkpoint, options);
      } else {
        const { moveFiles } = await import("./move.ts");
        await moveFiles(context, checkpoint, options);
      }
    });
}

/** One rank of `reshard --processes`; only `reshard` starts it. */
export function reshardRankCommand(): Command {
  return new Command("reshard-rank").action(async () => (await import("./rank.ts")).runReshardRank());
}

/** Each has buffers and a heap: as many as stay within the memory that the mover keeps to. */
const mostThreads = 16;

function collect(value: string, previous: readonly string[]): string[] {
  return [...previous, value];
}

function seconds(text: string): number {
  const value = Number(text);
  if (Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError("It must be a positive number of seconds.");
}

function count(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= 1 && value <= mostThreads) return value;
  throw new InvalidArgumentError(`It must be a number of threads from 1 to ${mostThreads}.`);
}
