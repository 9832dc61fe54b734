/** All that a schedule runs in: agents, clients, their store and network, and virtual time. */
import type { AgentEvent } from "../../../src/bus/pair/events.ts";
import { HostMemory } from "../../../src/memory/host-memory.ts";
import type { Memory } from "../../../src/memory/memory.ts";
import { Random } from "../../kit/random.ts";
import { type Launch, ranksOf, type Scenario, type SideName } from "../job/scenario.ts";
import { usePlatform } from "../platform/current.ts";
import type { Frame } from "../transport/frames.ts";
import { SimulatedAgent } from "./agent.ts";
import { SimulatedClient } from "./client.ts";
import { Network } from "./network.ts";
import { Scheduler } from "./scheduler.ts";
import { StoreServer } from "./store.ts";
import { Trace } from "./trace.ts";

/** Not the bundle's own, which is this world's (`../platform/globals.ts`). */
const nextTurn = globalThis.setImmediate;

type Watcher = (agent: SimulatedAgent, event: AgentEvent) => void;

export class Cluster {
  readonly scenario: Scenario;
  /** What stands now. */
  launch: Launch;
  readonly scheduler = new Scheduler();
  readonly random: Random;
  readonly trace: Trace;
  readonly store: StoreServer;
  readonly network: Network<Frame>;
  readonly #agents = new Map<number, SimulatedAgent>();
  readonly #clients = new Map<string, SimulatedClient>();
  readonly #memories = new Map<bigint, HostMemory>();
  readonly #watch: Watcher;
  #calls = 0;

  constructor(scenario: Scenario, keepsTrace: boolean, watch: Watcher) {
    const { scheduler } = this;
    this.scenario = scenario;
    this.random = new Random(scenario.seed ^ 0x5eed);
    this.trace = new Trace(scheduler, keepsTrace);
    this.#watch = watch;
    usePlatform({ scheduler, chance: new Random(scenario.seed ^ 0xc4a) });
    this.store = new StoreServer({
      scheduler,
      random: this.random,
      latencyMs: scenario.storeMs,
      lease: scenario.lease,
      silenceMs: scenario.storeSilenceMs,
    });
    this.network = new Network({
      clock: scheduler,
      random: this.random,
      latencyMs: scenario.networkMs,
      peerTimeoutMs: scenario.peerTimeoutMs,
    });
    this.launch = scenario;
    this.relaunch(scenario);
  }

  /** From here on these stand on the sides; none of their agents has started yet. */
  relaunch(launch: Launch): void {
    this.launch = launch;
    this.#clients.clear();
    const ranks = ranksOf(launch.sides);
    for (const rank of this.#agents.keys()) if (!ranks.includes(rank)) this.#agents.delete(rank);
    for (const rank of ranks) {
      if (!this.#agents.has(rank)) this.#agents.set(rank, new SimulatedAgent(this, rank));
    }
  }

  get agents(): readonly SimulatedAgent[] {
    return [...this.#agents.values()];
  }
  get clients(): readonly SimulatedClient[] {
    return [...this.#clients.values()];
  }

  agentOf(rank: number): SimulatedAgent {
    return this.#agents.get(rank)!;
  }

  clientOf(rank: number, side: SideName): SimulatedClient {
    return this.#clients.get(`${rank}${side}`)!;
  }

  /** A new client in the place of the one before. */
  startClient(rank: number, side: SideName): SimulatedClient {
    const client = new SimulatedClient(this, rank, side);
    this.#clients.set(`${rank}${side}`, client);
    return client;
  }

  isClientAlive(id: bigint): boolean {
    return this.clients.some(({ identity, isAlive }) => identity.id === id && isAlive);
  }

  countCall(): number {
    return ++this.#calls;
  }

  allocate(bytes: number): { readonly key: bigint; readonly memory: HostMemory } {
    const memory = HostMemory.allocate(bytes);
    const key = BigInt(this.#memories.size + 1);
    this.#memories.set(key, memory);
    return { key, memory };
  }

  memoryOf(key: bigint): Memory {
    return this.#memories.get(key)!;
  }

  told(agent: SimulatedAgent, event: AgentEvent): void {
    const { trace } = this;
    if (trace.keeps) {
      const { kind, ...rest } = event;
      trace.say(agent.name, kind, rest);
    } else trace.say(agent.name, event.kind);
    this.#watch(agent, event);
  }

  /** Time goes on until that holds, or for so long. False if it does not hold then. */
  until(holds: () => boolean, ms: number): Promise<boolean> {
    return new Promise((resolve, reject) => {
      nextTurn(() => {
        try {
          resolve(this.#goOn(holds, ms));
        } catch (error) {
          reject(error);
        }
      });
    });
  }

  async pass(ms: number): Promise<void> {
    await this.until(() => false, ms);
  }

  #goOn(holds: () => boolean, ms: number): boolean {
    const { scheduler } = this;
    const end = scheduler.now + ms;
    for (;;) {
      if (holds()) return true;
      const { next } = scheduler;
      if (next === undefined || next > end) {
        scheduler.now = end;
        return holds();
      }
      scheduler.step();
    }
  }
}
