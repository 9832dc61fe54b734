/** One registration of a batch on this rank: both directions, planned and prepared, and the memory under them. */
import { randomBytes } from "node:crypto";
import type { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { BatchTensor } from "../../exec/bind-batch.ts";
import type { Execution } from "../../exec/executor.ts";
import { itemSize } from "../../layout/index.ts";
import { HostMemory } from "../../memory/host-memory.ts";
import type { TensorMemory } from "../../memory/memory.ts";
import type { LocalStrides } from "../../plan/index.ts";
import type { AgentEvent } from "../pair/events.ts";
import type { Rendezvous } from "../pair/rendezvous.ts";
import type { Connection } from "../pair/uplink.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import type { BatchId } from "../queue/commands.ts";
import { Direction, type Role } from "./direction.ts";
import type { LocalTensor } from "./local-tensors.ts";
import type { MetBatch } from "./meeting.ts";
import type { HeldRegions } from "./memory.ts";
import { type BatchSubject, type PlannedDirection, planDirection } from "./plan.ts";
import { predictSeconds } from "./planning.ts";
import type { BatchKeys } from "./records.ts";
import { RoundEpochs } from "./round-epoch.ts";
import { type ShadowedTensor, StagedCommit } from "./staged-commit.ts";
import { TransferSignal } from "./transfer-signal.ts";

/** What one client has registered. */
export interface BatchSide {
  readonly name: string;
  readonly client: ClientIdentity;
  /** Of this registration: who closes it means no other. */
  readonly instance: bigint;
  readonly tensors: readonly LocalTensor[];
  readonly places: readonly TensorMemory[];
  readonly held: HeldRegions;
}

export interface BatchOptions {
  readonly id: BatchId;
  readonly rank: number;
  readonly met: MetBatch;
  readonly keys: BatchKeys;
  readonly commit: "direct" | "staged";
  readonly checksum: boolean;
  readonly connection: Connection;
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
  /** Of each direction's plan, by the side that sends. */
  readonly digests: ReadonlyMap<string, string>;
  /** Why it has to be registered anew. */
  broken: TensorBusError | undefined;
  #closing: Promise<void> | undefined;
  #released = false;
  readonly #ended = new AbortController();
  #say: (reason: TensorBusError) => Promise<void> = async () => {};

  constructor(
    { id, met }: BatchOptions,
    { pairs }: BatchSubject,
    sides: readonly BatchSide[],
    directions: ReadonlyMap<string, Direction | TensorBusError>,
    digests: ReadonlyMap<string, string>,
  ) {
    this.id = id;
    this.pairs = pairs.map(({ pair }) => pair);
    this.number = met.number;
    this.sides = sides;
    this.directions = directions;
    this.digests = digests;
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
    throw new TensorBusError("TB_BUSY", `round ${other.round} of batch ${String(this.id)} is under way`, {
      details: { batch: this.id, round: other.round, from: other.from },
    });
  }

  /** Fires when it is closed. */
  get ended(): AbortSignal {
    return this.#ended.signal;
  }

  /** Tells others of its end, first of all. */
  onClose(say: (reason: TensorBusError) => Promise<void>): void {
    this.#say = say;
  }

  /** Cancels what is under way and frees what it holds, once that is quiet. A second call joins the first. */
  close(reason: TensorBusError): Promise<void> {
    this.broken ??= reason;
    this.#closing ??= this.#close(reason);
    return this.#closing;
  }

  /** True after `close` where a round is in doubt: `resolve` frees the memory. */
  get inDoubt(): boolean {
    return this.#doubts.length > 0;
  }

  /** Settles with the next store what was in doubt when the last one was lost, and frees the memory. */
  async resolve(rendezvous: Rendezvous, deadline: Deadline): Promise<void> {
    for (const staged of this.#doubts) await staged.resolve(deadline, rendezvous);
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
    this.#ended.abort();
    const said = this.#say(reason);
    const ends = await Promise.allSettled(this.live.map((direction) => direction.close(reason)));
    // Memory that something may still touch stays mapped.
    const failed = ends.find((end) => end.status === "rejected");
    if (failed !== undefined) throw failed.reason;
    if (this.#doubts.length === 0 || reason.code !== "TB_STORE_LOST") this.#release();
    await said;
  }
}

/** A number that names one registration, and no later one. */
export function newInstance(): bigint {
  return randomBytes(8).readBigUInt64LE();
}

/**
 * Plans both directions of a subject, of which index 0 is the first of `sides`, and prepares those that are possible. Fails
 * where neither is.
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
  const stop = new AbortController();
  const results = await Promise.allSettled(
    planned.map(async (direction, source) => {
      if ("refused" in direction) return direction.refused;
      try {
        return await prepareDirection(
          options,
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
  const digests = new Map<string, string>();
  planned.forEach((direction, source) => {
    if ("plan" in direction) digests.set(names[source]!, direction.plan.digest);
  });
  const batch = new Batch(options, subject, sides, directions, digests);
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
  subject: BatchSubject,
  source: 0 | 1,
  planned: Extract<PlannedDirection, { plan: unknown }>,
  sides: readonly BatchSide[],
  deadline: Deadline,
  stop: AbortSignal,
): Promise<Direction> {
  const { connection, keys, met, rank, commit, checksum, tell, id } = options;
  const target = source === 0 ? 1 : 0;
  const from = subject.sides[source].name;
  const to = subject.sides[target].name;
  const local = (name: string) => sides.find((side) => side.name === name);
  const receiver = local(to);
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
  const tensors = bindSides(planned, {
    rank,
    source: local(from),
    target: receiver,
    shadow,
    indices: [source, target],
  });
  const signal = deadline.signal === undefined ? stop : AbortSignal.any([deadline.signal, stop]);
  let execution: Execution;
  try {
    execution = await connection.executor.prepare(planned.plan, {
      key: keys.transfer(met.number, from),
      tensors,
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
          rendezvous,
          prefix,
          rank,
          voters: new Set([...ranks[0], ...ranks[1]]).size,
          shadow: shadow?.memory,
          tensors: shadow?.tensors ?? [],
          letGo,
          tell,
        });
  const roles: Role[] = [];
  if (local(from) !== undefined) roles.push("source");
  if (receiver !== undefined) roles.push("target");
  const pairs = subject.pairs.map(({ pair }) => pair);
  const identity = { batch: id, pairs, number: met.number, from, to };
  return new Direction({
    ...identity,
    rank,
    roles,
    tidies: ranks[source][0] === rank,
    execution,
    epochs: new RoundEpochs(rendezvous, prefix),
    staged,
    predictedSeconds: predictSeconds(planned.plan, subject.planning),
    signal: new TransferSignal({
      rendezvous,
      prefix,
      sources: ranks[source].length,
      onFault: options.onFault,
      onReady: (round) => tell({ kind: "signal", round, epoch: 0, ...identity }),
    }),
    tell,
  });
}

interface Shadow {
  readonly memory: HostMemory;
  readonly offsets: readonly bigint[];
  readonly tensors: readonly ShadowedTensor[];
}

/** Room for all that a side receives: packed tensors, each on a line of the cache. */
function allocateShadow({ tensors, places }: BatchSide): Shadow {
  let end = 0n;
  const offsets = tensors.map(({ dtype, shape }) => {
    const offset = end;
    const bytes = BigInt(shape.reduce((product, size) => product * size, itemSize(dtype)));
    end = offset + ((bytes + 63n) & ~63n);
    return offset;
  });
  const memory = HostMemory.allocate(end > 0n ? end : 64n);
  return {
    memory,
    offsets,
    tensors: tensors.map(({ dtype, shape, strides }, index) => ({
      dtype,
      shape,
      strides,
      ...places[index]!,
      shadowOffset: offsets[index]!,
    })),
  };
}

interface Bound {
  readonly rank: number;
  readonly source: BatchSide | undefined;
  readonly target: BatchSide | undefined;
  readonly shadow: Shadow | undefined;
  /** Index in the subject of the source's side, and of the target's. */
  readonly indices: readonly [0 | 1, 0 | 1];
}

function bindSides(
  { plannedOf }: Extract<PlannedDirection, { plan: unknown }>,
  { rank, source, target, shadow, indices }: Bound,
): Map<number, BatchTensor> {
  const bound = new Map<number, { source?: TensorMemory; target?: TensorMemory; strides?: LocalStrides }>();
  const entryOf = (planned: number) => {
    const known = bound.get(planned);
    if (known !== undefined) return known;
    const made = {};
    bound.set(planned, made);
    return made as NonNullable<typeof known>;
  };
  source?.tensors.forEach(({ packed, strides }, tensor) => {
    const entry = entryOf(plannedOf(tensor, rank, indices[0]));
    entry.source = source.places[tensor]!;
    if (!packed) entry.strides = { ...entry.strides, source: strides };
  });
  target?.tensors.forEach(({ packed, strides }, tensor) => {
    const entry = entryOf(plannedOf(tensor, rank, indices[1]));
    if (shadow !== undefined) {
      entry.target = { memory: shadow.memory, offset: shadow.offsets[tensor]! };
      return;
    }
    entry.target = target.places[tensor]!;
    if (!packed) entry.strides = { ...entry.strides, target: strides };
  });
  return bound;
}

function nameBatch(error: unknown, id: BatchId, from: string, to: string): unknown {
  if (!(error instanceof TensorBusError)) return error;
  return new TensorBusError(error.code, `batch ${String(id)}, ${from} to ${to}: ${error.message}`, {
    details: { ...error.details, batch: id, from, to },
    cause: error,
  });
}
