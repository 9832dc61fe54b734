import { hostname } from "node:os";
import { Command, Option } from "commander";
import { Agent } from "../../bus/agent/agent.ts";
import { logAgent } from "../../bus/agent/log.ts";
import { type MetricsServer, serveMetrics } from "../../bus/agent/metrics.ts";
import { logger } from "../../bus/process/logger.ts";
import { defaultPaths } from "../../bus/process/paths.ts";
import { TensorBusError } from "../../errors.ts";
import { loadSpec, type Spec } from "../../model/spec.ts";
import type { PlanOptions } from "../../plan/index.ts";
import { type IgnoredRecord, openStore } from "../../store/index.ts";
import { chooseTransport, type TransportName, transportOption } from "../transports.ts";
import type { CommandContext } from "../ui/context.ts";
import { parseSides } from "./supervisor.ts";

interface AgentFlags {
  readonly rank?: string;
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
    .action((flags: AgentFlags) => runAgent(context, flags));
}

async function runAgent(context: CommandContext, flags: AgentFlags): Promise<void> {
  const { environment } = context;
  const rank = rankOf(flags, environment);
  const world = integer("--world", flags.world ?? environment["TENSOR_BUS_WORLD_SIZE"] ?? "4096", 1);
  const url = flags.store ?? environment["TENSOR_BUS_STORE"];
  if (!url)
    throw new TensorBusError("TB_STORE_OPTIONS", "no store was given: use --store or set TENSOR_BUS_STORE");
  const paths = defaultPaths(rank, {
    ...environment,
    ...(flags.namespace === undefined ? {} : { TENSOR_BUS_NAMESPACE: flags.namespace }),
  });
  const spec = flags.spec ?? environment["TENSOR_BUS_SPEC"];
  const planning = spec ? planningOf(await loadSpec(spec)) : {};
  const clientSocket = flags.clientSocket ?? environment["TENSOR_BUS_CLIENT_SOCKET"];
  const log = logger;
  log.level = flags.log;
  const ignored = new Map<string, IgnoredRecord["reason"]>();
  const serve = flags.serve && rank === 0 && url.startsWith("tcp://") && isHere(url);
  const starting = new AbortController();
  const stopStarting = () => starting.abort(new Error("a signal was received"));
  process.once("SIGTERM", stopStarting);
  process.once("SIGINT", stopStarting);
  const agent = await Agent.start(
    {
      rank,
      world,
      commandQueuePath: flags.queue ?? environment["TENSOR_BUS_COMMAND_QUEUE_PATH"] ?? paths.commandQueuePath,
      agentStatePath: flags.state ?? environment["TENSOR_BUS_STATE_PATH"] ?? paths.agentStatePath,
      ...(clientSocket ? { clientSocketPath: clientSocket } : {}),
      sides: parseSides((environment["TENSOR_BUS_SIDES"] ?? "").split(";").filter((side) => side !== "")),
      clientUids: flags.clientUid.map((uid) => integer("--client-uid", uid, 0)),
      commit: flags.commit,
      checksum: flags.checksum ?? false,
      planning,
      drainMs: Number(flags.drain) * 1000,
      distrust: (key) => ignored.get(key),
      store: (options) =>
        openStore(url, {
          ...options,
          env: environment,
          ...(flags.namespace === undefined ? {} : { namespace: flags.namespace }),
          ...(serve ? { serve: true } : {}),
          onIgnored: ({ key, reason }) => ignored.set(key, reason),
        }),
      transport: chooseTransport(
        flags.transport,
        {
          ...(flags.host === undefined ? {} : { host: flags.host }),
          ...(flags.advertise === undefined ? {} : { advertise: flags.advertise }),
          ...(flags.port === undefined ? {} : { port: integer("--port", flags.port, 0) }),
          ...(flags.connections === undefined
            ? {}
            : { connections: integer("--connections", flags.connections, 1) }),
          ...(flags.threads === undefined ? {} : { ioThreads: integer("--threads", flags.threads, 1) }),
          ...(flags.namespace === undefined ? {} : { namespace: flags.namespace }),
        },
        flags.device ?? environment["TENSOR_BUS_DEVICE"],
      ),
    },
    { signal: starting.signal, timeoutMs: 60_000 },
  );
  process.off("SIGTERM", stopStarting);
  process.off("SIGINT", stopStarting);
  logAgent(agent, log);
  let metrics: MetricsServer | undefined;
  try {
    if (flags.metricsPort !== undefined) {
      metrics = await serveMetrics(agent, { port: integer("--metrics-port", flags.metricsPort, 0) });
    }
    const told = metrics === undefined ? "" : `, metrics at http://127.0.0.1:${metrics.port}/metrics`;
    const stopped = awaitStop(agent, flags.untilStdinEnds === true);
    await context.stdout.line(`ready: rank ${rank} of ${world}, generation ${agent.generation}${told}`);
    await stopped;
  } finally {
    await agent.close();
    await metrics?.close();
  }
}

/** What of a spec is for all batches: tensors, layouts and the size of buckets are their clients'. */
function planningOf({ input: { strategy, topology, bucketsInFlight, peersInFlight } }: Spec): PlanOptions {
  return {
    ...(strategy !== undefined && { strategy }),
    ...(topology !== undefined && { topology }),
    ...(bucketsInFlight !== undefined && { bucketsInFlight }),
    ...(peersInFlight !== undefined && { peersInFlight }),
  };
}

/** Resolves when the agent has drained: a first signal begins that, a second one hurries it. */
function awaitStop(agent: Agent, untilStdinEnds: boolean): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    let signals = 0;
    const stop = () => {
      signals += 1;
      agent.close(signals === 1 ? {} : { drainMs: 0 }).then(resolve, reject);
    };
    process.on("SIGTERM", stop);
    process.on("SIGINT", stop);
    if (untilStdinEnds) process.stdin.resume().once("end", stop).once("error", stop);
  }).finally(() => process.stdin.pause());
}

/** The rank of this agent, as its clients find it: `bootstrapClient`. */
function rankOf({ rank }: AgentFlags, environment: NodeJS.ProcessEnv): number {
  const { AGENT_RANK, RANK, AGENT_RANK_OFFSET } = environment;
  if (rank !== undefined) return integer("--rank", rank, 0);
  if (AGENT_RANK) return integer("AGENT_RANK", AGENT_RANK, 0);
  if (RANK) return integer("RANK", RANK, 0) + integer("AGENT_RANK_OFFSET", AGENT_RANK_OFFSET || "0", 0);
  throw new TensorBusError("TB_SPEC", "no rank was given: use --rank, or set AGENT_RANK or RANK");
}

function integer(name: string, text: string, min: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text.trim()) && Number.isSafeInteger(value) && value >= min) return value;
  throw new TensorBusError("TB_SPEC", `${name} must be an integer of at least ${min}, not ${text}`, {
    details: { [name]: text },
  });
}

/** True if a store's URL names this host. */
function isHere(url: string): boolean {
  const host = /^tcp:\/\/(\[[^\]]*\]|[^:/?]+)/.exec(url)?.[1]?.replace(/^\[|\]$/g, "");
  return host !== undefined && ["127.0.0.1", "::1", "localhost", "0.0.0.0", "::", hostname()].includes(host);
}
