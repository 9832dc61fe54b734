/** How this rank registers a batch: attempts, one after the other, until one holds for all ranks or is refused. */
import { Deadline, waitUntil } from "../../deadline.ts";
import type { TensorBusError } from "../../errors.ts";
import type { PlanOptions } from "../../plan/index.ts";
import type { AgentEvent } from "../pair/events.ts";
import type { MetPair } from "../pair/meeting.ts";
import type { StoreConnection } from "../pair/uplink.ts";
import type { BatchId } from "../queue/commands.ts";
import {
  type Attempt,
  type AttemptOptions,
  awaitPrepared,
  endAttempt,
  isRetried,
  joinAttempt,
  MissedAttempt,
} from "./attempt.ts";
import { type Batch, type BatchSide, prepareBatch, rosterOf } from "./batch.ts";
import { isUnfinished, type MetBatch, meetBatch, type RankRegistration, readSides } from "./meeting.ts";
import { BatchKeys } from "./records.ts";
import { forgetEnded, forgetRank } from "./removal.ts";
import { asBusError, graceMs } from "./round-join.ts";
import { errorOfEnd, type RoundLog, settled } from "./round-log.ts";
import { type BatchSubject, joinSides } from "./subject.ts";

/** A batch from the first registration on this rank until it is freed. */
export interface Entry {
  readonly key: string;
  readonly id: BatchId;
  /** Sides that are registering or registered, with their clients. */
  readonly claims: Map<string, { readonly client: bigint; readonly abort: AbortController }>;
  /** Sides of this rank that have met, and are not prepared yet. */
  readonly arrivals: Arrival[];
  /** The registration that the sides of this rank are in. */
  attempt: Attempt | undefined;
  joining: Promise<unknown>;
  batch: Batch | undefined;
}

/** What one side of this rank brings to an attempt. */
export interface Brought {
  readonly side: BatchSide;
  readonly mets: readonly MetPair[];
  readonly registration: RankRegistration;
}

interface Arrival {
  readonly side: BatchSide;
  readonly met: MetBatch;
  readonly subject: BatchSubject;
  readonly registration: RankRegistration;
  readonly attempt: Attempt;
  readonly connection: StoreConnection;
  readonly deadline: Deadline;
  /** How long the meeting took. */
  readonly seconds: number;
  /** Ends the wait for the other sides of this rank. */
  taken: () => void;
  readonly resolve: (batch: Batch) => void;
  readonly reject: (error: unknown) => void;
}

interface RegistrarOptions {
  readonly rank: number;
  readonly checksum: boolean;
  readonly planning: PlanOptions;
  readonly tell: (event: AgentEvent) => void;
  readonly onFault: (error: unknown) => void;
  /** Called when this rank has prepared the batch, before it tells others: from here on it asks about no earlier round. */
  readonly onPreparing: (entry: Entry, deadline: Deadline) => Promise<void>;
  /** Called when all ranks have prepared the batch: what is thrown ends it. */
  readonly onPrepared: (entry: Entry, batch: Batch) => Promise<void>;
  /** The batch is registered. */
  readonly onRegistered: (entry: Entry, batch: Batch) => void;
}

/** What a registration has come to. */
interface Registered {
  readonly batch: Batch;
  readonly side: BatchSide;
  readonly subject: BatchSubject;
}

/** How many sides of batches a rank knows its last attempt of; of the oldest it forgets. */
const mostTaken = 10_000;

export class Registrar {
  readonly #options: RegistrarOptions;
  /** The last attempt that each side of this rank was in, by store, batch and side. */
  readonly #taken = new Map<string, number>();
  /** What waits for all to have prepared it, and who was lost meanwhile: nobody else would say that such a batch is over. */
  readonly #prepared = new Map<Batch, TensorBusError | undefined>();

  constructor(options: RegistrarOptions) {
    this.#options = options;
  }

