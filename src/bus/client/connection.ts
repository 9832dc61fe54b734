/**
 * What a client holds open: its queue, its state, and the tie to the agent that lives, which is tied anew when another comes.
 * It knows nothing of the client object, so that a client that is forgotten can be collected and closed.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { cancelledError, Deadline, type DeadlineOptions } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import { type EventPort, openEventPort } from "../process/event-port.ts";
import { LockFile, lockOffsets, openPulse, unresponsiveMs } from "../process/liveness.ts";
import { logger } from "../process/logger.ts";
import { type CommandQueue, openCommandQueue } from "../queue/command-queue.ts";
import { type AgentRecord, openState, type State } from "../queue/state.ts";
import { AgentLink, findAgent } from "./agent-link.ts";

interface ConnectionPaths {
  readonly agentRank: number;
  readonly commandQueuePath: string;
  readonly agentStatePath: string;
}

/** Milliseconds between two looks for an agent that is not there yet. */
const lookMs = 20;

/** Connections of this process that are open. */
const open = new Set<ClientConnection>();
process.on("exit", () => {
  for (const connection of open) connection.abandon();
});

export class ClientConnection {
  readonly paths: ConnectionPaths;
  readonly port: EventPort;
  readonly queue: CommandQueue;
  readonly state: State;
  /** Called when the agent has ended, after the calls under way. */
  onAgentLost: (error: TensorBusError) => void = () => {};
  readonly #locks: LockFile;
  #link: AgentLink | undefined;
  #linking: Promise<AgentLink> | undefined;
  #closing: Promise<void> | undefined;

  private constructor(paths: ConnectionPaths, port: EventPort, queue: CommandQueue, state: State) {
    this.paths = paths;
    this.port = port;
    this.queue = queue;
    this.state = state;
    this.#locks = new LockFile(queue.environment.locksPath);
    open.add(this);
  }

  /** Opens what does not need an agent. */
  static async open(paths: ConnectionPaths, deadline: DeadlineOptions): Promise<ClientConnection> {
    const port = openEventPort();
    let queue: CommandQueue | undefined;
    try {
      queue = await openCommandQueue({ path: paths.commandQueuePath, port }, deadline);
      const state = await openState({ path: paths.agentStatePath, port }, deadline);
      return new ClientConnection(paths, port, queue, state);
    } catch (error) {
      await queue?.close();
      await port.close();
      throw error;
    }
  }

  /** True for an agent of this very process: it can use memory that is not shared. */
  get isEmbedded(): boolean {
    return this.#link?.isOpen === true && this.#link.agent.pid === process.pid;
  }

  /** The agent that this connection is tied to, if any. */
  get agent(): AgentRecord | undefined {
    return this.#link?.isOpen ? this.#link.agent : undefined;
  }

  /** Waits until an agent lives and beats, and ties to it. At the deadline it fails with the reason why there is none. */
  async awaitAgent(options: DeadlineOptions): Promise<AgentLink> {
    const deadline = new Deadline(options);
    for (;;) {
      try {
        return await this.link(deadline.rest, true);
      } catch (error) {
        if (!isAgentAway(error) || deadline.remainingMs === 0) throw error;
      }
      await this.#pause(deadline);
    }
  }

  /**
   * The tie to the agent that lives. Without one it is `TB_AGENT_LOST` at once; one of another rank is `TB_AGENT_RANK`.
   * `beating`: an agent whose heart has stopped is `TB_AGENT_UNRESPONSIVE`.
   */
  async link(deadline: DeadlineOptions = {}, beating = false): Promise<AgentLink> {
    if (this.#closing !== undefined) throw this.#closedError();
    const link = this.openLink ?? (await this.#tie(deadline));
    if (beating && link.silenceMs() >= unresponsiveMs) throw this.#silent(link.agent, link.silenceMs());
    return link;
  }

  /** The tie if there is one: the way of all calls but the first. */
  get openLink(): AgentLink | undefined {
    return this.#link?.isOpen ? this.#link : undefined;
  }

  /** Frees everything. The agent frees what this client registered. A second call awaits the first. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** What the end of the process leaves no time for: the agent notices by the lock, and does the rest. */
  abandon(): void {
    this.#link?.end(this.#closedError());
  }

  async #tie(deadline: DeadlineOptions): Promise<AgentLink> {
    this.#linking ??= this.#open(deadline).finally(() => {
      this.#linking = undefined;
    });
    return this.#linking;
  }

  async #open(deadline: DeadlineOptions): Promise<AgentLink> {
    const agent = findAgent(this.state, this.#locks.isHeld(lockOffsets.agent));
    if (agent instanceof TensorBusError) throw agent;
    const wanted = this.paths.agentRank;
    if (agent.rank !== wanted) {
      const message = `the agent on ${this.queue.environment.path} runs rank ${agent.rank}, not ${wanted}`;
      throw new TensorBusError("TB_AGENT_RANK", message, { details: { wanted, found: agent.rank } });
    }
    this.#checkPulse(agent);
    const link = await AgentLink.open(this, agent, (error) => this.onAgentLost(error), deadline);
    if (this.#closing !== undefined) {
      await link.leave(this.#closedError());
      throw this.#closedError();
    }
    this.#link = link;
    return link;
  }

  /** Before anything is queued for it: one that is stopped while clients come is not their agent yet. */
  #checkPulse(agent: AgentRecord): void {
    const pulse = openPulse(agent.heartbeat);
    try {
      if (pulse.ageMs() >= unresponsiveMs) throw this.#silent(agent, pulse.ageMs());
    } finally {
      pulse.close();
    }
  }

  #silent(agent: AgentRecord, silenceMs: number): TensorBusError {
    const seconds = (silenceMs / 1000).toFixed(1);
    const message = `the agent of rank ${agent.rank} (process ${agent.pid}) has sent no heartbeat for ${seconds} s`;
    return new TensorBusError("TB_AGENT_UNRESPONSIVE", message, { details: { pid: agent.pid, silenceMs } });
  }

  #closedError(): TensorBusError {
    return new TensorBusError("TB_CLOSED", `the client of rank ${this.paths.agentRank} was closed`);
  }

  async #pause(deadline: Deadline): Promise<void> {
    const { signal } = deadline;
    try {
      await sleep(
        Math.min(lookMs, Math.max(1, deadline.remainingMs)),
        undefined,
        signal === undefined ? {} : { signal },
      );
    } catch {
      throw cancelledError("connecting to an agent", signal!);
    }
  }

  async #close(): Promise<void> {
    await this.#linking?.catch(() => {});
    try {
      await this.#link?.leave(this.#closedError());
    } catch (error) {
      // Somebody else is stuck in a write. The lock is free all the same, and the agent notices by that.
      logger.debug({ err: error }, "a client could not sign off from its agent");
    }
    open.delete(this);
    this.#locks.close();
    await this.state.close();
    await this.queue.close();
    await this.port.close();
  }
}

function isAgentAway(error: unknown): boolean {
  if (!(error instanceof TensorBusError)) return false;
  const { code, details } = error;
  return (
    code === "TB_AGENT_LOST" ||
    code === "TB_AGENT_UNRESPONSIVE" ||
    // Its heartbeat went with it, between two looks.
    (code === "TB_SYSTEM" && details["errno"] === 2)
  );
}
