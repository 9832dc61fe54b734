/**
 * What an agent does for its clients, whatever brings their commands and keeps their results: it finds the other ranks, and
 * has its pairs and batches follow what becomes of the store, of peers and of clients.
 */
import { Deadline, type DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { PlanOptions } from "../../plan/index.ts";
import type { Store } from "../../store/store.ts";
import type { Transport, TransportEvent } from "../../transport/transport.ts";
import type { Batch } from "../batch/batch.ts";
import { Batches } from "../batch/batches.ts";
import type { ClientMemory } from "../batch/memory.ts";
import type { AgentEvent } from "../pair/events.ts";
import { Pairs } from "../pair/pairs.ts";
import type { Distrust } from "../pair/rendezvous.ts";
import { type StoreConnection, type StoreFactory, Uplink } from "../pair/uplink.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import type { Command, CommandOf, CommandResult } from "../queue/commands.ts";
import type { Records } from "../queue/state.ts";

interface AgentCoreOptions {
  readonly rank: number;
  readonly world: number;
  readonly generation: bigint;
  /** That of the agent before it on its paths. */
  readonly predecessor?: bigint | undefined;
  readonly store: Store | StoreFactory;
  readonly transport: Transport;
  readonly distrust?: Distrust | undefined;
  /** The parts that outlive the agent. */
  readonly state: Records;
  readonly memory: ClientMemory;
  readonly isAlive: (client: bigint) => boolean;
  /** For batches whose clients do not say it. */
  readonly commit: "direct" | "staged";
  readonly checksum: boolean;
  readonly planning: PlanOptions;
  readonly tell: (event: AgentEvent) => void;
  /** Events that belong to no command. */
  readonly onFault: (error: unknown) => void;
}

/** Commands that take their time, each with a deadline. */
type AwaitedCommand = Exclude<Command, { type: "Cancel" }>;

export class AgentCore {
  readonly #options: AgentCoreOptions;
  readonly #uplink: Uplink;
  readonly #pairs: Pairs;
  readonly #batches: Batches;
  readonly #retired = new AbortController();
  #closing = false;

  private constructor(options: AgentCoreOptions, uplink: Uplink) {
    const { rank, world, generation, state, isAlive, tell, commit, checksum, planning, memory, onFault } =
      options;
    this.#options = options;
    this.#uplink = uplink;
    const pairs = new Pairs({ rank, world, generation, uplink, state, isAlive, tell });
    this.#pairs = pairs;
    this.#batches = new Batches({
      rank,
      generation,
      uplink,
      state,
      pairs,
      memory,
      commit,
      checksum,
      planning,
      tell,
      onFault,
    });
  }

  /** Finds the store, joins a session of the transport, and takes up the pairs of an earlier agent. */
  static async open(options: AgentCoreOptions, deadline: DeadlineOptions): Promise<AgentCore> {
    const { rank, world, generation, predecessor, store, transport, distrust } = options;
    let core: AgentCore | undefined;
    const uplink = await Uplink.open(
      {
        rank,
        world,
        generation,
        predecessor,
        store,
        transport,
        distrust,
        onTransport: (event) => {
          if (core !== undefined) core.#onTransport(event);
        },
        onLost: async (error) => {
          if (core !== undefined) await core.#onLost(error);
        },
        onFound: (connection) => {
          if (core !== undefined) core.#onFound(connection);
        },
      },
      deadline,
    );
    core = new AgentCore(options, uplink);
    core.#pairs.restore();
    return core;
  }

  get batches(): readonly Batch[] {
    return this.#batches.all;
  }

  /** Its errors name the rank where they began, or this one. */
  async run(command: AwaitedCommand, deadline: Deadline): Promise<unknown> {
    try {
      return await this.#dispatch(command, deadline);
    } catch (error) {
      throw withRank(error, this.#options.rank);
    }
  }

  async #dispatch(command: AwaitedCommand, deadline: Deadline): Promise<unknown> {
    switch (command.type) {
      case "InitPair":
        return this.#pairs.init(command, deadline);
      case "RegisterTensors":
        return this.#batches.register(command, deadline);
      case "Transfer":
        return this.#batches.transfer(command, deadline);
      case "CleanupBatch":
        return this.#batches.cleanup(command);
      case "QueryStatus":
        return this.#queryPending(command, deadline);
    }
  }

  /** The store is asked until the deadline, or until this agent takes no more commands. */
  async #queryPending(
    command: CommandOf<"QueryStatus">,
    deadline: Deadline,
  ): Promise<CommandResult<"QueryStatus">> {
    const retired = this.#retired.signal;
    const signal = deadline.signal === undefined ? retired : AbortSignal.any([deadline.signal, retired]);
    try {
      const bounded = new Deadline({ timeoutMs: deadline.remainingMs, signal });
      const pending = await this.#batches.pending(command, bounded);
      return { ...this.query(command), ...(pending === undefined ? {} : { pending }) };
    } catch (error) {
      const { reason } = signal;
      throw reason instanceof TensorBusError ? reason : error;
    }
  }

  /** Answers at once, from what is known here. */
  query(command: CommandOf<"QueryStatus">): CommandResult<"QueryStatus"> {
    return this.#batches.query(command);
  }

  /** A client has ended, and with it what it had registered. */
  async forget(client: ClientIdentity): Promise<void> {
    this.#pairs.forgetClient(client.id);
    try {
      const batches = await this.#batches.forgetClient(client.id);
      this.#options.tell({ kind: "clientEnded", pid: client.pid, batches });
    } catch (error) {
      this.#options.onFault(error);
    }
  }

  /** Takes up nothing any more: ends what waits for other ranks. */
  retire(reason: TensorBusError): void {
    this.#closing = true;
    this.#retired.abort(reason);
    this.#pairs.abandon(reason);
    this.#batches.abandon(reason);
  }

  /** Cancels all rounds under way. */
  hurry(reason: TensorBusError): void {
    this.#batches.hurry(reason);
  }

  /** Waits until no round is under way. */
  idle(deadline: Deadline): Promise<void> {
    return this.#batches.idle(deadline);
  }

  /** Ends what is left; `answered` resolves once nobody waits for a result of it any more. */
  async close(reason: TensorBusError, answered: Promise<void>): Promise<void> {
    try {
      await this.#batches.end(reason).finally(async () => {
        await answered;
        await this.#pairs.leave();
      });
    } finally {
      await this.#uplink.close();
    }
  }

  #onTransport(event: TransportEvent): void {
    this.#options.tell(event);
    if (event.kind !== "fault") this.#batches.peerEnded(event.rank, event.error, event.kind === "peerLeft");
  }

  async #onLost(error: TensorBusError): Promise<void> {
    const { tell, onFault } = this.#options;
    tell({ kind: "storeLost", error });
    this.#pairs.end(error);
    await this.#batches.end(error).catch(onFault);
  }

  #onFound(connection: StoreConnection): void {
    const { tell, onFault } = this.#options;
    tell({ kind: "storeFound" });
    this.#batches.resolve(connection).catch(onFault);
    if (!this.#closing) this.#pairs.restore();
  }
}

function withRank(error: unknown, rank: number): unknown {
  if (!(error instanceof TensorBusError) || typeof error.details["rank"] === "number") return error;
  const { code, message, details, cause } = error;
  return new TensorBusError(code, message, { details: { ...details, rank }, cause });
}
