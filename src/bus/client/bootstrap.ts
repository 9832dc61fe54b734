/** A client from what the launcher of a job says in the environment. */

import { type BusPaths, defaultPaths } from "../process/paths.ts";
import { TensorBusClient } from "./client.ts";

export interface BootstrapOptions {
  /** The paths of a rank. Default: those that the environment names, else `defaultPaths`. */
  readonly pathNamingFn?: (agentRank: number) => BusPaths;
  /** Milliseconds; default 30,000. */
  readonly connectionTimeoutMs?: number;
  readonly signal?: AbortSignal;
  /** Default `process.env`. */
  readonly env?: Readonly<Record<string, string | undefined>>;
}

/** A client, and how it was found out whose it is. */
export interface Bootstrapped extends BusPaths {
  readonly client: TensorBusClient;
  readonly agentRank: number;
  readonly rankFrom: "AGENT_RANK" | "RANK";
  /** `RANK` and `AGENT_RANK_OFFSET`, if the rank is their sum. */
  readonly rank?: number;
  readonly agentRankOffset?: number;
  readonly pathsFrom: "pathNamingFn" | "environment" | "default";
}

/**
 * Connects to this process's agent: rank `AGENT_RANK`, else `RANK` + `AGENT_RANK_OFFSET` (default 0), so that the jobs of
 * two launchers share one rank space. `TypeError` if neither is set, or one is no rank; else what `connect` fails with.
 */
export async function bootstrapClient(options: BootstrapOptions = {}): Promise<Bootstrapped> {
  const env = options.env ?? process.env;
  const resolved = resolveRank(env);
  const paths = resolvePaths(resolved.agentRank, options.pathNamingFn, env);
  const { commandQueuePath, agentStatePath } = paths;
  const { connectionTimeoutMs, signal } = options;
  const client = await TensorBusClient.connect({
    agentRank: resolved.agentRank,
    commandQueuePath,
    agentStatePath,
    ...(connectionTimeoutMs === undefined ? {} : { connectionTimeoutMs }),
    ...(signal === undefined ? {} : { signal }),
  });
  return { client, ...resolved, ...paths };
}

type Environment = Readonly<Record<string, string | undefined>>;

function resolveRank(
  env: Environment,
): Pick<Bootstrapped, "agentRank" | "rankFrom" | "rank" | "agentRankOffset"> {
  const own = integerOf(env, "AGENT_RANK");
  if (own !== undefined) return { agentRank: own, rankFrom: "AGENT_RANK" };
  const rank = integerOf(env, "RANK");
  if (rank === undefined) throw new TypeError("set AGENT_RANK, or both RANK and AGENT_RANK_OFFSET");
  const agentRankOffset = integerOf(env, "AGENT_RANK_OFFSET") ?? 0;
  return { agentRank: rank + agentRankOffset, rankFrom: "RANK", rank, agentRankOffset };
}

function integerOf(env: Environment, name: string): number | undefined {
  const text = env[name];
  if (text === undefined || text === "") return undefined;
  if (!/^\d{1,9}$/.test(text))
    throw new TypeError(`${name} must be a whole number of at least 0, not ${text}`);
  return Number(text);
}

function resolvePaths(
  agentRank: number,
  pathNamingFn: BootstrapOptions["pathNamingFn"],
  env: Environment,
): BusPaths & Pick<Bootstrapped, "pathsFrom"> {
  if (pathNamingFn !== undefined) {
    const { commandQueuePath, agentStatePath } = pathNamingFn(agentRank);
    return { commandQueuePath, agentStatePath, pathsFrom: "pathNamingFn" };
  }
  const commandQueuePath = env["TENSOR_BUS_COMMAND_QUEUE_PATH"];
  const agentStatePath = env["TENSOR_BUS_STATE_PATH"];
  if (commandQueuePath && agentStatePath)
    return { commandQueuePath, agentStatePath, pathsFrom: "environment" };
  if (commandQueuePath || agentStatePath) {
    throw new TypeError(
      "TENSOR_BUS_COMMAND_QUEUE_PATH and TENSOR_BUS_STATE_PATH must be set together, or both left unset",
    );
  }
  return { ...defaultPaths(agentRank, env), pathsFrom: "default" };
}
