/** An agent's meeting place with its clients: its claim on the folders, the queue, the state, and what tells others that it lives. */
import { join } from "node:path";
import type { Observable } from "rxjs";
import type { Deadline } from "../../deadline.ts";
import { type ClientDescriptors, processDescriptors } from "../batch/memory.ts";
import { Door, type DoorHandlers } from "../door/door.ts";
import type { AgentEvent } from "../pair/events.ts";
import { type EventPort, openEventPort } from "../process/event-port.ts";
import { ownIdentity } from "../process/identity.ts";
import {
  type AgentClaim,
  claimFolder,
  type Heartbeat,
  startHeartbeat,
  unlinkHeartbeat,
} from "../process/liveness.ts";
import { sweepNames } from "../process/names.ts";
import { packageVersion } from "../process/package-version.ts";
import { openWaker, unlinkSemaphore, type Waker } from "../process/semaphore.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import { type CommandQueue, openCommandQueue } from "../queue/command-queue.ts";
import type { Command } from "../queue/commands.ts";
import { type AgentRecord, openState, type State } from "../queue/state.ts";
import { ClientKeeper } from "./clients.ts";
import { CommandPump, settleLeftovers } from "./pump.ts";

interface AgentIntakeOptions {
  readonly rank: number;
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
  readonly queueCapacity?: number;
  readonly stuckMs?: number;
  readonly clientSocketPath?: string;
  readonly clientUids?: readonly number[];
  readonly sides?: ReadonlyMap<string, readonly number[]>;
}

interface PostHandlers {
  readonly run: (command: Command) => unknown;
  readonly onGone: (client: ClientIdentity) => void;
  readonly onFault: (error: unknown) => void;
  /** What clients are told of. */
  readonly events$: Observable<AgentEvent>;
}

export class AgentIntake {
  /** The generation of the last agent on these paths, which has ended. */
  readonly predecessor: bigint | undefined;
  readonly state: State;
  readonly #options: AgentIntakeOptions;
  readonly #record: AgentRecord;
  readonly #port: EventPort;
  readonly #queue: CommandQueue;
  readonly #claims: readonly AgentClaim[];
  readonly #waker: Waker;
  readonly #heartbeat: Heartbeat;
  readonly #release: () => Promise<void>;
  #keeper: ClientKeeper | undefined;
  #pump: CommandPump | undefined;
  #door: Door | undefined;
  #letGo: (() => void) | undefined;
  #closed = false;

  private constructor(
    options: AgentIntakeOptions,
    record: AgentRecord,
    predecessor: AgentRecord | undefined,
    parts: {
      port: EventPort;
      queue: CommandQueue;
      state: State;
      claims: AgentClaim[];
      waker: Waker;
      heartbeat: Heartbeat;
    },
    release: () => Promise<void>,
  ) {
    this.#options = options;
    this.#record = record;
    this.predecessor = predecessor?.generation;
    this.state = parts.state;
    this.#port = parts.port;
    this.#queue = parts.queue;
    this.#claims = parts.claims;
    this.#waker = parts.waker;
    this.#heartbeat = parts.heartbeat;
    this.#release = release;
  }

  /**
   * Claims the folders and ends what the last agent on them had started; no command is taken yet. `TB_EXISTS` if
   * another agent has them.
   */
  static async open(options: AgentIntakeOptions, deadline: Deadline): Promise<AgentIntake> {
    const undo: (() => unknown)[] = [];
    const release = () => runAll(undo.splice(0).reverse());
    const owned = <T>(value: T, close: (value: T) => unknown): T => {
      undo.push(() => close(value));
      return value;
    };
    try {
      const { rank, commandQueuePath, agentStatePath, queueCapacity, stuckMs } = options;
      const stuck = stuckMs === undefined ? {} : { stuckMs };
      const capacity = queueCapacity === undefined ? {} : { capacity: queueCapacity };
      const port = owned(openEventPort(), (it) => it.close());
      const queue = owned(
        await openCommandQueue({ path: commandQueuePath, port, ...capacity, ...stuck }, deadline.rest),
        (it) => it.close(),
      );
      const state = owned(await openState({ path: agentStatePath, port, ...stuck }, deadline.rest), (it) =>
        it.close(),
      );
      const claims = [queue, state].map(({ environment }) =>
        owned(claimFolder(port, environment.locksPath), (it) => it.close()),
      );
      const waker = owned(openWaker(port), (it) => it.close());
      const heartbeat = owned(startHeartbeat(), (it) => it.close());
      const { agent, predecessor } = await state.enthrone(
        { ...ownIdentity(), rank, wake: waker.name, heartbeat: heartbeat.name, ready: false },
        deadline.rest,
      );
      if (predecessor !== undefined) {
        unlinkSemaphore(predecessor.wake);
        unlinkHeartbeat(predecessor.heartbeat);
      }
      sweepNames();
      await settleLeftovers(queue, state);
      return new AgentIntake(
        options,
        agent,
        predecessor,
        { port, queue, state, claims, waker, heartbeat },
        release,
      );
    } catch (error) {
      await release();
      throw error;
    }
  }