  /** Registers in the lowest attempt that has not ended, and in the next one when it ends for no fault of anybody's. */
  async register(
    entry: Entry,
    name: string,
    bring: () => Brought,
    connection: StoreConnection,
    deadline: Deadline,
  ): Promise<Registered> {
    for (;;) {
      const attempt = await this.#attempt(entry, name, connection, deadline);
      const { log, ended } = attempt;
      const signals = deadline.signal === undefined ? [ended] : [ended, deadline.signal];
      const within = new Deadline({ timeoutMs: deadline.remainingMs, signal: AbortSignal.any(signals) });
      try {
        return await this.#registerIn(entry, attempt, bring(), connection, within);
      } catch (thrown) {
        const error = asBusError(thrown);
        const isFound = !isUnfinished(error);
        // Memory that must not be used does not come back within a call.
        const isLasting = error.code === "TB_QUARANTINED";
        if (isFound && !log.isOver) await this.#endAttempt(log, error, !isLasting && isRetried(error));
        if (deadline.signal?.aborted) throw error;
        const { end } = log;
        const goesOn = !isFound || (!isLasting && isRetried(error));
        if (end?.retry && deadline.remainingMs > 0 && goesOn) continue;
        if (isFound) throw error;
        if (end !== undefined) throw errorOfEnd(end);
        if (error.code === "TB_TIMEOUT" && attempt.before !== undefined) throw errorOfEnd(attempt.before);
        throw error;
      }
    }
  }

  /** A peer is gone. */
  peerEnded(rank: number, error: TensorBusError): void {
    for (const batch of this.#prepared.keys()) if (batch.concerns(rank)) this.#prepared.set(batch, error);
  }

  async #registerIn(
    entry: Entry,
    attempt: Attempt,
    { side, mets, registration }: Brought,
    connection: StoreConnection,
    deadline: Deadline,
  ): Promise<Registered> {
    const { rendezvous } = connection;
    const began = performance.now();
    const met = await meetBatch(rendezvous, registration, attempt.number, deadline);
    const names = await readSides(rendezvous, registration, met, deadline);
    const { planning } = this.#options;
    const subject = joinSides(registration.batch, met.local, met.remote, mets, names, planning);
    const seconds = (performance.now() - began) / 1000;
    const arrived = { side, met, subject, registration, attempt, connection, deadline, seconds };
    return { batch: await this.#join(entry, arrived), side, subject };
  }

  /** The attempt that the sides of this rank are in together. */
  async #attempt(
    entry: Entry,
    name: string,
    connection: StoreConnection,
    deadline: Deadline,
  ): Promise<Attempt> {
    const joined = entry.joining.then(async () => {
      const { attempt } = entry;
      const key = takenKey(connection, entry, name);
      if (attempt !== undefined && attempt.log.end === undefined) {
        this.#setTaken(key, attempt.number);
        return attempt;
      }
      const options = this.#attemptOptions(entry, connection);
      const taken = this.#taken.get(key) ?? 0;
      try {
        entry.attempt = await joinAttempt(options, name, taken, deadline);
        this.#setTaken(key, entry.attempt.number);
        return entry.attempt;
      } catch (error) {
        if (!(error instanceof MissedAttempt)) throw error;
        this.#setTaken(key, error.number);
        throw error.error;
      }
    });
    entry.joining = joined.catch(() => {});
    return joined;
  }

  /** Kept beyond the registration: how that ends later is no news to a rank that was in it. */
  #setTaken(key: string, number: number): void {
    this.#taken.delete(key);
    this.#taken.set(key, number);
    if (this.#taken.size > mostTaken) this.#taken.delete(this.#taken.keys().next().value!);
  }

