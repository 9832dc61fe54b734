/**
 * The communicators of a session, one for each set of ranks. Whatever they need to know of each other stands in the store,
 * signed: each rank says who it is (an incarnation of a session, on a device) and which communicators it knows to be dead;
 * the lowest rank of the set makes ids. A communicator is that of an epoch, and of the incarnations that the epoch names:
 * once one of them is another, or knows the epoch to be dead, the lowest rank makes the next.
 *
 * A rank announces itself before it prepares with its peers, and asks for the communicator after. The lowest rank has
 * prepared with all others, so what it then reads is what they announced for this prepare, and not before; and they take an
 * epoch only once it says that it has seen that.
 */
import { createHash, createHmac, randomBytes } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import type { Deadline } from "../../src/deadline.ts";
import { cancelledError } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import { signedStore } from "../../src/store/signed.ts";
import type { Store } from "../../src/store/store.ts";
import type { DirectoryScope } from "../../src/transport/peer-directory.ts";

/** What is asked of the library; of native code, but for tests. */
export interface CommunicatorCalls {
  uniqueId(): Uint8Array;
  join(setup: { readonly ranks: Int32Array; readonly id: Uint8Array; readonly epoch: number }): bigint;
  /** `true` once all have joined; throws why it was aborted. */
  isJoined(communicator: bigint): boolean;
  leave(communicator: bigint): void;
}

interface CommunicatorsSetup {
  readonly store: Store;
  readonly scope: DirectoryScope;
  readonly rank: number;
  /** UUID of the GPU. */
  readonly device: Uint8Array;
  /** Ranks may share a GPU, which only newer libraries can be told to allow. */
  readonly sharedDevices: boolean;
  readonly calls: CommunicatorCalls;
}

/** The record of a rank about itself. */
interface Member {
  readonly incarnation: string;
  readonly host: string;
  readonly device: string;
  /** The last epoch of which it knows that it cannot be used (any more). */
  readonly dead: number;
  /** How often it has announced itself. */
  readonly tickets: number;
}

/** The record of the lowest rank. */
interface Epoch {
  readonly epoch: number;
  readonly incarnations: readonly string[];
  /** What each rank had announced when this was written. */
  readonly seen: readonly number[];
  /** Absent if there can be no communicator: two of the ranks share a device. */
  readonly id?: string;
  readonly shared?: readonly [number, number];
}

interface SetState {
  readonly ranks: Int32Array;
  readonly prefix: string;
  /** This rank's record as it stands in the store. */
  said: string;
  dead: number;
  tickets: number;
  /** The last record of this rank, if it is the lowest. */
  epoch: Epoch | undefined;
  joined: { readonly epoch: number; readonly communicator: bigint } | undefined;
  /** The last step of whoever looks after the set: one at a time. */
  turn: Promise<unknown>;
  failures: number;
}

const leastPauseMs = 2;
const mostPauseMs = 40;
/** An init that failed so often does so for a reason that another id will not change. */
const mostFailures = 3;
const readsAtOnce = 32;
const withdrawMs = 1000;

export class Communicators {
  readonly #setup: CommunicatorsSetup;
  readonly #store: Store;
  readonly #incarnation = randomBytes(8).toString("hex");
  readonly #sets = new Map<string, SetState>();
  #closed = false;

  constructor(setup: CommunicatorsSetup) {
    this.#setup = setup;
    // A job on loopback may have an empty secret, which signs as little as it proves.
    const secrets = setup.scope.secrets.map((secret) =>
      createHmac("sha256", secret).update("tensorbus communicators").digest(),
    );
    this.#store = signedStore(setup.store, { secrets, generation: setup.scope.generation });
  }

  /** Says that this rank is about to prepare with these, ascending; gives the ticket with which it then asks. */
  async announce(ranks: Int32Array, deadline: Deadline): Promise<number> {
    const set = this.#setOf(ranks);
    set.tickets += 1;
    const ticket = set.tickets;
    if (ranks.length > 1) await this.#inTurn(set, () => this.#say(set, deadline));
    return ticket;
  }

