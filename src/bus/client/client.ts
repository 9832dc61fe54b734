/**
 * The client of the bus: what a host process hands its tensors to, and asks for transfers. Every call is a command in the
 * queue of this rank's agent, and ends with the agent's answer, an error of its own, or the end of the agent; none blocks
 * the event loop.
 */
import { Deadline, type DeadlineOptions, waitUntil } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { DeviceMesh, Placement, StridedShardReading } from "../../layout/index.ts";
import { logger } from "../process/logger.ts";
import { Semaphore } from "../process/semaphore.ts";
import type { CommandQueue } from "../queue/command-queue.ts";
import { type BatchId, type CommandResult, normalizeBatchId, type SideLayout } from "../queue/commands.ts";
import type { Environment } from "../queue/environment.ts";
import type { State } from "../queue/state.ts";
import { encodeTensorTable } from "../queue/tensor-table.ts";
import { leaveArena } from "../tensor/shared-tensor.ts";
import type { AgentLink } from "./agent-link.ts";
import { BatchHandler } from "./batch-handler.ts";
import { ClientConnection } from "./connection.ts";
import { LayoutList, layoutMessage } from "./layout.ts";
import { type ClientTensor, describeTensor, RegionList } from "./memory.ts";
import { type Registration, Registrations } from "./registration.ts";
import type { PendingRound, TransferResult } from "./round-events.ts";

export interface ConnectOptions {
  /** The rank whose agent this client talks to. */
  readonly agentRank: number;
  /** The agent's command queue; default `TENSOR_BUS_COMMAND_QUEUE_PATH`. */
  readonly commandQueuePath?: string;
  /** The agent's state; default `TENSOR_BUS_STATE_PATH`. */
  readonly agentStatePath?: string;
  /** Milliseconds in which an agent must be found; default 30,000. */
  readonly connectionTimeoutMs?: number;
  readonly signal?: AbortSignal;
}

/** Which registration a handler means: a client may have registered both sides of a batch. */
interface OfRegistration {
  readonly registration?: Registration;
}

/** `timeoutMs`: default 30,000. */
export interface CallOptions extends DeadlineOptions {
  /**
   * Default true. Without it, a call does not wait: neither for room in the queue (`TB_QUEUE_FULL`) nor for the end of what
   * it starts. A question waits for its answer all the same.
   */
  readonly blocking?: boolean;
}

/** `blocking` is false by default: the semaphore tells when the round has ended. */
export interface TransferOptions extends CallOptions {
  /**
   * The version of the data, such as the number of the training step: no round mixes two versions, ranks that name none take what
   * comes, and one that names an older version than its round carries fails at once, alone: `TB_STALE_VERSION`. From 0 to
   * 2^64 - 1, growing.
   */
  readonly version?: number | bigint;
  /**
   * Have the result's `version` say which this call got, if it names none: one more exchange with the store. If the store does not say
   * it by the deadline, the result has `versionUnknown` in its place.
   */
  readonly tellVersion?: boolean;
}

export interface InitPairOptions extends CallOptions {
  readonly pairName: string;
  /** The two sides, as this one sees them. */
  readonly localName: string;
  readonly remoteName: string;
  /** Ranks that the local side has in all. */
  readonly expectedWorldSize: number;
  /** With `placements`: how the local side's tensors lie. Without both, rank i's whole tensor goes to rank i. */
  readonly deviceMesh?: DeviceMesh;
  /** One for each mesh dimension, or their text forms. */
  readonly placements?: readonly (Placement | string)[];
  /** How strided shards read; needed only if the two readings differ. */
  readonly stridedShard?: StridedShardReading;
  /**
   * In place of `deviceMesh` and `placements`: each tensor of this side names its own layout when it is registered, so that
   * one pair holds a whole model. A rank registers the tensors that it holds.
   */
  readonly tensorLayouts?: boolean;
}

export interface RegisterOptions extends DeadlineOptions {
  /** Bytes of a bucket on the wire; the same on both sides. Default: the agent's. */
  readonly bucketSize?: number;
  /** Says when targets change: as bytes arrive, or on all ranks at once. Default: the agent's. */
  readonly commit?: "direct" | "staged";
  /**
   * Which tensors travel: `exact`, both sides have the same names, anything else is an error; `target`, all that the
   * target has; `common`, those that both have. Default: what the other side says, else `exact`.
   */
  readonly match?: "exact" | "target" | "common";
}

