/**
 * How the ranks of a side find each other, and the other side. Each rank takes one slot of its side; who holds the first
 * one reads them all, checks that they agree, and writes one record for the side, which all ranks of both sides read:
 * what a store serves grows with the ranks, not with their square.
 */
import { randomBytes } from "node:crypto";
import { Deadline } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import { pack } from "../queue/commands.ts";
import { decode } from "../queue/decode.ts";
import { type Incumbent, isPresent } from "./presence.ts";
import {
  findOdd,
  layoutDigest,
  type MemberRecord,
  memberSchema,
  orderRanks,
  type SideRecord,
  type SideSpec,
  sharedLayout,
  sideRecordKey,
  sideSchema,
  slotKey,
} from "./records.ts";
import { inGroups, type Rendezvous, recordVersion } from "./rendezvous.ts";

/** The members of a meeting. */
interface Attendant {
  readonly rank: number;
  readonly generation: bigint;
}

/** Both sides of a pair, agreed. */
export interface MetPair {
  readonly local: SideRecord;
  readonly remote: SideRecord;
}

/** One rank's part in the meeting of a side. */
export class PairMeeting {
  readonly #rendezvous: Rendezvous;
  readonly #self: Attendant;
  readonly #spec: SideSpec;
  readonly #nonce = randomBytes(8).readBigUInt64LE();
  /** Agents that have answered. */
  readonly #present = new Set<string>();
  #slot: number | undefined;

  constructor(rendezvous: Rendezvous, self: Attendant, spec: SideSpec) {
    this.#rendezvous = rendezvous;
    this.#self = self;
    this.#spec = spec;
  }

