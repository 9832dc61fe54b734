import { z } from "zod";
import { Deadline, waitUntil } from "../../deadline.ts";
import { type ErrorCode, TensorBusError } from "../../errors.ts";
import type { PlanOptions } from "../../plan/index.ts";
import type { AgentEvent } from "../pair/events.ts";
import type { PairSide, Pairs } from "../pair/pairs.ts";
import type { Connection, Uplink } from "../pair/uplink.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import {
  type BatchId,
  batchKey,
  type CommandOf,
  type CommandResult,
  normalizeBatchId,
} from "../queue/commands.ts";
import type { Records, Table } from "../queue/state.ts";
import { decodeTensorTable } from "../queue/tensor-table.ts";
import { type Batch, type BatchSide, newInstance, prepareBatch } from "./batch.ts";
import { asBusError, Direction, type TransferResult } from "./direction.ts";
import { shareEnd } from "./end.ts";
import { placeTensors, sortTensors } from "./local-tensors.ts";
import { type MetBatch, meetBatch, type RankRegistration, readSides } from "./meeting.ts";
import type { ClientMemory, HeldRegions } from "./memory.ts";
import { makeRankRegistration } from "./rank-record.ts";
import { BatchKeys } from "./records.ts";
import { type BatchSubject, joinSides } from "./subject.ts";

export interface BatchesOptions {
  readonly rank: number;
  readonly generation: bigint;
  readonly uplink: Uplink;
  readonly state: Records;
  readonly pairs: Pairs;
  readonly memory: ClientMemory;
  /** For who names none. */
  readonly commit: "direct" | "staged";
  readonly checksum: boolean;
  readonly planning: PlanOptions;
  readonly tell: (event: AgentEvent) => void;
  readonly onFault: (error: unknown) => void;
}

const rowSchema = z.strictObject({ generation: z.bigint(), number: z.int() });

/** A batch from the first registration on this rank until it is freed. */
interface Entry {
  readonly key: string;
  readonly id: BatchId;
  /** Sides that are registering or registered, with their clients. */
  readonly claims: Map<string, { readonly client: bigint; readonly abort: AbortController }>;
  /** Sides of this rank that have met, and are not prepared yet. */
  readonly arrivals: Arrival[];
  batch: Batch | undefined;
}

interface Arrival {
  readonly side: BatchSide;
  readonly met: MetBatch;
  readonly subject: BatchSubject;
  readonly resolve: (batch: Batch) => void;
  readonly reject: (error: unknown) => void;
}

export class Batches {
  readonly #options: BatchesOptions;
  readonly #table: Table<z.infer<typeof rowSchema>>;
  readonly #entries = new Map<string, Entry>();
  /** Why batches ended that were not closed, until they are registered anew. */
  readonly #reasons = new Map<string, TensorBusError>();
  /** Batches that a lost store has left in doubt. */
  readonly #doubtful = new Set<Batch>();