/** Longer than a transport may take to make a cancelled round's memory quiet: its default is 5 s. */
const roundGraceMs = 15_000;

/** A client that is forgotten is closed: what it made is freed. */
const forgotten = new FinalizationRegistry<ClientConnection>((connection) => {
  connection
    .close()
    .catch((error) => logger.warn({ err: error }, "a garbage-collected client could not be closed"));
});

export class TensorBusClient implements AsyncDisposable {
  readonly #connection: ClientConnection;
  readonly #registrations: Registrations;
  /** Pairs whose matching nobody waits for, or failed unseen. */
  readonly #pairs = new Map<string, Promise<void>>();

  private constructor(connection: ClientConnection, registrations: Registrations) {
    this.#connection = connection;
    this.#registrations = registrations;
    forgotten.register(this, connection, this);
  }

  /**
   * Connects to the agent of a rank. `TypeError` without paths; at the timeout `TB_AGENT_LOST` if no agent lives,
   * `TB_AGENT_UNRESPONSIVE` if its heartbeat has stopped or it takes no commands; `TB_AGENT_RANK` if it is another's.
   */
  static async connect(options: ConnectOptions): Promise<TensorBusClient> {
    const { agentRank, connectionTimeoutMs = 30_000, signal } = options;
    if (!Number.isSafeInteger(agentRank) || agentRank < 0) {
      throw new TypeError(`agentRank must be a whole number of at least 0, not ${agentRank}`);
    }
    const paths = {
      agentRank,
      commandQueuePath: pathOf(options, "commandQueuePath", "TENSOR_BUS_COMMAND_QUEUE_PATH"),
      agentStatePath: pathOf(options, "agentStatePath", "TENSOR_BUS_STATE_PATH"),
    };
    const deadline = new Deadline({
      timeoutMs: connectionTimeoutMs,
      ...(signal === undefined ? {} : { signal }),
    });
    const connection = await ClientConnection.open(paths, deadline.rest);
    try {
      await connection.awaitAgent(deadline.rest);
    } catch (error) {
      await connection.close();
      throw error;
    }
    const registrations = new Registrations();
    connection.onAgentLost = (error) => registrations.endAll(error);
    return new TensorBusClient(connection, registrations);
  }

  get agentRank(): number {
    return this.#connection.paths.agentRank;
  }

  get agentStatePath(): string {
    return this.#connection.paths.agentStatePath;
  }

  get commandQueue(): CommandQueue {
    return this.#connection.queue;
  }

  /** What the agent has written; clients only read it. */
  get stateDb(): State {
    return this.#connection.state;
  }

  /** The LMDB environment of `stateDb`. */
  get stateEnv(): Environment {
    return this.#connection.state.environment;
  }

  /**
   * Registers this rank's side of a pair, and waits until both sides are complete and matched. Without `blocking` it returns
   * once the command is queued; what fails later is told by `registerTensors` with that pair. A mesh without this rank
   * is `TB_MESH`; ranks or sides that do not agree are `TB_PAIR_MISMATCH`; the same side again is `TB_EXISTS`.
   */
  async initPair(options: InitPairOptions): Promise<void> {
    const { pairName, localName, remoteName, expectedWorldSize, blocking = true } = options;
    for (const [name, value] of Object.entries({ pairName, localName, remoteName })) requireName(name, value);
    if (!Number.isSafeInteger(expectedWorldSize) || expectedWorldSize < 1) {
      throw new TypeError(`expectedWorldSize must be a positive number of ranks, not ${expectedWorldSize}`);
    }
    const layout = this.#layoutOf(options);
    const link = await this.#link(options);
    const body = { pair: pairName, local: localName, remote: remoteName, worldSize: expectedWorldSize };
    const { queued, outcome } = link.submit(
      "InitPair",
      pairName,
      { ...body, ...(layout === undefined ? {} : { layout }) },
      { ...options, keep: this },
    );
    await queued;
    if (blocking) {
      await outcome;
      this.#pairs.delete(pairName);
      return;
    }
    const matched = outcome.then(() => {});
    matched.catch(() => {});
    this.#pairs.set(pairName, matched);
  }

