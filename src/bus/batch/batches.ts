import * as z from "zod";
import { Deadline } from "../../deadline.ts";
import { type ErrorCode, TensorBusError } from "../../errors.ts";
import { forGood } from "../../ffi/error.ts";
import type { PairSide } from "../pair/pairs.ts";
import type { StoreConnection } from "../pair/uplink.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import {
  type BatchId,
  batchKey,
  type CommandOf,
  type CommandResult,
  normalizeBatchId,
} from "../queue/commands.ts";
import type { Table } from "../queue/state.ts";
import { decodeTensorTable } from "../queue/tensor-table.ts";
import { endAttempt } from "./attempt.ts";
import { type Batch, type BatchSide, newInstance } from "./batch.ts";
import type { BatchesOptions } from "./batches-options.ts";
import type { TransferResult } from "./call.ts";
import { Direction } from "./direction.ts";
import { placeTensors, sortTensors } from "./local-tensors.ts";
import type { HeldRegions } from "./memory.ts";
import { makeRankRegistration } from "./rank-record.ts";
import { BatchKeys } from "./records.ts";
import { type Brought, type Entry, Registrar } from "./registrar.ts";
import { leaveAttempt } from "./removal.ts";
import { graceMs } from "./round-join.ts";
import { endedError, errorOfEnd, originOf, settled } from "./round-log.ts";
import type { BatchSubject } from "./subject.ts";

/** How long a registration waits for the log of a batch that is there to say whether it still stands. */
const askMs = 1000;
/** How long an end waits for a store that says nothing. */
const leaveMs = 5000;

const rowSchema = z.strictObject({ generation: z.bigint(), number: z.int() });

export class Batches {
  readonly #options: BatchesOptions;
  readonly #table: Table<z.infer<typeof rowSchema>>;
  readonly #registrar: Registrar;
  readonly #entries = new Map<string, Entry>();
  /** Why batches ended that were not closed, until they are registered anew. */
  readonly #reasons = new Map<string, TensorBusError>();
  /** Batches that were closed in doubt. */
  readonly #doubtful = new Set<Batch>();
  /** Staged ones that a lost store has ended: others may ask how their last rounds did. */
  readonly #witnessed = new Set<Batch>();
  readonly #leaving = new Set<Promise<void>>();
  readonly #hasLeft = new WeakSet<Batch>();
  /** Those that were left when there was no store to say it in. */
  readonly #unsaid = new Set<Batch>();
  readonly #stop = new AbortController();

