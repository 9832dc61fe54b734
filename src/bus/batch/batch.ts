/** One registration of a batch on this rank: both directions, planned and prepared, and the memory under them. */
import { randomBytes } from "node:crypto";
import { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { BatchTensor } from "../../exec/bind-batch.ts";
import type { Execution } from "../../exec/executor.ts";
import { itemSize } from "../../layout/index.ts";
import { HostMemory } from "../../memory/host-memory.ts";
import type { TensorMemory } from "../../memory/memory.ts";
import type { LocalStrides } from "../../plan/index.ts";
import type { AgentEvent } from "../pair/events.ts";
import type { StoreConnection } from "../pair/uplink.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import type { BatchId } from "../queue/commands.ts";
import { type Attempt, endAttempt } from "./attempt.ts";
import { Direction } from "./direction.ts";
import type { DirectionOptions, Role } from "./direction-options.ts";
import type { LocalTensor } from "./local-tensors.ts";
import type { MetBatch } from "./meeting.ts";
import type { HeldRegions } from "./memory.ts";
import { MemoryTurn } from "./memory-turn.ts";
import { alignNames } from "./names.ts";
import { Opposition } from "./opposition.ts";
import { type PlannedDirection, planDirection } from "./plan.ts";
import { predictSeconds } from "./planning.ts";
import type { BatchKeys } from "./records.ts";
import type { Left, Roster } from "./removal.ts";
import { graceMs } from "./round-join.ts";
import { type RoundLog, settled } from "./round-log.ts";
import { RoundNames } from "./round-names.ts";
import { markTidied } from "./round-records.ts";
import { type ShadowedTensor, StagedCommit } from "./staged-commit.ts";
import type { BatchSubject } from "./subject.ts";
import { TransferSignal } from "./transfer-signal.ts";

/** What one client has registered. */
export interface BatchSide {
  readonly name: string;
  readonly client: ClientIdentity;
  /** Identifies this registration, so that a late close cannot hit a newer one. */
  readonly instance: bigint;
  readonly tensors: readonly LocalTensor[];
  readonly places: readonly TensorMemory[];
  readonly held: HeldRegions;
}

/** What a direction's plan is known by, and how many tensors travel by it. */
interface PlanSummary {
  readonly digest: string;
  readonly tensors: number;
}

interface BatchOptions {
  readonly id: BatchId;
  readonly rank: number;
  readonly met: MetBatch;
  readonly attempt: Attempt;
  readonly keys: BatchKeys;
  readonly commit: "direct" | "staged";
  readonly checksum: boolean;
  readonly connection: StoreConnection;
  readonly tell: (event: AgentEvent) => void;
  readonly onFault: (error: unknown) => void;
}

export class Batch {
  readonly id: BatchId;
  /** Names of its pairs, sorted. */
  readonly pairs: readonly string[];
  readonly number: number;
  readonly sides: readonly BatchSide[];
  /** By the side that sends. */
  readonly directions: ReadonlyMap<string, Direction | TensorBusError>;
  /** The plan of each direction that has one, by the side that sends. */
  readonly planned: ReadonlyMap<string, PlanSummary>;
  /** What its ranks tell each other of it. */
  readonly log: RoundLog;
  /** Why it has to be registered anew. */
  broken: TensorBusError | undefined;
  #closing: Promise<void> | undefined;
  #released = false;
  /** The life of the store in which it was registered: another one if that has forgotten what stood in it. */
  readonly life: string;
  readonly #rank: number;
  readonly #subject: BatchSubject;

  constructor(
    { id, met, attempt, rank, connection }: BatchOptions,
    subject: BatchSubject,
    sides: readonly BatchSide[],
    directions: ReadonlyMap<string, Direction | TensorBusError>,
    planned: ReadonlyMap<string, PlanSummary>,
  ) {
    this.id = id;
    this.#subject = subject;
    this.pairs = subject.pairs.map(({ pair }) => pair);
    this.number = met.number;
    this.log = attempt.log;
    this.#rank = rank;
    this.life = connection.life;
    this.sides = sides;
    this.directions = directions;
    this.planned = planned;
  }

  get live(): readonly Direction[] {
    return [...this.directions.values()].filter((direction) => direction instanceof Direction);
  }

  /** By the name of a transport, the ranks whose buckets it takes, in either direction. */
  get transports(): Readonly<Record<string, readonly number[]>> {
    const peers = this.live.flatMap(({ execution }) => [...execution.stats.peers]);
    const names = new Set(peers.map(([, { transport }]) => transport));
    const ranksOf = (name: string) =>
      new Set(peers.filter(([, { transport }]) => transport === name).map(([rank]) => rank));
    return Object.fromEntries([...names].map((name) => [name, [...ranksOf(name)].sort((a, b) => a - b)]));
  }

  /** `TB_BUSY`, `TB_BATCH_UNKNOWN`, or why the direction is refused. */
  direction(from: string): Direction {
    if (this.broken !== undefined) throw this.broken;
    const direction = this.directions.get(from);
    if (!(direction instanceof Direction)) throw direction;
    const other = this.live.find((each) => each !== direction && each.busy);
    if (other === undefined) return direction;
    const message = `round ${other.round} of batch ${String(this.id)} from ${other.from} is under way on rank ${this.#rank}`;
    throw new TensorBusError("TB_BUSY", message, {
      details: { batch: this.id, from: other.from, rank: this.#rank },
    });
  }

  /** True if what this rank does in it concerns another one: by its buckets, or since the two keep pace. */
  concerns(rank: number): boolean {
    return this.live.some(
      ({ execution }) => execution.stats.peers.has(rank) || execution.linked.includes(rank),
    );
  }

  /** Cancels what is under way and frees what it holds, once that is quiet. A second call joins the first. */
  close(reason: TensorBusError): Promise<void> {
    this.broken ??= reason;
    this.#closing ??= this.#close(reason);
    return this.#closing;
  }

  /** What others need to know of it once all have left it. */
  get left(): Left {
    const written = Promise.all(this.live.map((direction) => direction.written));
    return { ...rosterOf(this.#subject), number: this.number, written };
  }

  /** True after `close` if a round was in doubt, until `resolve` has freed the memory. */
  get inDoubt(): boolean {
    return !this.#released;
  }

  /** True once it has ended, and this rank is in no round that goes on, and can join none. */
  get isSpent(): boolean {
    return this.log.end !== undefined && this.live.every(({ from, round }) => round > this.log.last(from));
  }

  /** True while this rank is in a round that goes on although the batch was closed. */
  get isInLastRound(): boolean {
    return (
      this.log.end !== undefined &&
      this.live.some(({ from, posted }) => posted !== undefined && posted <= this.log.last(from))
    );
  }

  /** Resolves when no round is under way that this rank has begun. */
  async idle(): Promise<void> {
    await Promise.all(this.live.map((direction) => direction.ended));
  }

  /** True for one whose ranks have voted: others may have to ask this one how a round ended. */
  get isStaged(): boolean {
    return this.live.some(({ staged }) => staged !== undefined);
  }

  /** Says in another store than the batch's own how its last rounds ended, for those who do not know it. */
  async testify(connection: StoreConnection, deadline: Deadline): Promise<void> {
    for (const { staged } of this.live) await staged?.testify(connection, deadline);
  }

  /** Takes back what it has testified. */
  async withdraw({ rendezvous }: StoreConnection, deadline: Deadline): Promise<void> {
    for (const { staged } of this.live) await staged?.withdraw(rendezvous, deadline);
  }

  /** Settles what was in doubt when it was closed, and frees the memory. */
  async resolve(connection: StoreConnection, deadline: Deadline): Promise<void> {
    for (const staged of this.#doubts) await staged.resolve(deadline, connection);
    this.#release();
  }

  /** Gives up what is in doubt: its memory is freed as it is. */
  async giveUp(deadline: Deadline): Promise<void> {
    for (const staged of this.#doubts) await staged.giveUp(deadline);
    this.#release();
  }

  get #doubts(): StagedCommit[] {
    return this.live.flatMap(({ doubt }) => (doubt === undefined ? [] : [doubt]));
  }

  #release(): void {
    if (this.#released) return;
    this.#released = true;
    for (const { held } of this.sides) held.release();
  }

  async #close(reason: TensorBusError): Promise<void> {
    // Other ranks may still be in rounds of which this one has its part, or come to them: those do not need it any more.
    const through = Object.fromEntries(this.live.map(({ from, completed }) => [from, completed]));
    const appended = endAttempt(this.log, reason, this.#rank, { through });
    const within = new Deadline({ timeoutMs: graceMs });
    const said = settled("telling others of the end", appended, within).catch(() => {});
    const ends = await Promise.allSettled(this.live.map((direction) => direction.close(reason, said)));
    // Memory that something may still touch stays mapped.
    const failed = ends.find((end) => end.status === "rejected");
    if (failed !== undefined) throw failed.reason;
    if (this.#doubts.length === 0) this.#release();
    await said;
    this.log.close();
  }
}

/** A number that names one registration, and no later one; none of a command, since both have results. */
export function newInstance(): bigint {
  return randomBytes(8).readBigUInt64LE() | (1n << 63n);
}

/**
 * Plans both directions of a subject, of which index 0 is the first of `sides`, and prepares those that are possible. Fails
 * if neither is.
 */
export async function prepareBatch(
  options: BatchOptions,
  subject: BatchSubject,
  sides: readonly BatchSide[],
  deadline: Deadline,
): Promise<{ readonly batch: Batch; readonly seconds: { readonly plan: number; readonly prepare: number } }> {
  const began = performance.now();
  const planned = ([0, 1] as const).map((source) => planDirection(subject, source));
  const [forward, backward] = planned as [PlannedDirection, PlannedDirection];
  if ("refused" in forward && "refused" in backward) throw forward.refused;
  const plannedAt = performance.now();
  const { rank, attempt, met, keys, connection } = options;
  const opposition = new Opposition({
    store: connection.store,
    key: keys.waiting(met.number),
    rank,
    log: attempt.log,
  });
  const turn = new MemoryTurn();
  const stop = new AbortController();
  const results = await Promise.allSettled(
    planned.map(async (direction, source) => {
      if ("refused" in direction) return direction.refused;
      try {
        return await prepareDirection(
          options,
          { opposition, turn },
          subject,
          source as 0 | 1,
          direction,
          sides,
          deadline,
          stop.signal,
        );
      } catch (error) {
        stop.abort();
        throw error;
      }
    }),
  );
  const failed = results.find(
    (result) => result.status === "rejected" && !isOurs(result.reason, stop.signal),
  );
  const rejected = failed ?? results.find((result) => result.status === "rejected");
  const names = subject.sides.map(({ name }) => name);
  const directions = new Map<string, Direction | TensorBusError>();
  results.forEach((result, source) => {
    if (result.status === "fulfilled") directions.set(names[source]!, result.value);
  });
  const summaries = new Map<string, PlanSummary>();
  planned.forEach((direction, source) => {
    if (!("plan" in direction)) return;
    summaries.set(names[source]!, { digest: direction.plan.digest, tensors: direction.tensors });
  });
  const batch = new Batch(options, subject, sides, directions, summaries);
  if (rejected?.status === "rejected") {
    for (const direction of batch.live) await direction.close(rejected.reason as TensorBusError);
    throw rejected.reason;
  }
  return {
    batch,
    seconds: { plan: (plannedAt - began) / 1000, prepare: (performance.now() - plannedAt) / 1000 },
  };
}

function isOurs(error: unknown, stop: AbortSignal): boolean {
  return stop.aborted && error instanceof TensorBusError && error.code === "TB_CANCELLED";
}

async function prepareDirection(
  options: BatchOptions,
  { opposition, turn }: Pick<DirectionOptions, "opposition" | "turn">,
  subject: BatchSubject,
  source: 0 | 1,
  planned: Extract<PlannedDirection, { plan: unknown }>,
  sides: readonly BatchSide[],
  deadline: Deadline,
  stop: AbortSignal,
): Promise<Direction> {
  const { connection, keys, met, rank, commit, checksum, tell, id, attempt } = options;
  const target = source === 0 ? 1 : 0;
  const from = subject.sides[source].name;
  const to = subject.sides[target].name;
  const local = (name: string) => sides.find((side) => side.name === name);
  const sender = bindable(local(from), subject, source, planned, rank);
  const receiver = bindable(local(to), subject, target, planned, rank);
  const shadow = commit === "staged" && receiver !== undefined ? allocateShadow(receiver) : undefined;
  if (shadow !== undefined) connection.session.register(shadow.memory);
  const letGo = () => {
    if (shadow === undefined) return;
    try {
      connection.session.unregister(shadow.memory);
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code !== "TB_CLOSED") throw error;
    }
    shadow.memory.close();
  };
  const tensors = bindSides(sender, receiver, shadow);
  const signal = deadline.signal === undefined ? stop : AbortSignal.any([deadline.signal, stop]);
  let execution: Execution;
  try {
    execution = await connection.executor.prepare(planned.plan, {
      key: keys.transfer(met.number, from),
      tensors,
      ranks: allRanks(subject),
      checksum,
      signal,
      timeoutMs: deadline.remainingMs,
    });
  } catch (error) {
    letGo();
    throw nameBatch(error, id, from, to);
  }
  const prefix = keys.rounds(met.number, from);
  const { rendezvous } = connection;
  const ranks = subject.pairs[0]!.ranks;
  const staged =
    commit === "direct"
      ? undefined
      : new StagedCommit({
          connection,
          prefix,
          registration: met.registration,
          from,
          rank,
          voters: allRanks(subject),
          shadow: shadow?.memory,
          tensors: shadow?.tensors ?? [],
          turn,
          letGo,
          tell,
        });
  const roles: Role[] = [];
  if (sender !== undefined) roles.push("source");
  if (receiver !== undefined) roles.push("target");
  const pairs = subject.pairs.map(({ pair }) => pair);
  return new Direction({
    batch: id,
    pairs,
    number: met.number,
    from,
    to,
    rank,
    roles,
    tidies: ranks[source][0] === rank,
    // A staged round that is complete was voted for by all.
    lag: commit === "staged" ? 1 : allRanks(subject).length,
    markTidied: (round, within) => markTidied(rendezvous.store, prefix, round, within),
    execution,
    log: attempt.log,
    opposition,
    turn,
    names: new RoundNames({ store: rendezvous.store, prefix }),
    staged,
    predictedSeconds: predictSeconds(planned.plan, subject.planning),
    signal: new TransferSignal({
      store: rendezvous.store,
      prefix,
      sources: ranks[source].length,
      // Those who vote have begun the round that the first one has completed; others are at most as many rounds apart as they are.
      margin: commit === "staged" ? 1 : 2,
      onFault: options.onFault,
      onReady: (round) =>
        tell({ kind: "signal", round, epoch: 0, batch: id, pairs, number: met.number, from, to }),
    }),
    tell,
  });
}

export function rosterOf(subject: BatchSubject): Roster {
  return { sides: subject.sides.map(({ name }) => name), ranks: allRanks(subject) };
}

/** The ranks of both sides, ascending. */
function allRanks({ pairs }: BatchSubject): readonly number[] {
  return [...new Set(pairs[0]!.ranks.flat())].sort((a, b) => a - b);
}

/** A local tensor that travels in a direction: where it lies, and which tensor of the plan it is. */
interface BoundTensor {
  readonly planned: number;
  readonly tensor: LocalTensor;
  readonly place: TensorMemory;
}

/** Those tensors of a side's registration that travel. */
function bindable(
  side: BatchSide | undefined,
  { sides }: BatchSubject,
  index: 0 | 1,
  { plannedOf }: Extract<PlannedDirection, { plan: unknown }>,
  rank: number,
): BoundTensor[] | undefined {
  if (side === undefined) return undefined;
  const indices = alignNames(side.tensors, sides[index].tensors);
  return side.tensors.flatMap((tensor, at) => {
    const planned = plannedOf(indices[at]!, rank, index);
    return planned === undefined ? [] : [{ planned, tensor, place: side.places[at]! }];
  });
}

interface Shadow {
  readonly memory: HostMemory;
  /** By planned tensor. */
  readonly offsets: ReadonlyMap<number, bigint>;
  readonly tensors: readonly ShadowedTensor[];
}

/** Room for all that a side receives: packed tensors, each on a line of the cache. */
function allocateShadow(targets: readonly BoundTensor[]): Shadow {
  let end = 0n;
  const offsets = new Map<number, bigint>();
  const tensors = targets.map(({ planned, tensor: { dtype, shape, strides }, place }) => {
    const shadowOffset = end;
    const bytes = BigInt(shape.reduce((product, size) => product * size, itemSize(dtype)));
    end = shadowOffset + ((bytes + 63n) & ~63n);
    offsets.set(planned, shadowOffset);
    return { dtype, shape, strides, ...place, shadowOffset };
  });
  return { memory: HostMemory.allocate(end > 0n ? end : 64n), offsets, tensors };
}

function bindSides(
  sources: readonly BoundTensor[] | undefined,
  targets: readonly BoundTensor[] | undefined,
  shadow: Shadow | undefined,
): Map<number, BatchTensor> {
  const bound = new Map<number, { source?: TensorMemory; target?: TensorMemory; strides?: LocalStrides }>();
  const entryOf = (planned: number) => {
    const known = bound.get(planned);
    if (known !== undefined) return known;
    const made = {};
    bound.set(planned, made);
    return made as NonNullable<typeof known>;
  };
  for (const { planned, tensor, place } of sources ?? []) {
    const entry = entryOf(planned);
    entry.source = place;
    if (!tensor.packed) entry.strides = { ...entry.strides, source: tensor.strides };
  }
  for (const { planned, tensor, place } of targets ?? []) {
    const entry = entryOf(planned);
    if (shadow !== undefined) {
      entry.target = { memory: shadow.memory, offset: shadow.offsets.get(planned)! };
      continue;
    }
    entry.target = place;
    if (!tensor.packed) entry.strides = { ...entry.strides, target: tensor.strides };
  }
  return bound;
}

function nameBatch(error: unknown, id: BatchId, from: string, to: string): unknown {
  if (!(error instanceof TensorBusError)) return error;
  return new TensorBusError(error.code, `batch ${String(id)}, ${from} to ${to}: ${error.message}`, {
    details: { ...error.details, batch: id, from, to },
    cause: error,
  });
}