  /**
   * Hands tensors to the agent, each with the pair that it travels through, and waits until all ranks of both sides have
   * done so and agree on the plan. `batchId` is the same on both sides. The tensors are held until the batch is closed.
   */
  async registerTensors(
    batchId: BatchId,
    tensors: readonly (readonly [ClientTensor, string])[],
    options: RegisterOptions = {},
  ): Promise<BatchHandler> {
    const batch = normalizeBatchId(batchId);
    if (!Array.isArray(tensors) || tensors.length === 0)
      throw new TypeError("a batch needs at least one tensor");
    const { bucketSize } = options;
    if (bucketSize !== undefined && (!Number.isSafeInteger(bucketSize) || bucketSize < 1)) {
      throw new TypeError(`bucketSize must be a positive number of bytes, not ${bucketSize}`);
    }
    const deadline = new Deadline(options);
    const pairNames = [...new Set(tensors.map(([, pair]) => requireName("the pair of a tensor", pair)))];
    await this.#pairsMatched(pairNames, deadline);
    const link = await this.#link(deadline.rest);
    const regions = new RegionList(this.#connection.isEmbedded);
    const layouts = new LayoutList(this.agentRank);
    const records = tensors.map(([tensor, pair], index) =>
      describeTensor(tensor, pair, regions, index, layouts),
    );
    const hold = regions.hold();
    try {
      const { queued, outcome } = link.submit(
        "RegisterTensors",
        batch,
        {
          batch,
          ...(bucketSize === undefined ? {} : { bucketBytes: bucketSize }),
          ...(options.commit === undefined ? {} : { commit: options.commit }),
          ...(options.match === undefined ? {} : { match: options.match }),
          ...(layouts.messages.length === 0 ? {} : { layouts: layouts.messages }),
          regions: regions.messages,
          tensors: encodeTensorTable(records),
        },
        { ...deadline.rest, keep: this, onLate: ({ instance }) => freeUnclaimed(link, batch, instance) },
      );
      await queued;
      const { instance, send, recv } = await outcome;
      const plans = { send, recv };
      const registration = this.#registrations.add({
        link,
        batchId: batch,
        pairNames,
        instance,
        plans,
        hold,
      });
      return new BatchHandler(this, registration);
    } catch (error) {
      hold.release();
      // Other memory is wanted now, and small tensors share what they have.
      if (error instanceof TensorBusError && error.code === "TB_QUARANTINED") leaveArena();
      throw error;
    }
  }

  /**
   * Runs one round of all pairs of a batch. The semaphore completes with its statistics, or fails with its error: at the
   * timeout `TB_TIMEOUT`, aborted `TB_CANCELLED`, and in either case only once nothing touches the tensors any more.
   */
  async transfer(
    batchId: BatchId,
    direction: "send" | "recv",
    options: TransferOptions & OfRegistration = {},
  ): Promise<Semaphore<TransferResult>> {
    if (direction !== "send" && direction !== "recv") {
      throw new TypeError(
        `the direction of a transfer must be "send" or "recv", not ${JSON.stringify(direction)}`,
      );
    }
    const batch = normalizeBatchId(batchId);
    const { blocking = false, registration = this.#registrations.get(batch) } = options;
    registration?.checkMemory();
    const link = await this.#link(options);
    const version = versionOf(options);
    const body = {
      batch,
      direction,
      ...(version === undefined ? {} : { version }),
      ...(options.tellVersion === undefined ? {} : { tellVersion: options.tellVersion }),
      ...instanceOf(options),
    };
    const waits = { ...options, blocking, graceMs: roundGraceMs, settlesQuiet: true, keep: this };
    const { name, queued, outcome } = link.submit("Transfer", batch, body, waits);
    const { semaphore, complete, fail } = Semaphore.create<TransferResult>(name);
    // An answer may be here before the enqueue is known to have ended: who watches is told in order all the same.
    const told = queued.then(
      () => registration?.tell({ kind: "queued", direction }),
      () => {},
    );
    outcome.then(complete, fail);
    outcome.then(
      (result) => told.then(() => registration?.tell({ kind: "completed", direction, result })),
      (error) => told.then(() => registration?.tell({ kind: "failed", direction, error })),
    );
    await queued;
    if (blocking) await outcome;
    return semaphore;
  }

  /** True once every rank of the sending side has its round ready, until the receiving side has taken it. */
  async queryTransferSignal(batchId: BatchId, options: CallOptions & OfRegistration = {}): Promise<boolean> {
    return (await this.#status(batchId, options)).ready;
  }

  /** The round that the transfer signal speaks of, and the version that it carries; undefined while the signal is false. */
  async pending(
    batchId: BatchId,
    options: CallOptions & OfRegistration = {},
  ): Promise<PendingRound | undefined> {
    return (await this.#status(batchId, options, { tellVersion: true })).pending;
  }

  async #status(
    batchId: BatchId,
    options: CallOptions & OfRegistration,
    more: { readonly tellVersion?: boolean } = {},
  ): Promise<CommandResult<"QueryStatus">> {
    const batch = normalizeBatchId(batchId);
    const link = this.#connection.openLink ?? (await this.#link(options));
    const body = { batch, ...instanceOf(options), ...more };
    return link.submit("QueryStatus", batch, body, { ...options, keep: this }).outcome;
  }

  /**
   * Waits until an agent lives on these paths again, and ties to it. Calls do that by themselves once one lives; this is
   * for callers that want to wait for it. Errors are those of `connect`.
   */
  async awaitAgent(options: DeadlineOptions = {}): Promise<void> {
    await this.#connection.awaitAgent(options);
  }

  /**
   * Frees what this client made: its batches, its memory's registrations, its commands; never the agent's own. Calls under
   * way end with `TB_CLOSED`. A second call does nothing.
   */
  async close(): Promise<void> {
    forgotten.unregister(this);
    await this.#connection.close();
    this.#registrations.endAll(
      new TensorBusError("TB_CLOSED", `the client of rank ${this.agentRank} was closed`),
    );
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #link(options: DeadlineOptions): Promise<AgentLink> {
    const { signal, timeoutMs } = options;
    return this.#connection.link({
      ...(signal === undefined ? {} : { signal }),
      ...(timeoutMs === undefined ? {} : { timeoutMs }),
    });
  }

  /** The outcome of pairs that were not waited for. */
  async #pairsMatched(pairNames: readonly string[], deadline: Deadline): Promise<void> {
    for (const name of pairNames) {
      const matched = this.#pairs.get(name);
      if (matched === undefined) continue;
      await waitUntil<void>(`pair ${name}`, deadline, (resolve, reject) => {
        matched.then(resolve, reject);
        return () => {};
      });
      this.#pairs.delete(name);
    }
  }

  #layoutOf({
    deviceMesh,
    placements,
    stridedShard,
    tensorLayouts,
  }: InitPairOptions): SideLayout | undefined {
    if (tensorLayouts === true) {
      if (deviceMesh === undefined && placements === undefined) return "tensors";
      throw new TypeError("tensorLayouts replaces deviceMesh and placements: give either it or those two");
    }
    if (deviceMesh === undefined && placements === undefined) return undefined;
    if (deviceMesh === undefined || placements === undefined) {
      throw new TypeError("deviceMesh and placements must be given together, or both left out");
    }
    return layoutMessage({ deviceMesh, placements, stridedShard }, this.agentRank);
  }
}