  /**
   * Settles once both sides stand. `TB_PAIR_MISMATCH` if ranks of this side, or the names of both sides, do not agree;
   * `TB_TIMEOUT` says who is missing. A meeting that failed leaves nothing of this rank behind.
   */
  async meet(deadline: Deadline): Promise<MetPair> {
    const stop = new AbortController();
    const signal =
      deadline.signal === undefined ? stop.signal : AbortSignal.any([stop.signal, deadline.signal]);
    const own = new Deadline({ timeoutMs: deadline.remainingMs, signal });
    try {
      this.#slot = await this.#takeSlot(own);
      const leading = this.#slot === 0 ? this.#lead(own) : undefined;
      const meeting = Promise.all([this.#awaitLocal(own), this.#awaitRemote(own)]);
      const [local, remote] = await (leading === undefined ? meeting : led(leading, meeting));
      return { local, remote };
    } catch (error) {
      await this.leave().catch(() => {});
      throw error;
    } finally {
      stop.abort();
    }
  }

  /** Takes this rank's record back. */
  async leave(): Promise<void> {
    const slot = this.#slot;
    if (slot === undefined) return;
    this.#slot = undefined;
    const key = slotKey(this.#spec.pair, this.#spec.local, slot);
    const record = await this.#rendezvous.store.get(key, cleaning);
    if (record !== undefined && this.#memberOf(record)?.nonce === this.#nonce) {
      await this.#rendezvous.store.delete(key, cleaning);
    }
    if (slot === 0) await this.#removeSide();
  }

  /** Removes the record of the side, unless another rank has replaced it. */
  async #removeSide(): Promise<void> {
    const { rank, generation } = this.#self;
    const key = sideRecordKey(this.#spec.pair, this.#spec.local);
    const side = await this.#rendezvous.read(key, sideSchema, cleaning);
    if (side?.leader === rank && side.generation === generation) await this.#rendezvous.remove(key, cleaning);
  }

  #memberOf(bytes: Uint8Array): MemberRecord | undefined {
    const parsed = decode(memberSchema, bytes);
    return parsed.success ? parsed.data : undefined;
  }

  /** Takes its own slot of an earlier time, or the first free one from its position in the side on. */
  async #takeSlot(deadline: Deadline): Promise<number> {
    const { pair, local, remote, worldSize, layout } = this.#spec;
    const { store } = this.#rendezvous;
    const record: MemberRecord = {
      version: recordVersion,
      rank: this.#self.rank,
      generation: this.#self.generation,
      nonce: this.#nonce,
      remote,
      worldSize,
      ...(layout === undefined ? {} : { layout }),
    };
    const bytes = pack(record);
    const position = sharedLayout(layout)?.mesh.ranks.indexOf(this.#self.rank) ?? this.#self.rank;
    const taken: number[] = [];
    for (let step = 0; step < worldSize; step++) {
      const slot = (position + step) % worldSize;
      const key = slotKey(pair, local, slot);
      let expected: Uint8Array | undefined;
      for (;;) {
        const { swapped, stored } = await store.compareAndSet(key, expected, bytes, deadline.rest);
        if (swapped) return this.#hold(key, bytes, slot, deadline);
        const holder = stored === undefined ? undefined : this.#memberOf(stored);
        const free =
          holder === undefined || holder.rank === this.#self.rank || (await this.#isStale(holder, deadline));
        if (!free) {
          taken.push(holder.rank);
          break;
        }
        expected = stored;
      }
    }
    throw new TensorBusError(
      "TB_PAIR_MISMATCH",
      `pair ${pair}, side ${local}: rank ${this.#self.rank} comes to a side of ${worldSize} that ranks ${taken.join(", ")} have filled`,
      { details: { pair, side: local, rank: this.#self.rank, worldSize, ranks: taken } },
    );
  }

  /** A slot goes with its process, if the store can do that. */
  async #hold(key: string, bytes: Uint8Array, slot: number, deadline: Deadline): Promise<number> {
    const { store } = this.#rendezvous;
    if (store.capabilities.lease) await store.set(key, bytes, { ...deadline.rest, leased: true });
    return slot;
  }

  /** Each is asked once: who has died since is the matter of what is agreed next. */
  async #isStale({ rank, generation }: Incumbent, deadline: Deadline): Promise<boolean> {
    const isOwn = rank === this.#self.rank && generation === this.#self.generation;
    const name = `${rank} ${generation}`;
    if (isOwn || this.#present.has(name)) return false;
    if (!(await isPresent(this.#rendezvous, { rank, generation }, deadline))) return true;
    this.#present.add(name);
    return false;
  }

  /** Reads all slots, until all that stand are of agents that live and agree; then writes the side's record. */
  async #lead(deadline: Deadline): Promise<void> {
    const { pair, local, remote, worldSize, layout } = this.#spec;
    const keys = Array.from({ length: worldSize }, (_, slot) => slotKey(pair, local, slot));
    const details = { pair, side: local, rank: this.#self.rank };
    let missing: number[] = [];
    const members = await this.#rendezvous
      .await(
        keys,
        (rest) => this.#readMembers(keys, new Deadline(rest)),
        `pair ${pair}, side ${local}: waiting for its ${worldSize} ranks`,
        deadline.rest,
        details,
      )
      .catch(async (error) => {
        missing = await this.#missing(keys);
        throw this.#withMissing(error, missing);
      });
    const failure = findOdd(pair, local, members);
    const record: SideRecord = {
      version: recordVersion,
      leader: this.#self.rank,
      generation: this.#self.generation,
      remote,
      ranks:
        failure === undefined
          ? orderRanks(
              members.map(({ rank }) => rank),
              layout,
            )
          : members.map(({ rank }) => rank),
      nonces: members.map(({ nonce }) => nonce),
      ...(layout === undefined ? {} : { layout }),
      ...(failure === undefined
        ? {}
        : { failure: { code: "TB_PAIR_MISMATCH", message: failure.message, details: failure.details } }),
    };
    await this.#rendezvous.publish(sideRecordKey(pair, local), record, deadline.rest);
    if (failure !== undefined) throw failure;
  }

  async #readMembers(keys: readonly string[], deadline: Deadline): Promise<MemberRecord[] | undefined> {
    const records = await Promise.all(keys.map((key) => this.#rendezvous.store.get(key, deadline.rest)));
    const members = records.map((bytes) => (bytes === undefined ? undefined : this.#memberOf(bytes)));
    if (members.includes(undefined)) return undefined;
    const all = members as MemberRecord[];
    // Any may be what a dead agent has left, in whose place another rank will come.
    const stale = await inGroups(all.length, (index) => this.#isStale(all[index]!, deadline));
    return stale.includes(true) ? undefined : all;
  }

  async #missing(keys: readonly string[]): Promise<number[]> {
    const records = await Promise.all(
      keys.map((key) => this.#rendezvous.store.get(key, cleaning).catch(() => undefined)),
    );
    return records.flatMap((record, slot) => (record === undefined ? [slot] : []));
  }

  #withMissing(error: unknown, missing: readonly number[]): unknown {
    if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT" || missing.length === 0)
      return error;
    const { pair, local, worldSize } = this.#spec;
    const layout = sharedLayout(this.#spec.layout);
    const who =
      layout === undefined
        ? `${missing.length} of ${worldSize} ranks`
        : `rank ${missing.map((slot) => layout.mesh.ranks[slot]).join(", ")}`;
    return new TensorBusError("TB_TIMEOUT", `pair ${pair}, side ${local}: ${who} did not come`, {
      details: { ...error.details, missing: missing.length },
      cause: error,
    });
  }

  #awaitLocal(deadline: Deadline): Promise<SideRecord> {
    const { pair, local, layout, remote } = this.#spec;
    const key = sideRecordKey(pair, local);
    const accept = async (side: SideRecord) => {
      const counted = side.nonces.includes(this.#nonce);
      if (side.failure !== undefined) {
        if (counted)
          throw new TensorBusError(side.failure.code, side.failure.message, {
            details: side.failure.details,
          });
        return false;
      }
      const same =
        side.ranks.length === this.#spec.worldSize &&
        side.ranks.includes(this.#self.rank) &&
        side.remote === remote &&
        layoutDigest(side.layout) === layoutDigest(layout);
      // A rank that comes again finds the record of the side that it left, which does not count it. That of a dead leader may
      // be of a job that was launched before, with other ranks: the next leader writes another.
      const leader = { rank: side.leader, generation: side.generation };
      return same && (counted || !(await this.#isStale(leader, deadline)));
    };
    return this.#awaitSide(key, accept, `pair ${pair}: waiting for the ranks of side ${local}`, deadline);
  }

  #awaitRemote(deadline: Deadline): Promise<SideRecord> {
    const { pair, local, remote } = this.#spec;
    const accept = async (side: SideRecord) => {
      if (
        side.failure !== undefined ||
        (await this.#isStale({ rank: side.leader, generation: side.generation }, deadline))
      ) {
        return false;
      }
      if (side.remote === local) return true;
      throw new TensorBusError(
        "TB_PAIR_MISMATCH",
        `pair ${pair}: side ${remote} wants to meet ${side.remote}, not ${local}`,
        { details: { pair, side: remote, rank: side.leader, value: side.remote, expected: local } },
      );
    };
    const key = sideRecordKey(pair, remote);
    return this.#awaitSide(key, accept, `pair ${pair}: waiting for side ${remote}`, deadline);
  }

  #awaitSide(
    key: string,
    accept: (side: SideRecord) => Promise<boolean>,
    what: string,
    deadline: Deadline,
  ): Promise<SideRecord> {
    const { pair, local, remote } = this.#spec;
    const look = async (rest: object) => {
      const side = await this.#rendezvous.read(key, sideSchema, rest);
      return side !== undefined && (await accept(side)) ? side : undefined;
    };
    const details = { pair, local, remote, rank: this.#self.rank };
    return this.#rendezvous.await([key], look, what, deadline.rest, details);
  }
}

const cleaning = { timeoutMs: 1000 };

/** Gives what was met; or fails as the leader does, which knows more than a rank that waits for its record. */
export async function led<T>(leading: Promise<unknown>, meeting: Promise<T>): Promise<T> {
  const failure = leading.then(
    () => undefined,
    (error: unknown) => ({ error }),
  );
  const first = await Promise.race([
    failure.then((failed) => (failed === undefined ? meeting : Promise.reject(failed.error))),
    meeting.catch(async (error: unknown) => {
      const failed = isTimeout(error) ? await failure : undefined;
      throw failed?.error ?? error;
    }),
  ]);
  await leading;
  return first;
}

function isTimeout(error: unknown): boolean {
  return error instanceof TensorBusError && error.code === "TB_TIMEOUT";
}