  constructor(options: BatchesOptions) {
    this.#options = options;
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
    const entry = await this.#entry(id);
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
      const tensors = sortTensors(records, pairs);
      held = this.#options.memory.hold(client, command.regions, connection.session);
      const places = placeTensors(tensors, command.regions, held.memories);
      const side: BatchSide = { name, client, instance: newInstance(), tensors, places, held };
      const began = performance.now();
      const registration = makeRankRegistration(this.#options, side, sides, mets, command);
      const met = await meetBatch(connection.rendezvous, registration, bounded);
      const names = await readSides(connection.rendezvous, registration, met, bounded);
      const { planning } = this.#options;
      const subject = joinSides(registration.batch, met.local, met.remote, mets, names, planning);
      const meet = (performance.now() - began) / 1000;
      const batch = await this.#join(entry, { side, met, subject }, registration, connection, bounded, meet);
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
    return batch
      .direction(from)
      .post(command.direction === "send" ? "source" : "target", deadline, side.held.events)
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
    return {
      ready: batch.live.some((direction) => direction.ready),
      ...(progress === undefined ? {} : { progress }),
    };
  }

  async cleanup(command: CommandOf<"CleanupBatch">): Promise<CommandResult<"CleanupBatch">> {
    const entry = this.#entries.get(batchKey(normalizeBatchId(command.batch)));
    const batch = entry?.batch;
    if (batch === undefined || !batch.sides.some(({ instance }) => instance === command.instance))
      return { freed: false };
    await this.#end(entry!, new TensorBusError("TB_BATCH_UNKNOWN", `batch ${String(batch.id)} was closed`));
    return { freed: true };
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
    const failed = ends.find((end) => end.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  /** There is a store again: what the last one left in doubt is settled. */
  async resolve({ rendezvous }: Connection): Promise<void> {
    for (const batch of this.#doubtful) {
      await batch.resolve(rendezvous, new Deadline());
      this.#doubtful.delete(batch);
    }
  }

  /** A peer is gone: whatever was prepared with it has to be registered anew. */
  peerEnded(rank: number, error: TensorBusError): void {
    for (const batch of this.all) {
      const concerned = batch.live.some((direction) => direction.execution.stats.peers.has(rank));
      if (concerned) this.#break(batch, rank, error);
    }
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

  /** The entry of an id; one that is broken is freed first. */
  async #entry(id: BatchId): Promise<Entry> {
    const key = batchKey(id);
    const known = this.#entries.get(key);
    if (known?.batch?.broken !== undefined) await this.#end(known, known.batch.broken);
    const standing = this.#entries.get(key);
    if (standing !== undefined) return standing;
    const entry: Entry = { key, id, claims: new Map(), arrivals: [], batch: undefined };
    this.#entries.set(key, entry);
    return entry;
  }

  #forget(entry: Entry): void {
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

  /** Prepares the batch, once all sides of it that this rank stands on are there. */
  #join(
    entry: Entry,
    arrived: Pick<Arrival, "side" | "met" | "subject">,
    registration: RankRegistration,
    connection: Connection,
    deadline: Deadline,
    meet: number,
  ): Promise<Batch> {
    const { rank } = this.#options;
    const expected = arrived.subject.pairs[0]!.ranks.filter((ranks) => ranks.includes(rank)).length;
    return waitUntil<Batch>(`batch ${registration.batch}: preparing`, deadline, (resolve, reject) => {
      const arrival: Arrival = { ...arrived, resolve, reject };
      entry.arrivals.push(arrival);
      if (entry.arrivals.length === expected) {
        void this.#prepare(entry, entry.arrivals.splice(0), registration, connection, deadline, meet);
      }
      return () => {
        const index = entry.arrivals.indexOf(arrival);
        if (index >= 0) entry.arrivals.splice(index, 1);
      };
    });
  }

  async #prepare(
    entry: Entry,
    arrivals: readonly Arrival[],
    { record, keys }: RankRegistration,
    connection: Connection,
    deadline: Deadline,
    meet: number,
  ): Promise<void> {
    const { rank, checksum, tell, onFault } = this.#options;
    const { met, subject } = arrivals.at(-1)!;
    const sides = arrivals.map(({ side }) => side);
    const { commit } = record;
    const options = { id: entry.id, rank, met, keys, commit, checksum, connection, tell, onFault };
    let prepared: Batch | undefined;
    try {
      const { batch, seconds } = await prepareBatch(options, subject, sides, deadline);
      prepared = batch;
      // A round under way then ends by itself, one way or the other.
      const onEnded = (from: number, reason: TensorBusError) => this.#break(batch, from, reason);
      shareEnd(batch, keys.ended(batch.number), connection.rendezvous, rank, onEnded);
      await this.#remember(entry, batch.number);
      this.#requireClaims(entry, sides);
      entry.batch = batch;
      this.#reasons.delete(entry.key);
      tell({
        kind: "batchRegistered",
        batch: batch.id,
        pairs: batch.pairs,
        number: batch.number,
        tensors: sides[0]!.tensors.length,
        transports: batch.transports,
        seconds: { meet, ...seconds },
      });
      for (const { resolve } of arrivals) resolve(batch);
    } catch (error) {
      // Others may hold it for registered: they learn that it is not.
      await prepared?.close(asBusError(error)).catch(onFault);
      for (const { reject } of arrivals) reject(error);
    }
  }

  /** A client that has ended meanwhile would never end its batch. */
  #requireClaims({ id, claims }: Entry, sides: readonly BatchSide[]): void {
    const lost = sides.find(({ name }) => claims.get(name)?.abort.signal.aborted !== false);
    if (lost === undefined) return;
    const message = `batch ${String(id)}: the registration of side ${lost.name} has ended meanwhile`;
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
    const why = known ? "has ended, and waits to be registered anew" : "is not registered";
    throw new TensorBusError("TB_BATCH_UNKNOWN", `batch ${String(id)} ${why}`, {
      details: { batch: id, rank: this.#options.rank },
    });
  }

  /** A rank that is gone takes the batch with it. */
  #noticeEnd(batch: Batch, error: unknown): void {
    if (!(error instanceof TensorBusError)) return;
    if (error.code !== "TB_PEER_LOST" && error.code !== "TB_INVALIDATED") return;
    const { rank } = error.details;
    this.#break(batch, typeof rank === "number" ? rank : undefined, error);
  }

  #break(batch: Batch, rank: number | undefined, cause: TensorBusError): void {
    if (batch.broken !== undefined) return;
    const message = `batch ${String(batch.id)} has ended on rank ${rank}, and waits to be registered anew: ${cause.message}`;
    batch.broken = new TensorBusError("TB_PEER_LOST", message, { details: { batch: batch.id, rank }, cause });
    for (const direction of batch.live) direction.abandon(batch.broken);
    this.#tellEnded(batch, batch.broken);
  }

  async #end(entry: Entry, reason: TensorBusError): Promise<void> {
    const { batch } = entry;
    if (batch === undefined) return;
    // One that was broken before has been told of already.
    const isTold = batch.broken !== undefined;
    await batch.close(reason);
    this.#forget(entry);
    if (batch.inDoubt) this.#doubtful.add(batch);
    if (reason.code === "TB_STORE_LOST") this.#reasons.set(entry.key, reason);
    if (!isTold) this.#tellEnded(batch, reason);
    if (reason.code !== "TB_BATCH_UNKNOWN") return;
    await this.#options.state.write("forgetting a batch", () => this.#table.remove(rowOf(entry.id)));
  }

  #tellEnded({ id, pairs, number }: Batch, reason: TensorBusError): void {
    this.#options.tell({ kind: "batchEnded", batch: id, pairs, number, reason });
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
