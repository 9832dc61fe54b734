/** Worlds of embedded agents in this process, and clients of theirs. */
import { join } from "node:path";
import { Agent, type AgentOptions } from "../../../src/bus/agent/agent.ts";
import { TensorBusClient } from "../../../src/bus/client/client.ts";
import type { AgentEvent } from "../../../src/bus/pair/events.ts";
import { SharedTensor } from "../../../src/bus/tensor/shared-tensor.ts";
import type { DType } from "../../../src/layout/index.ts";
import { DeviceMesh, type Placement, parsePlacement } from "../../../src/layout/index.ts";
import { memoryStores } from "../../../src/store/memory-store.ts";
import type { Store } from "../../../src/store/store.ts";
import type { Transport } from "../../../src/transport/transport.ts";
import { memory } from "../../../transports/memory/index.ts";
import { temporaryFolder } from "./processes.ts";

export class AgentWorld implements AsyncDisposable {
  readonly agents: Agent[] = [];
  readonly folder = temporaryFolder();
  readonly events: AgentEvent[][] = [];
  readonly clients: TensorBusClient[] = [];
  readonly transport: Transport;
  readonly newStore: () => Store;

  constructor(transport: Transport = memory(), newStore: () => Store = memoryStores()) {
    this.transport = transport;
    this.newStore = newStore;
  }

  static async start(ranks: number, options: Partial<AgentOptions> = {}): Promise<AgentWorld> {
    const world = new AgentWorld();
    for (let rank = 0; rank < ranks; rank++) await world.startAgent(rank, options);
    return world;
  }

  paths(rank: number) {
    return {
      commandQueuePath: join(this.folder, `queue-${rank}`),
      agentStatePath: join(this.folder, `state-${rank}`),
    };
  }

  async startAgent(rank: number, options: Partial<AgentOptions> = {}): Promise<Agent> {
    const events: AgentEvent[] = [];
    const agent = await Agent.start({
      rank,
      ...this.paths(rank),
      world: 64,
      store: async () => {
        const store = this.newStore();
        return { store, close: () => store.close() };
      },
      transport: this.transport,
      ...options,
    });
    agent.events$.subscribe((event) => events.push(event));
    this.agents[rank] = agent;
    this.events[rank] = events;
    return agent;
  }

  async client(rank: number): Promise<TensorBusClient> {
    const client = await TensorBusClient.connect({
      agentRank: rank,
      ...this.paths(rank),
      connectionTimeoutMs: 5000,
    });
    this.clients.push(client);
    return client;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.clients.splice(0)) await client.close();
    await Promise.all(this.agents.filter(Boolean).map((agent) => agent.close({ drainMs: 0 })));
  }
}

/** One side of a pair: its ranks in a mesh, and how tensors lie there. */
export interface Side {
  readonly name: string;
  readonly ranks: readonly number[];
  readonly placements: readonly string[] | "tensors" | undefined;
  readonly mesh?: readonly number[];
}

/** A client on every rank of a side, with its pair initialised on all of both sides. */
export async function joinPair(
  world: AgentWorld,
  sides: readonly [Side, Side],
  pairName = "weights",
): Promise<[TensorBusClient[], TensorBusClient[]]> {
  const clients = [await clientsOf(world, sides[0]), await clientsOf(world, sides[1])] as [
    TensorBusClient[],
    TensorBusClient[],
  ];
  await initPair(clients, sides, pairName);
  return clients;
}

async function clientsOf(world: AgentWorld, { ranks }: Side): Promise<TensorBusClient[]> {
  return Promise.all(ranks.map((rank) => world.client(rank)));
}

export async function initPair(
  clients: readonly [readonly TensorBusClient[], readonly TensorBusClient[]],
  sides: readonly [Side, Side],
  pairName = "weights",
  timeoutMs = 10_000,
): Promise<void> {
  await Promise.all(
    sides.flatMap((side, index) =>
      side.ranks.map((_, at) =>
        clients[index]![at]!.initPair({ ...pairOptions(side, sides[1 - index]!, pairName), timeoutMs }),
      ),
    ),
  );
}

export function pairOptions(side: Side, other: Side, pairName = "weights") {
  const { ranks, placements, mesh = [ranks.length] } = side;
  return {
    pairName,
    localName: side.name,
    remoteName: other.name,
    expectedWorldSize: ranks.length,
    ...(placements === "tensors"
      ? { tensorLayouts: true }
      : placements === undefined
        ? {}
        : {
            deviceMesh: new DeviceMesh(mesh, { ranks }),
            placements: placements.map(parsePlacement) as Placement[],
          }),
  };
}

/** A float32 tensor in shared memory, each element `value(index)`. */
export function tensor(
  shape: readonly number[],
  value: (index: number) => number = () => 0,
  dtype: DType = "float32",
) {
  const made = SharedTensor.allocate([...shape], dtype);
  fill(made, value);
  return made;
}

export function fill(made: SharedTensor, value: (index: number) => number): void {
  const array = arrayOf(made);
  for (let index = 0; index < array.length; index++) array[index] = value(index);
}

export function arrayOf(made: SharedTensor): Float32Array {
  return made.data as Float32Array;
}

/** The code and details of a failure. */
export async function failureOf(
  promise: Promise<unknown>,
): Promise<{ code: string; message: string; details: Record<string, unknown> }> {
  try {
    await promise;
  } catch (error) {
    const { code, message, details } = error as {
      code: string;
      message: string;
      details: Record<string, unknown>;
    };
    return { code, message, details };
  }
  throw new Error("it did not fail");
}