  get generation(): bigint {
    return this.#record.generation;
  }

  /** The place where native threads report to this agent. */
  get port(): EventPort {
    return this.#port;
  }

  get queueDepth(): number {
    return this.#queue.size();
  }

  isAlive(client: bigint): boolean {
    return this.#door?.has(client) === true || this.#queue.isClientAlive(client);
  }

  /** Clients of the queue name descriptors of their own process; those of the socket have handed theirs over. */
  get descriptors(): ClientDescriptors {
    const isAtDoor = ({ id }: ClientIdentity) => this.#door?.has(id) === true;
    return {
      isAlive: (client) => isAtDoor(client) || processDescriptors.isAlive(client),
      path: (client, fd) => (isAtDoor(client) ? `/proc/self/fd/${fd}` : processDescriptors.path(client, fd)),
    };
  }

  /** Takes commands from here on, and says so. */
  async serve({ run, onGone, onFault, events$ }: PostHandlers, deadline: Deadline): Promise<void> {
    const [queue, state, port, waker] = [this.#queue, this.state, this.#port, this.#waker];
    const keeper = new ClientKeeper({
      queue,
      state,
      port,
      onGone: (client) => {
        this.#pump?.forget(client.wake);
        onGone(client);
      },
      onFault,
    });
    this.#keeper = keeper;
    keeper.update();
    await this.#openDoor({ run, onGone, onFault }, events$);
    events$.subscribe((event) => {
      // What a subscriber throws would end the process; a queue that is damaged ends the next command.
      try {
        this.#tellEnded(event);
      } catch (error) {
        onFault(error);
      }
    });
    await state.write(
      "saying that the agent is ready",
      () => state.putAgent({ ...this.#record, ready: true }),
      deadline.rest,
    );
    for (const claim of this.#claims) await claim.live(deadline.rest);
    this.#letGo = port.hold();
    this.#pump = new CommandPump({
      rank: this.#record.rank,
      queue,
      state,
      waker,
      run,
      onClients: () => keeper.update(),
      onFault,
    });
    // Clients that wait for an agent look again.
    queue.tellWaiters(queue.clients().map(({ wake }) => wake));
  }

  /** Says that it takes no more commands. */
  async retire(): Promise<void> {
    this.#door?.retire();
    const { state } = this;
    await state.write("saying that the agent ends", () => state.putAgent({ ...this.#record, ready: false }));
  }

  /** Takes no more commands; resolves when those that were started are answered. */
  async drain(): Promise<void> {
    await Promise.all([this.#pump?.drain(), this.#door?.drain()]);
  }

  /** Gives everything up. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await runAll([
      () => this.#door?.close(),
      () => this.#pump?.close(),
      () => this.#keeper?.close(),
      () => this.#letGo?.(),
      () => this.#heartbeat.close(),
      () => this.#waker.close(),
      this.#release,
    ]);
  }

  /** Clients of the queue hear of a batch's end as those of the socket do. Of the agent's own they hear by its lock. */
  #tellEnded(event: AgentEvent): void {
    if (event.kind !== "batchEnded" || event.reason.code === "TB_CLOSED") return;
    const clients = new Map(this.#queue.clients().map((client) => [client.id, client]));
    const news = event.registrations.flatMap(({ client: id, instance }) => {
      const client = clients.get(id);
      return client === undefined ? [] : [{ client, id: instance, error: event.reason }];
    });
    this.#pump?.tell(news);
  }

  async #openDoor(handlers: DoorHandlers, events$: Observable<AgentEvent>): Promise<void> {
    const { rank, commandQueuePath, clientSocketPath, clientUids = [], sides = new Map() } = this.#options;
    const door = await Door.open(
      {
        rank,
        generation: this.generation,
        version: packageVersion(),
        path: clientSocketPath ?? join(commandQueuePath, "client.sock"),
        uids: clientUids,
        sides: Object.fromEntries(sides),
        heartbeat: this.#heartbeat.name,
      },
      handlers,
    );
    this.#door = door;
    events$.subscribe((event) => door.tell(event));
  }
}

/** Runs each step whatever became of those before it, since what a full disk keeps from being written is no reason to
 * leave a name in /dev/shm; then fails as the first that failed. */
async function runAll(steps: readonly (() => unknown)[]): Promise<void> {
  const failed: unknown[] = [];
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      failed.push(error);
    }
  }
  if (failed.length > 0) throw failed[0];
}