  /**
   * The communicator of just these ranks, once all have joined it. All of them must ask. `TB_TIMEOUT` names who did not,
   * `TB_DEVICE_SHARED` the two that stand on one device. What `check` throws ends it.
   */
  async of(ranks: Int32Array, ticket: number, deadline: Deadline, check = () => {}): Promise<bigint> {
    const set = this.#setOf(ranks);
    let pause = leastPauseMs;
    let missing: readonly number[] = [];
    for (;;) {
      const outcome = await this.#inTurn(set, () => this.#step(set, ticket, deadline));
      if (typeof outcome === "bigint") return outcome;
      missing = outcome;
      check();
      if (deadline.signal?.aborted) throw cancelledError("making a communicator", deadline.signal);
      if (deadline.remainingMs === 0) throw lateError(ranks, missing);
      await sleep(Math.min(pause, deadline.remainingMs));
      pause = Math.min(mostPauseMs, pause * 2);
    }
  }

  /** Takes this rank's records back. */
  async withdraw(): Promise<void> {
    this.#closed = true;
    for (const set of this.#sets.values()) {
      if (set.said === "") continue;
      try {
        await this.#store.delete(memberKey(set, this.#setup.rank), { timeoutMs: withdrawMs });
      } catch (error) {
        if (!(error instanceof TensorBusError)) throw error;
        return;
      }
    }
  }

  #inTurn<T>(set: SetState, action: () => Promise<T>): Promise<T> {
    const done = set.turn.then(action);
    set.turn = done.catch(() => {});
    return done;
  }

  /** Looks at everything once: the communicator, or the ranks that are waited for as far as this one knows. */
  async #step(set: SetState, ticket: number, deadline: Deadline): Promise<bigint | readonly number[]> {
    if (set.ranks.length === 1) return this.#alone(set) ?? [];
    await this.#say(set, deadline);
    const leads = set.ranks[0] === this.#setup.rank;
    const { epoch, missing } = leads
      ? await this.#lead(set, deadline)
      : { epoch: await this.#read(set, deadline), missing: [set.ranks[0]!] };
    if (epoch === undefined || epoch.epoch <= set.dead) return missing;
    const own = set.ranks.indexOf(this.#setup.rank);
    if (epoch.incarnations[own] !== this.#incarnation || epoch.seen[own]! < ticket) return missing;
    if (epoch.shared !== undefined) throw sharedError(epoch.shared);
    return this.#join(set, epoch) ? set.joined!.communicator : [...set.ranks];
  }

  #alone(set: SetState): bigint | undefined {
    const { calls } = this.#setup;
    set.joined ??= {
      epoch: 1,
      communicator: calls.join({ ranks: set.ranks, id: new Uint8Array(128), epoch: 1 }),
    };
    return calls.isJoined(set.joined.communicator) ? set.joined.communicator : undefined;
  }

  /** Joins the communicator of an epoch, if that is not done. `true` once all have. */
  #join(set: SetState, { epoch, id = "" }: Epoch): boolean {
    const { calls } = this.#setup;
    if (set.joined?.epoch !== epoch) {
      if (set.joined !== undefined) calls.leave(set.joined.communicator);
      const bytes = Buffer.from(id, "base64");
      if (bytes.length !== 128)
        throw new TensorBusError(
          "TB_PROTOCOL",
          `the store's record of communicator epoch ${epoch} has no id`,
        );
      set.joined = { epoch, communicator: calls.join({ ranks: set.ranks, id: bytes, epoch }) };
    }
    try {
      const joined = calls.isJoined(set.joined.communicator);
      if (joined) set.failures = 0;
      return joined;
    } catch (error) {
      if (error instanceof TensorBusError && error.code === "TB_CLOSED") throw error;
      set.dead = epoch;
      set.failures += 1;
      if (set.failures >= mostFailures) {
        set.failures = 0;
        throw error;
      }
      return false;
    }
  }

  async #say(set: SetState, deadline: Deadline): Promise<void> {
    const { device, rank } = this.#setup;
    const member: Member = {
      incarnation: this.#incarnation,
      host: hostname(),
      device: Buffer.from(device).toString("hex"),
      dead: set.dead,
      tickets: set.tickets,
    };
    const record = JSON.stringify(member);
    if (record === set.said || this.#closed) return;
    await this.#store.set(memberKey(set, rank), Buffer.from(record), deadline.rest);
    set.said = record;
  }

  async #read(set: SetState, deadline: Deadline): Promise<Epoch | undefined> {
    return parse<Epoch>(await this.#store.get(`${set.prefix}/epoch`, deadline.rest));
  }

  /** The epoch that stands, if it suits what all say of themselves; else the next one. */
  async #lead(
    set: SetState,
    deadline: Deadline,
  ): Promise<{ readonly epoch: Epoch | undefined; readonly missing: readonly number[] }> {
    const members = await this.#members(set, deadline);
    const missing = [...set.ranks].filter((_, index) => members[index] === undefined);
    if (missing.length > 0) return { epoch: undefined, missing };
    const all = members as readonly Member[];
    const stands = set.epoch;
    const suits =
      stands !== undefined &&
      all.every(
        ({ incarnation, dead }, index) => incarnation === stands.incarnations[index] && dead < stands.epoch,
      );
    const seen = all.map(({ tickets }) => tickets);
    if (suits && seen.join() !== stands.seen.join()) await this.#publish(set, { ...stands, seen }, deadline);
    if (!suits) {
      const last = Math.max(
        (await this.#read(set, deadline))?.epoch ?? 0,
        stands?.epoch ?? 0,
        ...all.map(({ dead }) => dead),
      );
      const next = this.#nextEpoch(set, all, last + 1);
      await this.#publish(set, next, deadline);
    }
    return { epoch: set.epoch, missing: [] };
  }

  async #publish(set: SetState, epoch: Epoch, deadline: Deadline): Promise<void> {
    await this.#store.set(`${set.prefix}/epoch`, Buffer.from(JSON.stringify(epoch)), deadline.rest);
    set.epoch = epoch;
  }

  #nextEpoch(set: SetState, members: readonly Member[], epoch: number): Epoch {
    const who = {
      incarnations: members.map(({ incarnation }) => incarnation),
      seen: members.map(({ tickets }) => tickets),
    };
    const shared = this.#setup.sharedDevices ? undefined : findShared(set.ranks, members);
    if (shared !== undefined) return { epoch, ...who, shared };
    return { epoch, ...who, id: Buffer.from(this.#setup.calls.uniqueId()).toString("base64") };
  }

  async #members(set: SetState, deadline: Deadline): Promise<readonly (Member | undefined)[]> {
    const members: (Member | undefined)[] = [];
    for (let start = 0; start < set.ranks.length; start += readsAtOnce) {
      const some = set.ranks.slice(start, start + readsAtOnce);
      const records = await Promise.all(
        [...some].map((rank) => this.#store.get(memberKey(set, rank), deadline.rest)),
      );
      members.push(...records.map((record) => parse<Member>(record)));
    }
    return members;
  }

  #setOf(ranks: Int32Array): SetState {
    const name = createHash("sha256").update(ranks.join()).digest("hex").slice(0, 32);
    let set = this.#sets.get(name);
    if (set === undefined) {
      const { transport, namespace, generation } = this.#setup.scope;
      const prefix = `${transport}/${encodeURIComponent(namespace)}/${generation}/set/${name}`;
      set = {
        ranks,
        prefix,
        said: "",
        dead: 0,
        tickets: 0,
        epoch: undefined,
        joined: undefined,
        turn: Promise.resolve(),
        failures: 0,
      };
      this.#sets.set(name, set);
    }
    return set;
  }
}

