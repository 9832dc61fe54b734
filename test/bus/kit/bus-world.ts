/** Agents of several ranks in the test's process, each with a client, over real queues, states, stores and transports. */
import { join } from "node:path";
import { Agent, type AgentOptions } from "../../../src/bus/agent/agent.ts";
import { type ConnectOptions, TensorBusClient } from "../../../src/bus/client/client.ts";
import { memoryStores } from "../../../src/store/index.ts";
import type { Transport } from "../../../src/transport/transport.ts";
import { memory } from "../../../transports/memory/index.ts";
import { temporaryFolder } from "./processes.ts";

export interface BusWorld {
  readonly folder: string;
  readonly agents: readonly Agent[];
  readonly clients: readonly TensorBusClient[];
  close(): Promise<void>;
}

export function pathsOf(folder: string, rank: number) {
  const base = join(folder, `rank-${rank}`);
  return { commandQueuePath: join(base, "queue"), agentStatePath: join(base, "state") };
}

export function connectTo(
  folder: string,
  rank: number,
  options: Partial<ConnectOptions> = {},
): Promise<TensorBusClient> {
  return TensorBusClient.connect({ agentRank: rank, ...pathsOf(folder, rank), ...options });
}

/** Starts that many agents, and a client of each. */
export async function startWorld(
  ranks: number,
  options: Partial<AgentOptions> = {},
  transport: Transport = memory(),
): Promise<BusWorld> {
  const folder = temporaryFolder();
  const stores = memoryStores();
  const agents = await Promise.all(
    Array.from({ length: ranks }, (_, rank) =>
      Agent.start({ rank, world: ranks, ...pathsOf(folder, rank), store: stores(), transport, ...options }),
    ),
  );
  const clients = await Promise.all(agents.map(({ rank }) => connectTo(folder, rank)));
  const close = async () => {
    await Promise.all(clients.map((client) => client.close()));
    await Promise.all(agents.map((agent) => agent.close()));
  };
  return { folder, agents, clients, close };
}
