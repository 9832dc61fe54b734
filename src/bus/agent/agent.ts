/**
 * The agent of a rank: takes the commands of its clients, finds the other ranks, and moves tensors. A process of its own
 * (`tensorbus agent`), or a part of the process that starts it.
 */
import { BehaviorSubject, merge, type Observable, Subject, switchMap } from "rxjs";
import { Deadline, type DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { PlanOptions } from "../../plan/index.ts";
import type { Store } from "../../store/store.ts";
import type { Transport } from "../../transport/transport.ts";
import { Batches } from "../batch/batches.ts";
import { AgentMemory } from "../batch/memory.ts";
import { recordPlanning } from "../batch/planning.ts";
import type { AgentEvent, AgentProgress } from "../pair/events.ts";
import { Pairs } from "../pair/pairs.ts";
import type { Distrust } from "../pair/rendezvous.ts";
import { type Connection, type StoreFactory, Uplink } from "../pair/uplink.ts";
import { bootId, monotonicNs } from "../process/identity.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import type { Command, CommandOf, CommandResult } from "../queue/commands.ts";
import { hostRegions } from "../tensor/host-regions.ts";
import { CommandAborts } from "./command-aborts.ts";
import { AgentIntake } from "./intake.ts";

export interface AgentOptions {
  /** Of the world of agents, in which both sides of a pair stand. */
  readonly rank: number;
  /** One more than the largest rank: the same for all agents; default 4,096. */
  readonly world?: number;
  /** Folders that clients share with it; made where they are missing. */
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
  /** What all agents share. A store that is given stays the caller's; a factory is asked again when its store was lost. */
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
  readonly #uplink: Uplink;
  readonly #pairs: Pairs;
  readonly #batches: Batches;
  readonly #events: Subject<AgentEvent>;
  readonly #aborts = new CommandAborts();
  readonly #registered = new BehaviorSubject<void>(undefined);
  #closing: Promise<void> | undefined;

  private constructor(options: AgentOptions, post: AgentIntake, uplink: Uplink, events: Subject<AgentEvent>) {
    const { rank, world = defaultWorld, commit = "direct", checksum = false, planning = {} } = options;
    const { generation } = post;
    this.rank = rank;
    this.generation = generation;
    this.#options = options;
    this.#post = post;
    this.#uplink = uplink;
    this.#events = events;
    this.events$ = events.asObservable();
    const { state } = post;
    const tell = (event: AgentEvent) => this.#tell(event);
    const isAlive = (client: bigint) => post.isAlive(client);
    this.#pairs = new Pairs({ rank, world, generation, uplink, state, isAlive, tell });
    const onFault = (error: unknown) => this.#onFault(error);
    this.#batches = new Batches({
      rank,
      generation,
      uplink,
      state,
      pairs: this.#pairs,
      memory: new AgentMemory(hostRegions, { port: post.port, onFault }),
      commit,
      checksum,
      planning,
      tell,
      onFault,
    });
    this.progress$ = this.#registered.pipe(
      switchMap(() =>
        merge(...this.#batches.all.flatMap(({ live }) => live.map(({ progress$ }) => progress$))),
      ),
    );
  }

  /**
   * Starts the agent of a rank; it takes commands once this resolves. `TB_EXISTS` where another agent has the paths; the rest
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
      const uplink = await Uplink.open(
        {
          rank,
          world,
          generation: post.generation,
          store,
          transport,
          distrust,
          onTransport: (event) => {
            if (agent !== undefined) agent.#onTransport(event);
          },
          onLost: async (error) => {
            if (agent !== undefined) await agent.#onLost(error);
          },
          onFound: (connection) => {
            if (agent !== undefined) agent.#onFound(connection);
          },
        },
        deadline.rest,
      );
      agent = new Agent(options, post, uplink, events);
      agent.#pairs.restore();
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

  /**
   * Takes no more commands, lets rounds under way end or cancels them after `drainMs`, and frees everything. What is queued
   * stays for the next agent. A second call joins the first; with a shorter `drainMs` it hurries it.
   */
  close(options: { readonly drainMs?: number } = {}): Promise<void> {
    if (this.#closing !== undefined && options.drainMs === 0) this.#batches.hurry(closedError());
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
        onGone: (client) => void this.#forget(client),
        onFault: (error) => this.#onFault(error),
      },
      deadline,
    );
  }

  #run(command: Command): unknown {
    if (command.type === "QueryStatus") return this.#watch(command, () => this.#batches.query(command));
    if (command.type === "Cancel") return this.#cancel(command);
    const signal = this.#aborts.begin(command);
    return this.#dispatch(command, new Deadline({ timeoutMs: millisecondsLeft(command), signal }))
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

  async #dispatch(
    command: Exclude<Command, { type: "QueryStatus" | "Cancel" }>,
    deadline: Deadline,
  ): Promise<unknown> {
    switch (command.type) {
      case "InitPair":
        return this.#pairs.init(command, deadline);
      case "RegisterTensors":
        return this.#batches.register(command, deadline);
      case "Transfer":
        return this.#batches.transfer(command, deadline);
      case "CleanupBatch":
        return this.#batches.cleanup(command);
    }
  }

  #told({ semaphore }: Command, error: unknown): void {
    if (error instanceof TensorBusError) this.#tell({ kind: "commandFailed", command: semaphore, error });
  }

  async #forget(client: ClientIdentity): Promise<void> {
    this.#pairs.forgetClient(client.id);
    try {
      const batches = await this.#batches.forgetClient(client.id);
      this.#tell({ kind: "clientEnded", pid: client.pid, batches });
    } catch (error) {
      this.#onFault(error);
    }
  }

  #onTransport(event: {
    readonly kind: string;
    readonly rank?: number;
    readonly error: TensorBusError;
  }): void {
    this.#tell(event as AgentEvent);
    if (event.rank !== undefined) this.#batches.peerEnded(event.rank, event.error);
  }

  async #onLost(error: TensorBusError): Promise<void> {
    this.#tell({ kind: "storeLost", error });
    this.#pairs.end(error);
    await this.#batches.end(error).catch((fault) => this.#onFault(fault));
  }

  #onFound(connection: Connection): void {
    this.#tell({ kind: "storeFound" });
    this.#batches.resolve(connection).catch((error) => this.#onFault(error));
    if (this.#closing === undefined) this.#pairs.restore();
  }

  #onFault(thrown: unknown): void {
    const message = thrown instanceof Error ? thrown.message : String(thrown);
    const error =
      thrown instanceof TensorBusError ? thrown : new TensorBusError("TB_SYSTEM", message, { cause: thrown });
    this.#tell({ kind: "fault", error });
  }

  #tell(event: AgentEvent): void {
    this.#events.next(event);
    if (event.kind === "batchRegistered" || event.kind === "batchEnded") this.#registered.next();
  }

  async #close(drainMs: number): Promise<void> {
    const closed = closedError();
    await this.#post.retire();
    const drained = this.#post.drain();
    this.#pairs.abandon(closed);
    this.#batches.abandon(closed);
    await this.#batches.idle(new Deadline({ timeoutMs: drainMs }));
    try {
      await this.#batches.end(closed).finally(async () => {
        await drained;
        await this.#pairs.leave();
      });
    } finally {
      await this.#uplink.close();
      await this.#post.close();
      this.#registered.complete();
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
