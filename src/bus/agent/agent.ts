/**
 * The agent of a rank: takes the commands of its clients, finds the other ranks, and moves tensors. A process of its own
 * (`tensorbus agent`), or a part of the process that starts it.
 */
import { filter, merge, type Observable, Subject, startWith, switchMap } from "rxjs";
import { Deadline, type DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { PlanOptions } from "../../plan/index.ts";
import type { Store } from "../../store/store.ts";
import type { Transport } from "../../transport/transport.ts";
import { AgentMemory } from "../batch/memory.ts";
import { recordPlanning } from "../batch/planning.ts";
import type { AgentEvent, AgentProgress } from "../pair/events.ts";
import type { Distrust } from "../pair/rendezvous.ts";
import type { StoreFactory } from "../pair/uplink.ts";
import { bootId, monotonicNs } from "../process/identity.ts";
import type { Command, CommandOf, CommandResult } from "../queue/commands.ts";
import { hostRegions } from "../tensor/host-regions.ts";
import { CommandAborts } from "./command-aborts.ts";
import { AgentCore } from "./core.ts";
import { AgentIntake } from "./intake.ts";

export interface AgentOptions {
  /** The agent's rank in the world of agents, which holds both sides of a pair. */
  readonly rank: number;
  /** One more than the largest rank: the same for all agents; default 4,096. */
  readonly world?: number;
  /** Folders that clients share with it; made if they are missing. */
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
  /** The store that all agents share. A store that is given stays the caller's; a factory is asked again when its store was lost. */
  readonly store: Store | StoreFactory;
  readonly transport: Transport;
  /** For batches whose clients do not say it; default `direct`. */
  readonly commit?: "direct" | "staged";
  /** Checks each bucket by CRC-32C; default false. The same for all agents. */
  readonly checksum?: boolean;
  /** How batches are planned: the same for all agents of a batch; default: the planner's defaults, and no topology. */
  readonly planning?: PlanOptions;
  /** Commands that wait to be started, at most; default 1,024. */
  readonly queueCapacity?: number;
  /** Milliseconds that another process may hold up a write of the queue: default 1,000. */
  readonly stuckMs?: number;
  /** Milliseconds that `close` waits for rounds under way before it cancels them; default 10,000. */
  readonly drainMs?: number;
  /** The socket for clients that are no processes of Node.js; default `client.sock` in the folder of the queue. */
  readonly clientSocketPath?: string;
  /** Users besides this process's own whose processes may be clients of that socket. */
  readonly clientUids?: readonly number[];
  /** The ranks of sides by name, if they are known beforehand: clients find their agent by them. */
  readonly sides?: ReadonlyMap<string, readonly number[]>;
  /** Why a record was not believed, by its key: what `openStore` tells `onIgnored`. */
  readonly distrust?: Distrust;
}

const defaultWorld = 4096;
const defaultDrainMs = 10_000;

export class Agent implements AsyncDisposable {
  readonly rank: number;
  /** Larger than that of every agent before it on these paths. */
  readonly generation: bigint;
  /** What happens to pairs, batches, rounds, clients and store; completes when the agent is closed. */
  readonly events$: Observable<AgentEvent>;
  /** How far rounds are; only who subscribes makes it ask. */
  readonly progress$: Observable<AgentProgress>;
  readonly #options: AgentOptions;
  readonly #post: AgentIntake;
  readonly #core: AgentCore;
  readonly #events: Subject<AgentEvent>;
  readonly #aborts = new CommandAborts();
  #closing: Promise<void> | undefined;

  private constructor(
    options: AgentOptions,
    post: AgentIntake,
    core: AgentCore,
    events: Subject<AgentEvent>,
  ) {
    this.rank = options.rank;
    this.generation = post.generation;
    this.#options = options;
    this.#post = post;
    this.#core = core;
    this.#events = events;
    this.events$ = events.asObservable();
    const changes = events.pipe(
      filter(({ kind }) => kind === "batchRegistered" || kind === "batchEnded"),
      startWith(undefined),
    );
    this.progress$ = changes.pipe(
      switchMap(() => merge(...core.batches.flatMap(({ live }) => live.map(({ progress$ }) => progress$)))),
    );
  }

  /**
   * Starts the agent of a rank; it takes commands once this resolves. `TB_EXISTS` if another agent has the paths; the rest
   * is that of the store and the transport. What its predecessor had started ends as `TB_AGENT_LOST`; its pairs are found
   * again.
   */
  static async start(options: AgentOptions, wait: DeadlineOptions = {}): Promise<Agent> {
    const deadline = new Deadline(wait);
    recordPlanning(options.planning ?? {});
    const events = new Subject<AgentEvent>();
    let agent: Agent | undefined;
    const post = await AgentIntake.open(options, deadline);
    try {
      const { rank, world = defaultWorld, store, transport, distrust } = options;
      const { commit = "direct", checksum = false, planning = {} } = options;
      const { generation, predecessor, state } = post;
      const tell = (event: AgentEvent) => events.next(event);
      const onFault = (error: unknown) => tell({ kind: "fault", error: asFault(error) });
      const memory = new AgentMemory(hostRegions, { port: post.port, onFault }, post.descriptors);
      const isAlive = (client: bigint) => post.isAlive(client);
      const core = await AgentCore.open(
        {
          rank,
          world,
          generation,
          predecessor,
          store,
          transport,
          distrust,
          state,
          memory,
          isAlive,
          commit,
          checksum,
          planning,
          tell,
          onFault,
        },
        deadline.rest,
      );
      agent = new Agent(options, post, core, events);
      await agent.#serve(deadline);
      return agent;
    } catch (error) {
      await agent?.close({ drainMs: 0 });
      await post.close();
      throw error;
    }
  }

  /** Commands that wait to be started. */
  get queueDepth(): number {
    return this.#post.queueDepth;
  }

  /** Commands that were started and have not ended: registrations and rounds among them. */
  get commandsUnderWay(): number {
    return this.#aborts.running;
  }

  /**
   * Takes no more commands, lets rounds under way end or cancels them after `drainMs`, and frees everything. What is queued
   * stays for the next agent. A second call joins the first; with a shorter `drainMs` it hurries it.
   */
  close(options: { readonly drainMs?: number } = {}): Promise<void> {
    if (this.#closing !== undefined && options.drainMs === 0) this.#core.hurry(closedError());
    this.#closing ??= this.#close(options.drainMs ?? this.#options.drainMs ?? defaultDrainMs);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #serve(deadline: Deadline): Promise<void> {
    return this.#post.serve(
      {
        run: (command) => this.#run(command),
        onGone: (client) => void this.#core.forget(client),
        onFault: (error) => this.#tell({ kind: "fault", error: asFault(error) }),
        events$: this.events$,
      },
      deadline,
    );
  }

  #run(command: Command): unknown {
    if (command.type === "QueryStatus" && command.tellVersion !== true)
      return this.#watch(command, () => this.#core.query(command));
    if (command.type === "Cancel") return this.#cancel(command);
    const signal = this.#aborts.begin(command);
    return this.#core
      .run(command, new Deadline({ timeoutMs: millisecondsLeft(command), signal }))
      .catch((error: unknown) => {
        this.#told(command, error);
        throw error;
      })
      .finally(() => this.#aborts.end(command));
  }

  #cancel({ client, command }: CommandOf<"Cancel">): CommandResult<"Cancel"> {
    return { found: this.#aborts.cancel(client.id, command) };
  }

  #watch<T>(command: Command, run: () => T): T {
    try {
      return run();
    } catch (error) {
      this.#told(command, error);
      throw error;
    }
  }

  #told({ semaphore }: Command, error: unknown): void {
    if (error instanceof TensorBusError) this.#tell({ kind: "commandFailed", command: semaphore, error });
  }

  #tell(event: AgentEvent): void {
    this.#events.next(event);
  }

  async #close(drainMs: number): Promise<void> {
    const closed = closedError();
    const onFault = (error: unknown) => this.#tell({ kind: "fault", error: asFault(error) });
    // A state that is full or damaged takes no last word: clients learn of the end by the agent's lock.
    await this.#post.retire().catch(onFault);
    const drained = this.#post.drain().catch(onFault);
    this.#core.retire(closed);
    await this.#core.idle(new Deadline({ timeoutMs: drainMs }));
    try {
      await this.#core.close(closed, drained);
    } finally {
      await this.#post.close().catch(onFault);
      this.#events.complete();
    }
  }
}

function millisecondsLeft({ deadline }: Command): number {
  if (deadline.boot !== bootId()) return 0;
  return Math.max(0, Number(deadline.ns - monotonicNs()) / 1e6);
}

function closedError(): TensorBusError {
  return new TensorBusError("TB_CLOSED", "the agent was closed");
}

function asFault(thrown: unknown): TensorBusError {
  if (thrown instanceof TensorBusError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new TensorBusError("TB_SYSTEM", message, { cause: thrown });
}
