/** An agent of the simulated cluster: the real one, but for how commands come and where its state stands. */
import { AgentCore } from "../../../src/bus/agent/core.ts";
import type { AgentEvent } from "../../../src/bus/pair/events.ts";
import type { Command } from "../../../src/bus/queue/commands.ts";
import { Deadline } from "../../../src/deadline.ts";
import { TensorBusError } from "../../../src/errors.ts";
import type { Transport, TransportSession } from "../../../src/transport/transport.ts";
import type { VirtualSession } from "../transport/session.ts";
import { virtualTransport } from "../transport/session.ts";
import { SimulatedMemory } from "./client-memory.ts";
import type { Cluster } from "./cluster.ts";
import { MemoryRecords } from "./records.ts";
import { Process } from "./scheduler.ts";
import type { StoreClient } from "./store.ts";

const startAgainMs = 100;
const openMs = 10_000;
/** How long it takes until the end of a process is known on its host. */
const noticeMs = 20;

type Answer = { readonly result: unknown } | { readonly error: TensorBusError };

export class SimulatedAgent {
  readonly rank: number;
  readonly #cluster: Cluster;
  readonly #records: MemoryRecords;
  process: Process;
  core: AgentCore | undefined;
  memory: SimulatedMemory;
  generation = 0n;
  /** Those of this process. */
  #sessions: VirtualSession[] = [];
  #stores: StoreClient[] = [];
  readonly #running = new Map<string, AbortController>();

  constructor(cluster: Cluster, rank: number) {
    this.rank = rank;
    this.#cluster = cluster;
    this.#records = new MemoryRecords(cluster.scheduler);
    this.process = new Process(this.name);
    this.process.state = "dead";
    this.memory = this.#newMemory();
  }

  get name(): string {
    return `agent ${this.rank}`;
  }
  /** Its connections with the store. */
  get stores(): readonly StoreClient[] {
    return this.#stores;
  }
  get isAlive(): boolean {
    return this.process.state !== "dead";
  }

  start(): void {
    const process = new Process(this.name);
    this.process = process;
    this.core = undefined;
    this.generation += 1n;
    this.#sessions = [];
    this.#stores = [];
    this.#running.clear();
    this.memory = this.#newMemory();
    this.#cluster.trace.say(this.name, `starts, generation ${this.generation}`);
    this.#cluster.scheduler.afterFor(process, 0, () => void this.#open(process));
  }

  /** Its host says that it has ended, or says nothing any more. */
  kill(isSilent: boolean): void {
    const { scheduler, network, store, trace } = this.#cluster;
    if (!this.isAlive) return;
    trace.say(this.name, isSilent ? "is killed with its host" : "is killed");
    scheduler.kill(this.process);
    for (const session of this.#sessions) network.died(session, isSilent);
    for (const client of this.#stores) {
      scheduler.afterFor(undefined, isSilent ? store.options.silenceMs : store.wayMs(), () =>
        store.drop(client),
      );
    }
  }

  /** As at SIGTERM: it ends in order, and takes nothing more. */
  drain(): void {
    if (this.process.state !== "running" || this.core === undefined) return;
    const { process } = this;
    this.#cluster.trace.say(this.name, "is told to end");
    this.#cluster.scheduler.afterFor(process, 0, () => {
      const end = () => {
        if (this.process === process) this.kill(false);
      };
      this.close().then(end, end);
    });
  }

  stop(): void {
    if (this.process.state !== "running") return;
    this.#cluster.trace.say(this.name, "is stopped");
    this.#cluster.scheduler.stop(this.process);
    this.#cluster.network.stopped(this.process);
  }

  /** Its GPU has failed: whatever it is to move fails until this process ends. */
  failForGood(): void {
    for (const session of this.#sessions) session.isDead = true;
  }

  goOn(): void {
    if (this.process.state !== "stopped") return;
    this.#cluster.trace.say(this.name, "goes on");
    this.#cluster.scheduler.resume(this.process);
  }

  /** A command has come. Called as the agent's process. */
  take(command: Command, timeoutMs: number, answer: (answer: Answer) => void): void {
    const { core } = this;
    const fail = (error: unknown) => answer({ error: asError(error) });
    if (core === undefined) {
      fail(new TensorBusError("TB_AGENT_LOST", "the agent takes no commands yet"));
      return;
    }
    if (command.type === "Cancel") {
      this.#running
        .get(`${command.client.id}/${command.command}`)
        ?.abort(new TensorBusError("TB_CANCELLED", "the client has taken the command back"));
      answer({ result: {} });
      return;
    }
    if (command.type === "QueryStatus") {
      try {
        answer({ result: core.query(command) });
      } catch (error) {
        fail(error);
      }
      return;
    }
    const key = `${command.client.id}/${command.id}`;
    const abort = new AbortController();
    this.#running.set(key, abort);
    core
      .run(command, new Deadline({ timeoutMs, signal: abort.signal }))
      .finally(() => this.#running.delete(key))
      .then((result) => answer({ result }), fail);
  }

  /** One of its clients has ended. */
  clientEnded(client: Command["client"]): void {
    this.#cluster.scheduler.afterFor(this.process, noticeMs, () => void this.core?.forget(client));
  }

  /** An orderly end; resolves when all is let go. Called as the agent's process. */
  async close(): Promise<void> {
    const closed = new TensorBusError("TB_CLOSED", "the agent was closed");
    const { core } = this;
    if (core === undefined) return;
    core.retire(closed);
    await core.idle(new Deadline({ timeoutMs: 1000 }));
    await core.close(closed, Promise.resolve());
  }

  async #open(process: Process): Promise<void> {
    const { cluster } = { cluster: this.#cluster };
    const { scheduler, scenario, trace } = cluster;
    const { rank, generation } = this;
    try {
      const core = await AgentCore.open(
        {
          rank,
          world: scenario.world,
          generation,
          predecessor: generation - 1n,
          store: async (options) => {
            const client = await cluster.store.open(process, options);
            this.#stores.push(client);
            return { store: client, close: () => client.close() };
          },
          transport: this.#transport(process),
          state: this.#records,
          memory: this.memory,
          isAlive: (client) => cluster.isClientAlive(client),
          commit: "direct",
          checksum: false,
          planning: {},
          tell: (event) => this.#tell(event),
          onFault: (error) => this.#tell({ kind: "fault", error: asError(error) }),
        },
        { timeoutMs: openMs },
      );
      this.core = core;
      trace.say(this.name, "is ready");
    } catch (error) {
      trace.say(this.name, `cannot start: ${String(error)}`);
      scheduler.after(startAgainMs, () => void this.#open(process));
    }
  }

  #transport(process: Process): Transport {
    const transport = virtualTransport(this.#cluster.network, process);
    return {
      ...transport,
      open: async (options): Promise<TransportSession> => {
        const session = await transport.open(options);
        this.#sessions.push(session as VirtualSession);
        return session;
      },
    };
  }

  #tell(event: AgentEvent): void {
    this.#cluster.told(this, event);
  }

  #newMemory(): SimulatedMemory {
    const cluster = this.#cluster;
    return new SimulatedMemory(
      (key) => cluster.memoryOf(key),
      (client) => cluster.isClientAlive(client),
    );
  }
}

function asError(error: unknown): TensorBusError {
  if (error instanceof TensorBusError) return error;
  const { message, stack } = error as Error;
  return new TensorBusError("TB_SYSTEM", message, { details: { stack }, cause: error });
}