  constructor(options: BatchesOptions) {
    const { rank, checksum, planning, tell, onFault } = options;
    this.#options = options;
    this.#registrar = new Registrar({
      rank,
      checksum,
      planning,
      tell,
      onFault,
      onPreparing: (entry, deadline) => this.#giveUpDoubts(entry, deadline),
      onPrepared: async (entry, batch) => {
        await this.#remember(entry, batch.number);
        this.#requireClaims(entry, batch.sides);
      },
      onRegistered: (entry, batch) => this.#take(entry, batch),
    });
    this.#table = options.state.table("batches", rowSchema);
  }

  get all(): readonly Batch[] {
    return [...this.#entries.values()].flatMap(({ batch }) => (batch === undefined ? [] : [batch]));
  }

  async register(
    command: CommandOf<"RegisterTensors">,
    deadline: Deadline,
  ): Promise<CommandResult<"RegisterTensors">> {
    const { client } = command;
    const id = normalizeBatchId(command.batch);
    const connection = await this.#options.uplink.connected(deadline.rest);
    const records = decodeTensorTable(command.tensors, command.regions.length, command.layouts?.length);
    const pairs = [...new Set(records.map(({ pair }) => pair))].sort();
    const entry = await this.#entry(id, deadline);
    const sides = pairs.map((pair) => this.#sideOf(entry, pair, client));
    const name = sides[0]!.spec.local;
    const abort = this.#claim(entry, name, client);
    const signal =
      deadline.signal === undefined ? abort.signal : AbortSignal.any([deadline.signal, abort.signal]);
    const bounded = new Deadline({ timeoutMs: deadline.remainingMs, signal });
    let held: HeldRegions | undefined;
    try {
      const mets = await Promise.all(sides.map((side) => this.#options.pairs.await(side, bounded)));
      for (const side of sides) side.owner ??= client.id;
      const bring = (): Brought => {
        const tensors = sortTensors(records, pairs);
        held ??= this.#options.memory.hold(client, command.regions, connection.session);
        const places = placeTensors(tensors, command.regions, held.memories);
        const side: BatchSide = { name, client, instance: newInstance(), tensors, places, held };
        return { side, mets, registration: makeRankRegistration(this.#options, side, sides, mets, command) };
      };
      const { batch, side, subject } = await this.#registrar.register(
        entry,
        name,
        bring,
        connection,
        bounded,
      );
      return this.#result(batch, side, subject);
    } catch (error) {
      entry.claims.delete(name);
      try {
        held?.release();
      } catch (fault) {
        // What cannot be let go of hides no other error.
        this.#options.onFault(fault);
      }
      if (entry.claims.size === 0 && entry.batch === undefined) this.#forget(entry);
      const { reason } = abort.signal;
      throw reason instanceof TensorBusError ? reason : error;
    }
  }

  transfer(command: CommandOf<"Transfer">, deadline: Deadline): Promise<TransferResult> {
    const { batch, side } = this.#find(command.batch, command.client, command.instance);
    const from = command.direction === "send" ? side.name : this.#otherSide(batch, side);
    const { version, tellVersion = false } = command;
    const direction = batch.direction(from);
    const role = command.direction === "send" ? "source" : "target";
    const end = new Deadline({ timeoutMs: deadline.remainingMs + graceMs });
    return direction
      .post(role, { deadline, events: side.held.events, version })
      .finally(() => this.#noticeSpent(batch))
      .then((result) => (tellVersion ? direction.withVersion(role, result, end) : result))
      .catch((error) => {
        this.#noticeEnd(batch, error);
        throw error;
      });
  }

  /** Answers at once: the signal is watched. */
  query(command: CommandOf<"QueryStatus">): CommandResult<"QueryStatus"> {
    const { batch } = this.#find(command.batch, command.client, command.instance);
    if (batch.broken !== undefined) throw batch.broken;
    const progress = batch.live.find(({ busy }) => busy)?.progress;
    const direction = batch.live.find(({ ready }) => ready);
    return { ready: direction !== undefined, ...(progress === undefined ? {} : { progress }) };
  }

  /** The round that is ready, if there is one, and its version, for which the store is asked. */
  async pending(
    command: CommandOf<"QueryStatus">,
    deadline: Deadline,
  ): Promise<CommandResult<"QueryStatus">["pending"]> {
    const { batch } = this.#find(command.batch, command.client, command.instance);
    return batch.live.find(({ ready }) => ready)?.pending(deadline);
  }

  async cleanup(command: CommandOf<"CleanupBatch">): Promise<CommandResult<"CleanupBatch">> {
    const entry = this.#entries.get(batchKey(normalizeBatchId(command.batch)));
    const batch = entry?.batch;
    if (batch === undefined || !batch.sides.some(({ instance }) => instance === command.instance))
      return { freed: false };
    await this.#end(entry!, this.#closed(batch), command.instance);
    return { freed: true };
  }

  #closed({ id }: Batch): TensorBusError {
    const { rank } = this.#options;
    const message = `batch ${String(id)} was closed on rank ${rank}`;
    return new TensorBusError("TB_BATCH_UNKNOWN", message, { details: { batch: id, rank } });
  }

  /** Its rounds are cancelled and quiet before its memory is freed; how many batches it had. */
  async forgetClient(client: bigint): Promise<number> {
    const reason = new TensorBusError("TB_CLIENT_LOST", `a client of rank ${this.#options.rank} has ended`, {
      details: { rank: this.#options.rank },
    });
    let ended = 0;
    for (const entry of [...this.#entries.values()]) {
      const claims = [...entry.claims.values()].filter((claim) => claim.client === client);
      if (claims.length === 0) continue;
      ended += 1;
      for (const { abort } of claims) abort.abort(reason);
      // A batch that cannot be freed keeps no other from it.
      if (entry.batch !== undefined) await this.#end(entry, reason).catch(this.#options.onFault);
    }
    return ended;
  }

  /** All of them have ended: the store was lost, or the agent is closed. */
  async end(reason: TensorBusError): Promise<void> {
    const ends = await Promise.allSettled(
      [...this.#entries.values()].map(async (entry) => {
        for (const { abort } of entry.claims.values()) abort.abort(reason);
        await this.#end(entry, reason);
      }),
    );
    await Promise.all(this.#leaving);
    if (reason.code === "TB_CLOSED") this.#stop.abort(reason);
    const failed = ends.find((end) => end.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  /** There is a store: what batches that were closed have left in doubt is settled, and what others may not know is told. */
  async resolve(connection: StoreConnection): Promise<void> {
    const { signal } = this.#stop;
    for (const batch of this.#unsaid) {
      this.#unsaid.delete(batch);
      // Another store knows nothing of it.
      if (batch.life === connection.life && !batch.inDoubt) this.#sayLeft(batch, connection);
    }
    for (const batch of this.#witnessed) await batch.testify(connection, new Deadline({ signal }));
    await Promise.all([...this.#doubtful].map((batch) => this.#resolve(batch, connection)));
  }

  /** Asks until it is known how a batch's last round ended; then this rank has left it, and others may remove what it asked for. */
  async #resolve(batch: Batch, connection: StoreConnection): Promise<void> {
    const { signal } = this.#stop;
    const { uplink } = this.#options;
    while (this.#doubtful.has(batch) && !signal.aborted && uplink.isConnected(connection)) {
      try {
        await batch.resolve(connection, new Deadline({ signal }));
        this.#doubtful.delete(batch);
        if (batch.life === connection.life) this.#sayLeft(batch, connection);
      } catch (error) {
        if (!(error instanceof TensorBusError) || error.code !== "TB_IN_DOUBT") throw error;
        if ((error.cause as TensorBusError | undefined)?.code !== "TB_TIMEOUT") return;
      }
    }
  }

  /** A peer is gone: whatever was prepared with it has to be registered anew. */
  peerEnded(rank: number, error: TensorBusError, isOrderly: boolean): void {
    this.#registrar.peerEnded(rank, error);
    for (const batch of this.all) {
      if (!batch.concerns(rank)) continue;
      if (isOrderly) void this.#peerLeft(batch, error);
      // In the last round of one that was closed, a rank that is still needed makes it fail by going; any other one may.
      else if (!batch.isInLastRound) this.#break(batch, error);
    }
  }

  /** A rank that leaves in order has written which rounds go on without it, unless the store said nothing. */
  async #peerLeft(batch: Batch, error: TensorBusError): Promise<void> {
    await batch.log.sync(new Deadline({ timeoutMs: askMs })).catch(() => {});
    if (batch.log.end === undefined) this.#break(batch, error, true);
  }

  /** Ends what waits for other ranks to register. */
  abandon(reason: TensorBusError): void {
    for (const { claims, batch } of this.#entries.values()) {
      if (batch === undefined) for (const { abort } of claims.values()) abort.abort(reason);
    }
  }

  /** Cancels all rounds under way. */
  hurry(reason: TensorBusError): void {
    for (const batch of this.all) for (const direction of batch.live) void direction.cancel(reason);
  }

  /** Waits until no round is under way. */
  async idle(deadline: Deadline): Promise<void> {
    for (const batch of this.all) for (const direction of batch.live) await direction.idle(deadline);
  }

  /** The entry of an id; one that is broken is freed first, even if this rank had not heard of that yet. */
  async #entry(id: BatchId, deadline: Deadline): Promise<Entry> {
    const key = batchKey(id);
    const known = this.#entries.get(key);
    const batch = known?.batch;
    if (batch !== undefined && batch.broken === undefined) {
      const { remainingMs } = deadline;
      await batch.log.sync(new Deadline({ timeoutMs: Math.min(remainingMs, askMs) })).catch(() => {});
      // Closed elsewhere, it may be in its last round here; who registers it anew joins no other.
      if (batch.log.end !== undefined) await settled("its last round", batch.idle(), deadline);
    }
    const isOver = batch?.broken !== undefined || batch?.log.end !== undefined;
    if (known !== undefined && batch !== undefined && isOver)
      await this.#end(known, batch.broken ?? this.#closed(batch));
    const standing = this.#entries.get(key);
    if (standing !== undefined) return standing;
    // What this rank has to say of having left the last one comes before it joins the next.
    if (this.#leaving.size > 0)
      await settled("leaving what was registered before", Promise.all(this.#leaving), deadline);
    const made = this.#entries.get(key);
    if (made !== undefined) return made;
    const entry: Entry = {
      key,
      id,
      claims: new Map(),
      arrivals: [],
      attempt: undefined,
      joining: Promise.resolve(),
      batch: undefined,
    };
    this.#entries.set(key, entry);
    return entry;
  }

  #forget(entry: Entry): void {
    if (entry.batch === undefined) entry.attempt?.log.close();
    if (this.#entries.get(entry.key) === entry) this.#entries.delete(entry.key);
  }

  /** Which side of a pair a client speaks for: the first that this batch does not have yet. */
  #sideOf(entry: Entry, pair: string, client: ClientIdentity): PairSide {
    let sides: PairSide[];
    try {
      sides = this.#options.pairs.sidesOf(pair, client);
    } catch (error) {
      if (entry.claims.size === 0 && entry.batch === undefined) this.#forget(entry);
      throw error;
    }
    const free = sides.find(({ spec }) => !entry.claims.has(spec.local));
    if (free !== undefined) return free;
    throw this.#exists(entry, sides[0]!.spec.local);
  }

  #claim(entry: Entry, name: string, { id }: ClientIdentity): AbortController {
    if (entry.claims.has(name)) throw this.#exists(entry, name);
    const abort = new AbortController();
    entry.claims.set(name, { client: id, abort });
    return abort;
  }

  #exists({ id }: Entry, side: string): TensorBusError {
    return new TensorBusError("TB_EXISTS", `batch ${String(id)} is registered already for side ${side}`, {
      details: { batch: id, side, rank: this.#options.rank },
    });
  }

  #take(entry: Entry, batch: Batch): void {
    entry.batch = batch;
    batch.log.listen(() => this.#noticeSpent(batch));
    this.#withdraw(entry);
    this.#reasons.delete(entry.key);
  }

  /** A client that has ended meanwhile would never end its batch. */
  #requireClaims({ id, claims }: Entry, sides: readonly BatchSide[]): void {
    const lost = sides.find(({ name }) => claims.get(name)?.abort.signal.aborted !== false);
    if (lost === undefined) return;
    const message = `batch ${String(id)}: the registration of side ${lost.name} ended in the meantime`;
    throw new TensorBusError("TB_CANCELLED", message, {
      details: { batch: id, side: lost.name, rank: this.#options.rank },
    });
  }

  #result(batch: Batch, side: BatchSide, { sides }: BatchSubject): CommandResult<"RegisterTensors"> {
    const other = sides.find(({ name }) => name !== side.name)!.name;
    const about = (from: string) => {
      const direction = batch.directions.get(from);
      if (direction instanceof Direction) return batch.planned.get(from)!;
      const { code, message } = direction!;
      return { refused: { code: code as ErrorCode, message } };
    };
    return { instance: side.instance, number: batch.number, send: about(side.name), recv: about(other) };
  }

  #otherSide(batch: Batch, side: BatchSide): string {
    return [...batch.directions.keys()].find((name) => name !== side.name)!;
  }

  #find(
    given: BatchId,
    client: ClientIdentity,
    instance: bigint | undefined,
  ): { batch: Batch; side: BatchSide } {
    const id = normalizeBatchId(given);
    const batch = this.#entries.get(batchKey(id))?.batch;
    const side = batch?.sides.find((each) =>
      instance === undefined
        ? each.client.id === client.id
        : each.instance === instance && each.client.id === client.id,
    );
    if (batch !== undefined && side !== undefined) return { batch, side };
    const reason = this.#reasons.get(batchKey(id));
    if (reason?.code === "TB_STORE_LOST") throw reason;
    const known = this.#table.get(rowOf(id)) !== undefined;
    const why = known ? "has ended and must be registered again" : "is not registered";
    throw new TensorBusError("TB_BATCH_UNKNOWN", `batch ${String(id)} ${why}`, {
      details: { batch: id, rank: this.#options.rank },
    });
  }

  /** A rank that is gone, memory that may not be used any more, and a GPU that has failed for good take the batch with them. */
  #noticeEnd(batch: Batch, error: unknown): void {
    if (!(error instanceof TensorBusError)) return;
    const ends = ["TB_PEER_LOST", "TB_INVALIDATED", "TB_QUARANTINED"];
    const isDead = error.code === "TB_CUDA" && error.details["errno"] === forGood;
    // A rank that has released what was prepared has closed in order.
    if (isDead || ends.includes(error.code)) this.#break(batch, error, error.code === "TB_INVALIDATED");
  }

  /** One that was closed elsewhere is over here once its last round is. */
  #noticeSpent(batch: Batch): void {
    const { end } = batch.log;
    if (end !== undefined && batch.isSpent) this.#break(batch, errorOfEnd(end));
  }

  /** It is over, and waits to be registered anew: all others hear of it. A round under way ends by itself. */
  #break(batch: Batch, cause: TensorBusError, isOrderly = false): void {
    if (batch.broken !== undefined) return;
    const rank = originOf(cause, this.#options.rank);
    const { code, message, details } = endedError(`batch ${String(batch.id)}`, rank, cause);
    batch.broken = new TensorBusError(code, message, { details: { ...details, batch: batch.id }, cause });
    // It was no mistake of the registration: who registers it anew may.
    const said = endAttempt(batch.log, cause, this.#options.rank, { retry: true, isOrderly });
    for (const direction of batch.live) direction.abandon(batch.broken, said);
    this.#tellEnded(batch, batch.broken);
  }

  /** `closer`: the registration that was closed, whose client knows. */
  async #end(entry: Entry, reason: TensorBusError, closer?: bigint): Promise<void> {
    const { batch } = entry;
    if (batch === undefined) return;
    // One that was broken before has been told of already.
    const isTold = batch.broken !== undefined;
    await batch.close(reason);
    this.#forget(entry);
    if (batch.inDoubt) this.#doubtful.add(batch);
    if (batch.isStaged && reason.code === "TB_STORE_LOST") this.#witnessed.add(batch);
    this.#leave(batch, reason);
    if (reason.code === "TB_STORE_LOST") this.#reasons.set(entry.key, reason);
    if (!isTold) this.#tellEnded(batch, reason, closer);
    if (reason.code !== "TB_BATCH_UNKNOWN") return;
    await this.#options.state.write("forgetting a batch", () => this.#table.remove(rowOf(entry.id)));
  }

  /** Its records go with the last rank that leaves it. What is in doubt may still be decided, by this store or the next one. */
  #leave(batch: Batch, { code }: TensorBusError): void {
    const { uplink, onFault } = this.#options;
    const { current } = uplink;
    if (code === "TB_STORE_LOST" || current === undefined) {
      this.#unsaid.add(batch);
      return;
    }
    if (!batch.inDoubt || code === "TB_CLOSED") {
      this.#sayLeft(batch, current);
      return;
    }
    this.#resolve(batch, current).catch(onFault);
  }

  #sayLeft(batch: Batch, connection: StoreConnection): void {
    if (this.#hasLeft.has(batch)) return;
    this.#hasLeft.add(batch);
    const { rank, onFault } = this.#options;
    const options = { rendezvous: connection.rendezvous, keys: new BatchKeys(batch.id), rank, onFault };
    const leave = () => leaveAttempt(options, batch.left, new Deadline({ timeoutMs: leaveMs }));
    const said = batch.log.said(new Deadline({ timeoutMs: leaveMs })).catch(() => {});
    const leaving = said.then(leave).catch(() => {});
    this.#leaving.add(leaving);
    leaving.finally(() => this.#leaving.delete(leaving));
  }

  /** Whoever registers a batch anew does not wait for what became of a round before. */
  async #giveUpDoubts({ key }: Entry, deadline: Deadline): Promise<void> {
    for (const batch of this.#doubtful) {
      if (batchKey(batch.id) !== key) continue;
      // What it would say of having left comes too late: others remove what is left of it.
      this.#hasLeft.add(batch);
      await batch.giveUp(deadline);
      this.#doubtful.delete(batch);
    }
  }

  /** All have registered it anew: nobody asks any more how rounds before ended. */
  #withdraw({ key }: Entry): void {
    const connection = this.#options.uplink.current;
    if (connection === undefined) return;
    for (const batch of this.#witnessed) {
      if (batchKey(batch.id) !== key) continue;
      this.#witnessed.delete(batch);
      batch.withdraw(connection, new Deadline({ timeoutMs: leaveMs })).catch(() => {});
    }
  }

  #tellEnded({ id, pairs, number, sides }: Batch, reason: TensorBusError, closer?: bigint): void {
    const registrations = sides
      .filter(({ instance }) => instance !== closer)
      .map(({ client, instance }) => ({ client: client.id, instance }));
    this.#options.tell({ kind: "batchEnded", batch: id, pairs, number, reason, registrations });
  }

  async #remember({ id }: Entry, number: number): Promise<void> {
    const { state, generation } = this.#options;
    await state.write("remembering a batch", () => this.#table.put(rowOf(id), { generation, number }));
  }
}

/** The key of its row in the state: ids may be longer than a key can be. */
function rowOf(id: BatchId): string {
  return new BatchKeys(id).latest;
}