function versionOf({ version }: TransferOptions): bigint | undefined {
  if (version === undefined) return undefined;
  const isWhole = typeof version === "bigint" || Number.isSafeInteger(version);
  if (isWhole && version >= 0 && BigInt(version) < 2n ** 64n) return BigInt(version);
  throw new TypeError(`a version must be a whole number from 0 to 2^64 - 1, not ${version}`);
}

function instanceOf({ registration }: OfRegistration): { readonly instance?: bigint } {
  return registration === undefined ? {} : { instance: registration.instance };
}

/** The agent registered a batch whose caller had given up. */
function freeUnclaimed(link: AgentLink, batch: BatchId, instance: bigint): void {
  if (!link.isOpen) return;
  const { outcome } = link.submit("CleanupBatch", batch, { batch, instance });
  const passOver = () => link.passOver(instance);
  outcome.then(passOver, passOver);
}

function requireName(what: string, value: unknown): string {
  if (typeof value === "string" && value !== "") return value;
  throw new TypeError(`${what} must be a name, not ${JSON.stringify(value)}`);
}

function pathOf(
  options: ConnectOptions,
  option: "commandQueuePath" | "agentStatePath",
  variable: string,
): string {
  const path = options[option] ?? process.env[variable];
  if (path) return path;
  throw new TypeError(`give the option ${option}, or set ${variable}`);
}