  #attemptOptions({ id }: Entry, { rendezvous }: StoreConnection): AttemptOptions {
    const { rank, onFault } = this.#options;
    return { rendezvous, keys: new BatchKeys(id), rank, onFault };
  }

  /** What one rank has found wrong is every rank's error at once. */
  async #endAttempt(log: RoundLog, error: TensorBusError, retry = isRetried(error)): Promise<void> {
    const said = endAttempt(log, error, this.#options.rank, { retry });
    await settled("telling others", said, new Deadline({ timeoutMs: graceMs })).catch(() => {});
  }

  /** Prepares the batch, once all sides of it that this rank stands on are there; settles once that has ended. */
  #join(entry: Entry, arrived: Omit<Arrival, "taken" | "resolve" | "reject">): Promise<Batch> {
    const { rank } = this.#options;
    const { subject, deadline, registration } = arrived;
    const expected = subject.pairs[0]!.ranks.filter((ranks) => ranks.includes(rank)).length;
    return new Promise<Batch>((resolve, reject) => {
      const arrival: Arrival = { ...arrived, taken: () => {}, resolve, reject };
      entry.arrivals.push(arrival);
      if (entry.arrivals.length === expected) {
        const arrivals = entry.arrivals.splice(0);
        for (const each of arrivals) each.taken();
        void this.#prepare(entry, arrivals);
        return;
      }
      waitUntil<void>(`batch ${registration.batch}: the other side of rank ${rank}`, deadline, (taken) => {
        arrival.taken = taken;
        return () => {};
      }).catch((error) => {
        const index = entry.arrivals.indexOf(arrival);
        // One that is being prepared ends with that.
        if (index < 0) return;
        entry.arrivals.splice(index, 1);
        reject(error);
      });
    });
  }

  async #prepare(entry: Entry, arrivals: readonly Arrival[]): Promise<void> {
    const { rank, checksum, tell, onFault } = this.#options;
    const { met, subject, attempt, connection, registration, seconds: meet } = arrivals.at(-1)!;
    const sides = arrivals.map(({ side }) => side);
    const { commit } = registration.record;
    const { keys } = registration;
    const options = { id: entry.id, rank, met, attempt, keys, commit, checksum, connection, tell, onFault };
    const roster = rosterOf(subject);
    const deadline = new Deadline({
      timeoutMs: Math.min(...arrivals.map((each) => each.deadline.remainingMs)),
      signal: AbortSignal.any(arrivals.flatMap((each) => each.deadline.signal ?? [])),
    });
    let prepared: Batch | undefined;
    try {
      const { batch, seconds } = await prepareBatch(options, subject, sides, deadline);
      prepared = batch;
      this.#prepared.set(batch, undefined);
      const attempts = this.#attemptOptions(entry, connection);
      await this.#options.onPreparing(entry, deadline);
      await awaitPrepared(attempts, attempt, roster.ranks.length, deadline);
      await this.#options.onPrepared(entry, batch);
      const lost = this.#prepared.get(batch);
      // One that left in order has said so in the log.
      if (lost !== undefined) {
        const { remainingMs } = deadline;
        await attempt.log.sync(new Deadline({ timeoutMs: Math.min(graceMs, remainingMs) })).catch(() => {});
      }
      const { end } = attempt.log;
      if (end !== undefined && attempt.log.isOver) throw errorOfEnd(end);
      if (end === undefined && lost !== undefined) throw lost;
      this.#options.onRegistered(entry, batch);
      const own = sides.map(({ name }) => name);
      forgetRank(attempts, attempt.number, own, new Deadline()).catch(() => {});
      if (rank === roster.ranks[0])
        forgetEnded(attempts, attempt.number - 1, roster, new Deadline()).catch(() => {});
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
    } catch (thrown) {
      const error = asBusError(thrown);
      // Others may hold it for registered, or wait for this rank: they learn that it is not.
      await this.#endAttempt(attempt.log, error);
      await prepared?.close(error).catch(onFault);
      for (const { reject } of arrivals) reject(error);
    } finally {
      if (prepared !== undefined) this.#prepared.delete(prepared);
    }
  }
}

function takenKey({ life }: StoreConnection, { key }: Entry, side: string): string {
  return JSON.stringify([life, key, side]);
}