function memberKey({ prefix }: SetState, rank: number): string {
  return `${prefix}/member/${rank}`;
}

/** The first two ranks on one device of one host. */
function findShared(ranks: Int32Array, members: readonly Member[]): readonly [number, number] | undefined {
  const seen = new Map<string, number>();
  for (const [index, { host, device }] of members.entries()) {
    const place = `${host} ${device}`;
    const other = seen.get(place);
    if (other !== undefined) return [other, ranks[index]!];
    seen.set(place, ranks[index]!);
  }
  return undefined;
}

function parse<T>(record: Uint8Array | undefined): T | undefined {
  return record === undefined ? undefined : (JSON.parse(Buffer.from(record).toString("utf8")) as T);
}

function sharedError(ranks: readonly [number, number]): TensorBusError {
  return new TensorBusError(
    "TB_DEVICE_SHARED",
    `ranks ${ranks[0]} and ${ranks[1]} are on one GPU, but need NCCL to reach others`,
    { details: { ranks } },
  );
}

function lateError(ranks: Int32Array, missing: readonly number[]): TensorBusError {
  return new TensorBusError(
    "TB_TIMEOUT",
    `no communicator of ${ranks.length} ranks: rank ${missing.join(", ")} did not come`,
    { details: { rank: missing[0], ranks: missing } },
  );
}
