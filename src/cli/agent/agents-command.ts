import { Command } from "commander";
import type { CommandContext } from "../ui/context.ts";

export interface AgentsFlags {
  readonly side: readonly string[];
  readonly ranks?: string;
  readonly perProcess: string;
  readonly store?: string;
  readonly namespace?: string;
  readonly untilStdinEnds?: boolean;
}

/** `tensorbus agents`: runs the agents of this host until SIGTERM or SIGINT. */
export function agentsCommand(context: CommandContext): Command {
  return new Command("agents")
    .description("Runs the agents of this host under one process, until SIGTERM.")
    .option("--side <name=ranks...>", "the ranks of a side, such as trainer=0..3; the same on every host", [])
    .option("--ranks <ranks>", "the ranks of this host (default: those of all sides)")
    .option(
      "--per-process <n>",
      "agents that share a process: less memory, and one that fails ends them",
      "1",
    )
    .option(
      "--store <url>",
      "what all agents share (TENSOR_BUS_STORE; default: one on loopback, served here)",
    )
    .option("--namespace <name>", "keeps jobs apart (TENSOR_BUS_NAMESPACE)")
    .option("--until-stdin-ends", "end with whoever has started this, too")
    .argument("[flags...]", "flags of `tensorbus agent`, behind --: they go to every agent")
    .addHelpText(
      "after",
      `
Clients find their agent by the name of their side and their RANK: weights of side engine, RANK 1, above use agent 5. Says
"ready: agents …" on stdout once all take commands. One that ends ends the others, and its exit code is this one's. A first
SIGTERM drains all; a second one cancels what is under way. Without a secret (TENSOR_BUS_SECRET), agents whose store is
served here get one of their own.

Examples:
  $ tensorbus agents --side trainer=0..3 --side engine=4..5
  $ tensorbus agents --ranks 0..7 --store etcd://10.0.0.5:2379 -- --transport tcp --host 10.0.0.7`,
    )
    .action(async (extra: string[], flags: AgentsFlags) => {
      const { runAgents } = await import("./agents-run.ts");
      await runAgents(context, flags, extra);
    });
}
