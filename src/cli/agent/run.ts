/** What `tensorbus agent` does. */
import { setMaxListeners } from "node:events";
import { hostname } from "node:os";
import { Agent, type AgentOptions } from "../../bus/agent/agent.ts";
import { logAgent } from "../../bus/agent/log.ts";
import type { MetricsServer } from "../../bus/agent/metrics.ts";
import { logger } from "../../bus/process/logger.ts";
import { defaultPaths } from "../../bus/process/paths.ts";
import { TensorBusError } from "../../errors.ts";
import type { Spec } from "../../model/spec.ts";
import type { PlanOptions } from "../../plan/index.ts";
import { openStore } from "../../store/open-store.ts";
import type { IgnoredRecord } from "../../store/signed.ts";
import { chooseTransport } from "../transports.ts";
import type { CommandContext } from "../ui/context.ts";
import type { AgentFlags } from "./command.ts";
import { giveBackWhatStartTook } from "./memory.ts";
import { parseRanks, parseSides } from "./ranks.ts";

/** Starts the agent of one rank, or of several in this process, and serves until it is told to end. */
export async function runAgent(context: CommandContext, flags: AgentFlags): Promise<void> {
  const { environment } = context;
  const ranks = ranksOf(flags, environment);
  const world = integer("--world", flags.world ?? environment["TENSOR_BUS_WORLD_SIZE"] ?? "4096", 1);
  const url = flags.store ?? environment["TENSOR_BUS_STORE"];
  if (!url)
    throw new TensorBusError("TB_STORE_OPTIONS", "no store was given: use --store or set TENSOR_BUS_STORE");
  if (ranks.length > 1) refuseWhatIsForOne(flags, environment);
  const spec = flags.spec ?? environment["TENSOR_BUS_SPEC"];
  const planning = spec ? await planningOf(spec) : {};
  logger.level = flags.log;
  const starting = new AbortController();
  // Each agent listens to it, and there may be many.
  setMaxListeners(0, starting.signal);
  const stopStarting = () => starting.abort(new Error("a signal was received"));
  process.once("SIGTERM", stopStarting);
  process.once("SIGINT", stopStarting);
  const agents = await startAll(
    await Promise.all(ranks.map((rank) => optionsOf(flags, environment, { rank, world, url, planning }))),
    starting,
  );
  // Before the others are taken away: the system's own would end this process at once.
  const stopped = awaitStop(agents, flags.untilStdinEnds === true);
  process.off("SIGTERM", stopStarting);
  process.off("SIGINT", stopStarting);
  for (const agent of agents) logAgent(agent, logger);
  let metrics: MetricsServer | undefined;
  try {
    if (flags.metricsPort !== undefined) {
      const { serveMetrics } = await import("../../bus/agent/metrics.ts");
      metrics = await serveMetrics(agents[0]!, { port: integer("--metrics-port", flags.metricsPort, 0) });
    }
    const told = metrics === undefined ? "" : `, metrics at http://127.0.0.1:${metrics.port}/metrics`;
    for (const { rank, generation } of agents) {
      await context.stdout.line(`ready: rank ${rank} of ${world}, generation ${generation}${told}`);
    }
    // It writes megabytes: clients need not wait for that.
    context.started();
    giveBackWhatStartTook(agents);
    await stopped;
  } finally {
    process.stdin.pause();
    await Promise.all(agents.map((agent) => agent.close())).finally(() => metrics?.close());
  }
}

/** All of them, or none: the first that does not start ends the others. */
async function startAll(options: readonly AgentOptions[], starting: AbortController): Promise<Agent[]> {
  const { signal } = starting;
  const started = await Promise.allSettled(
    options.map(async (one) => {
      try {
        return await Agent.start(one, { signal, timeoutMs: 60_000 });
      } catch (error) {
        if (!signal.aborted) starting.abort(error);
        throw error;
      }
    }),
  );
  const agents = started.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  if (agents.length === options.length) return agents;
  await Promise.all(agents.map((agent) => agent.close({ drainMs: 0 })));
  const first = started.find(({ status }) => status === "rejected") as PromiseRejectedResult;
  throw signal.reason instanceof TensorBusError ? signal.reason : first.reason;
}

interface Place {
  readonly rank: number;
  readonly world: number;
  readonly url: string;
  readonly planning: PlanOptions;
}

