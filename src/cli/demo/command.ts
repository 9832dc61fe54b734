import { Command } from "commander";
import type { CommandContext } from "../ui/context.ts";

/** `tensorbus demo`: the weights of a trainer, fully sharded over four ranks, to the two ranks of a tensor-parallel engine. */
export function demoCommand(context: CommandContext): Command {
  return new Command("demo")
    .option("--dir <dir>", "where the demo's checkpoint is kept (427 MB, made on the first run)")
    .addHelpText(
      "after",
      `
Examples:
  $ tensorbus demo
  $ tensorbus demo --dir /data/tensorbus-demo`,
    )
    .action(async (options: { dir?: string }) => {
      const { runDemo } = await import("./run.ts");
      await runDemo(context, options.dir);
    });
}

/** The sender of the raw-socket ceiling; only `demo` starts it. */
export function demoSocketCommand(): Command {
  return new Command("demo-socket").action(async () => (await import("./ceilings.ts")).serveSocket());
}

/** A client of either job; only `demo` starts it. */
export function demoRankCommand(): Command {
  return new Command("demo-rank").action(async () => (await import("./rank.ts")).runDemoRank());
}
