import { Command, Option } from "commander";
import type { CommandContext } from "../ui/context.ts";
import { type TransportName, transportOption } from "../ui/transport-option.ts";

export interface AgentFlags {
  readonly rank?: string;
  readonly ranks?: string;
  readonly world?: string;
  readonly store?: string;
  readonly serve: boolean;
  readonly namespace?: string;
  readonly queue?: string;
  readonly state?: string;
  readonly clientSocket?: string;
  readonly clientUid: readonly string[];
  readonly transport: TransportName;
  readonly host?: string;
  readonly advertise?: string;
  readonly port?: string;
  readonly connections?: string;
  readonly device?: string;
  readonly threads?: string;
  readonly spec?: string;
  readonly commit: "direct" | "staged";
  readonly checksum?: boolean;
  readonly metricsPort?: string;
  readonly drain: string;
  readonly log: string;
  readonly untilStdinEnds?: boolean;
}

/** `tensorbus agent`: runs the agent of one rank until SIGTERM or SIGINT. */
export function agentCommand(context: CommandContext): Command {
  return new Command("agent")
    .option("--rank <n>", "rank in the world of agents (AGENT_RANK, else RANK + AGENT_RANK_OFFSET)")
    .addOption(new Option("--ranks <ranks>", "several ranks in this process, such as 0..7").conflicts("rank"))
    .option("--world <n>", "one more than the largest rank (TENSOR_BUS_WORLD_SIZE; default 4096)")
    .option("--store <url>", "tcp://host:port[?serve] or etcd://… (TENSOR_BUS_STORE)")
    .option("--no-serve", "join a tcp:// store on this host that another process serves, on rank 0 too")
    .option("--namespace <name>", "keeps jobs apart (TENSOR_BUS_NAMESPACE)")
    .option("--queue <folder>", "command queue (TENSOR_BUS_COMMAND_QUEUE_PATH)")
    .option("--state <folder>", "state (TENSOR_BUS_STATE_PATH)")
    .option(
      "--client-socket <file>",
      "for Python clients (TENSOR_BUS_CLIENT_SOCKET; default client.sock in the queue)",
    )
    .option("--client-uid <n...>", "users besides this one whose processes may be clients of that socket", [])
    .addOption(transportOption())
    .option("--host <address>", "where to listen for other agents (default 127.0.0.1)")
    .option("--advertise <address>", "what others connect to, if that differs")
    .option("--port <n>", "port to listen on (default: a free one)")
    .option("--connections <n>", "sockets per pair of ranks")
    .option("--device <uuid>", "the GPU whose memory clients may register (TENSOR_BUS_DEVICE; nvidia-smi -L)")
    .option("--threads <n>", "threads that move data")
    .option("--spec <file>", "plan with this spec's topology, strategy and limits (TENSOR_BUS_SPEC)")
    .addOption(
      new Option("--commit <how>", "when targets change").choices(["direct", "staged"]).default("direct"),
    )
    .option("--checksum", "check each bucket by CRC-32C")
    .option("--metrics-port <n>", "serve Prometheus metrics on this port of loopback")
    .option("--drain <seconds>", "how long SIGTERM waits for rounds under way", "10")
    .addOption(new Option("--until-stdin-ends", "end with whoever has started this, too").hideHelp())
    .option("--log <level>", "pino's levels: silent, error, warn, info, debug", "info")
    .addHelpText(
      "after",
      `
Rank 0 serves a tcp:// store itself, unless the URL's host is another one. Secrets come from TENSOR_BUS_SECRET or
TENSOR_BUS_SECRET_FILE. Says "ready" on stdout once it takes commands. A first SIGTERM lets rounds end or cancels them
and exits 0; a second one cancels at once.

Examples:
  $ tensorbus agent --rank 0 --store tcp://127.0.0.1:29600
  $ torchrun --nproc-per-node 4 --no-python tensorbus agent --store etcd://10.0.0.5:2379`,
    )
    .action(async (flags: AgentFlags) => {
      const { runAgent } = await import("./run.ts");
      await runAgent(context, flags);
    });
}