async function optionsOf(
  flags: AgentFlags,
  environment: NodeJS.ProcessEnv,
  place: Place,
): Promise<AgentOptions> {
  const { rank, world, url, planning } = place;
  const namespace = flags.namespace === undefined ? {} : { namespace: flags.namespace };
  const paths = defaultPaths(rank, {
    ...environment,
    ...(flags.namespace === undefined ? {} : { TENSOR_BUS_NAMESPACE: flags.namespace }),
  });
  const clientSocket = flags.clientSocket ?? environment["TENSOR_BUS_CLIENT_SOCKET"];
  const ignored = new Map<string, IgnoredRecord["reason"]>();
  const serve = flags.serve && rank === 0 && url.startsWith("tcp://") && isHere(url);
  return {
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
        ...namespace,
        ...(serve ? { serve: true } : {}),
        onIgnored: ({ key, reason }) => ignored.set(key, reason),
      }),
    transport: await chooseTransport(
      flags.transport,
      {
        ...(flags.host === undefined ? {} : { host: flags.host }),
        ...(flags.advertise === undefined ? {} : { advertise: flags.advertise }),
        ...(flags.port === undefined ? {} : { port: integer("--port", flags.port, 0) }),
        ...(flags.connections === undefined
          ? {}
          : { connections: integer("--connections", flags.connections, 1) }),
        ...(flags.threads === undefined ? {} : { ioThreads: integer("--threads", flags.threads, 1) }),
        ...namespace,
      },
      flags.device ?? environment["TENSOR_BUS_DEVICE"],
    ),
  };
}

/** Refuses places that two agents cannot share, if they were named for a process that has several. */
function refuseWhatIsForOne(flags: AgentFlags, environment: NodeJS.ProcessEnv): void {
  const named = {
    "--queue": flags.queue ?? environment["TENSOR_BUS_COMMAND_QUEUE_PATH"],
    "--state": flags.state ?? environment["TENSOR_BUS_STATE_PATH"],
    "--client-socket": flags.clientSocket ?? environment["TENSOR_BUS_CLIENT_SOCKET"],
    "--port": flags.port === "0" ? undefined : flags.port,
    "--metrics-port": flags.metricsPort,
  };
  const given = Object.entries(named).find(([, value]) => value)?.[0];
  if (given === undefined) return;
  throw new TensorBusError("TB_SPEC", `${given} is for one agent, and this process has several`, {
    details: { option: given },
  });
}

/** What of a spec is for all batches: tensors, layouts and the size of buckets are their clients'. */
async function planningOf(file: string): Promise<PlanOptions> {
  const { loadSpec } = await import("../../model/spec.ts");
  const { strategy, topology, bucketsInFlight, peersInFlight }: Spec["input"] = (await loadSpec(file)).input;
  return {
    ...(strategy !== undefined && { strategy }),
    ...(topology !== undefined && { topology }),
    ...(bucketsInFlight !== undefined && { bucketsInFlight }),
    ...(peersInFlight !== undefined && { peersInFlight }),
  };
}

/** Resolves when the agents have drained: a first signal begins that, a second one hurries it. */
function awaitStop(agents: readonly Agent[], untilStdinEnds: boolean): Promise<unknown> {
  return new Promise<unknown>((resolve, reject) => {
    let signals = 0;
    const stop = () => {
      signals += 1;
      const options = signals === 1 ? {} : { drainMs: 0 };
      Promise.all(agents.map((agent) => agent.close(options))).then(resolve, reject);
    };
    process.on("SIGTERM", stop);
    process.on("SIGINT", stop);
    if (untilStdinEnds) process.stdin.resume().once("end", stop).once("error", stop);
  });
}

/** The ranks of this process, as their clients find them: `bootstrapClient`. */
function ranksOf({ rank, ranks }: AgentFlags, environment: NodeJS.ProcessEnv): number[] {
  const { AGENT_RANK, RANK, AGENT_RANK_OFFSET } = environment;
  if (ranks !== undefined) return parseRanks("--ranks", ranks);
  if (rank !== undefined) return [integer("--rank", rank, 0)];
  if (AGENT_RANK) return [integer("AGENT_RANK", AGENT_RANK, 0)];
  if (RANK) return [integer("RANK", RANK, 0) + integer("AGENT_RANK_OFFSET", AGENT_RANK_OFFSET || "0", 0)];
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
