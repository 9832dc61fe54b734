/** What `tensorbus agent` does. */
import { hostname } from "node:os";
import { Agent } from "../../bus/agent/agent.ts";
import { logAgent } from "../../bus/agent/log.ts";
import { type MetricsServer, serveMetrics } from "../../bus/agent/metrics.ts";
import { logger } from "../../bus/process/logger.ts";
import { defaultPaths } from "../../bus/process/paths.ts";
import { TensorBusError } from "../../errors.ts";
import { loadSpec, type Spec } from "../../model/spec.ts";
import type { PlanOptions } from "../../plan/index.ts";
import { type IgnoredRecord, openStore } from "../../store/index.ts";
import { chooseTransport } from "../transports.ts";
import type { CommandContext } from "../ui/context.ts";
import type { AgentFlags } from "./command.ts";
import { parseSides } from "./supervisor.ts";

/** Starts the agent of one rank, and serves until it is told to end. */
export async function runAgent(context: CommandContext, flags: AgentFlags): Promise<void> {
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
