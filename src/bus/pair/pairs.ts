/** The pairs of an agent: the sides on which its rank stands, and who has registered them. */
import * as z from "zod";
import { Deadline, waitUntil } from "../../deadline.ts";
import { TensorBusError } from "../../errors.ts";
import type { ClientIdentity } from "../queue/command-header.ts";
import { type CommandOf, type CommandResult, sideLayoutSchema } from "../queue/commands.ts";
import type { Records, Table } from "../queue/state.ts";
import type { AgentEvent } from "./events.ts";
import { type MetPair, PairMeeting } from "./meeting.ts";
import { layoutDigest, layoutOf, type SideSpec, sharedLayout } from "./records.ts";
import { keyPart } from "./rendezvous.ts";
import type { Uplink } from "./uplink.ts";

interface PairsOptions {
  readonly rank: number;
  readonly world: number;
  readonly generation: bigint;
  readonly uplink: Uplink;
  readonly state: Records;
  readonly isAlive: (client: bigint) => boolean;
  readonly tell: (event: AgentEvent) => void;
}

/** One side of a pair on this rank. */
export interface PairSide {
  readonly spec: SideSpec;
  /** The client that speaks for it; who reconnects takes a dead one's place. */
  owner: bigint | undefined;
  /** True once `met` is settled. */
  settled: boolean;
  readonly met: Promise<MetPair>;
  readonly meeting: PairMeeting;
  readonly abort: AbortController;
  /** In the order of the agent's registrations. */
  readonly order: number;
}

const specSchema = z.strictObject({
  pair: z.string(),
  local: z.string(),
  remote: z.string(),
  worldSize: z.int().min(1),
  layout: sideLayoutSchema.optional(),
});

/** How long a side that is remembered waits for the others. */
const rememberedMs = 24 * 3600 * 1000;

export class Pairs {
  readonly #options: PairsOptions;
  readonly #table: Table<z.infer<typeof specSchema>>;
  readonly #sides = new Map<string, PairSide>();
  readonly #remembered = new Map<string, SideSpec>();
  #count = 0;

  constructor(options: PairsOptions) {
    this.#options = options;
    this.#table = options.state.table("pairs", specSchema);
  }

  /**
   * Remembers the sides that this rank had registered before: with an earlier agent, or over a store that was lost. They are
   * taken up when a client asks for something of them; until then they bind nobody, for the job may come back in another way.
   */
  restore(): void {
    for (const [, spec] of this.#table.entries()) {
      if (!this.#sides.has(keyOf(spec))) this.#remembered.set(keyOf(spec), spec);
    }
  }

  /** `TB_EXISTS` for a side that a living client has registered; the rest is that of `PairMeeting.meet`. */
  async init(command: CommandOf<"InitPair">, deadline: Deadline): Promise<CommandResult<"InitPair">> {
    const { pair, local, remote, worldSize, layout, client } = command;
    const spec: SideSpec = { pair, local, remote, worldSize, ...(layout === undefined ? {} : { layout }) };
    this.#check(spec);
    await this.#options.uplink.connected(deadline.rest);
    const known = this.#sides.get(keyOf(spec));
    const side = this.#claim(spec, client, deadline);
    // A meeting of this call's own ends at its deadline, and says then who is missing.
    const met = await (side === known ? this.await(side, deadline) : side.met);
    return { localRanks: met.local.ranks, remoteRanks: met.remote.ranks };
  }

  /** Both sides, once they have met. */
  await(side: PairSide, deadline: Deadline): Promise<MetPair> {
    const { pair, local } = side.spec;
    return waitUntil<MetPair>(`pair ${pair}, side ${local}`, deadline, (resolve, reject) => {
      side.met.then(resolve, reject);
      return () => {};
    });
  }

  /**
   * The sides of a pair that a client speaks for, those whose client has ended among them, its own first. `TB_PAIR_UNKNOWN`
   * if there is none.
   */
  sidesOf(pair: string, client: ClientIdentity): PairSide[] {
    const all = [...this.#sides.values()].filter(({ spec }) => spec.pair === pair);
    const own = all.filter(({ owner }) => owner === client.id);
    if (own.length > 0) return own.sort((a, b) => a.order - b.order);
    const orphaned = all.filter(({ owner }) => owner === undefined || !this.#options.isAlive(owner));
    const sides = [...orphaned, ...this.#recall(pair)];
    if (sides.length > 0) return sides.sort((a, b) => a.order - b.order);
    const message = `pair ${pair} is not registered by this client on rank ${this.#options.rank}`;
    throw new TensorBusError("TB_PAIR_UNKNOWN", message, { details: { pair, rank: this.#options.rank } });
  }

  /** A client has ended: what it waited for ends, what was met stays for the next one. */
  forgetClient(client: bigint): void {
    for (const side of this.#sides.values()) {
      if (side.owner !== client) continue;
      side.owner = undefined;
      if (!side.settled) side.abort.abort(new TensorBusError("TB_CLIENT_LOST", "its client ended"));
    }
  }

  /** The store was lost, and all that was agreed over it. */
  end(error: TensorBusError): void {
    for (const side of this.#sides.values()) side.abort.abort(error);
    this.#sides.clear();
  }

  /** Ends what waits for other ranks. */
  abandon(reason: TensorBusError): void {
    for (const { settled, abort } of this.#sides.values()) if (!settled) abort.abort(reason);
  }

  /** Takes this rank's records back. */
  async leave(): Promise<void> {
    const sides = [...this.#sides.values()];
    this.#sides.clear();
    for (const { abort } of sides) abort.abort(new TensorBusError("TB_CLOSED", "the agent was closed"));
    await Promise.all(sides.map(({ meeting }) => meeting.leave().catch(() => {})));
  }

  #check({ pair, local, remote, worldSize, layout }: SideSpec): void {
    const { rank, world } = this.#options;
    const details = { pair, side: local, rank };
    if (local === remote) {
      throw new TensorBusError("TB_PAIR_MISMATCH", `pair ${pair}: both sides are called ${local}`, {
        details,
      });
    }
    const third = [...this.#sides.values()].find(
      ({ spec }) => spec.pair === pair && new Set([spec.local, spec.remote, local, remote]).size > 2,
    );
    if (third !== undefined) {
      const expected = `${third.spec.local} and ${third.spec.remote}`;
      const message = `pair ${pair}: sides ${local} and ${remote}, but rank ${rank} has registered ${expected}`;
      throw new TensorBusError("TB_PAIR_MISMATCH", message, {
        details: { ...details, value: `${local} and ${remote}`, expected },
      });
    }
    const shared = sharedLayout(layout);
    if (shared === undefined) return;
    const { mesh } = layoutOf(shared);
    const wrong = (what: string, more: object) =>
      new TensorBusError("TB_MESH", `pair ${pair}, side ${local}: ${what}`, {
        details: { ...details, ...more },
      });
    if (!mesh.ranks.includes(rank))
      throw wrong(`rank ${rank} is not in its own mesh`, { ranks: shared.mesh.ranks });
    if (mesh.size !== worldSize) {
      throw wrong(`a mesh of ${mesh.size} ranks for a side of ${worldSize}`, {
        value: mesh.size,
        expected: worldSize,
      });
    }
    const outside = shared.mesh.ranks.find((other) => other >= world);
    if (outside !== undefined)
      throw wrong(`rank ${outside} is not in the world of ${world}`, { value: outside });
    if (shared.placements.length !== mesh.ndim) {
      throw wrong(`${shared.placements.length} placements for ${mesh.ndim} mesh dimensions`, {
        value: shared.placements.length,
        expected: mesh.ndim,
      });
    }
  }

  /** Takes up the sides of a pair that are remembered. */
  #recall(pair: string): PairSide[] {
    const specs = [...this.#remembered.values()].filter((spec) => spec.pair === pair);
    return specs.map((spec) => this.#join(spec, undefined, rememberedMs));
  }

  #claim(spec: SideSpec, client: ClientIdentity, deadline: Deadline): PairSide {
    const known = this.#sides.get(keyOf(spec));
    if (known !== undefined) {
      if (known.owner !== undefined && this.#options.isAlive(known.owner)) {
        throw new TensorBusError(
          "TB_EXISTS",
          `side ${spec.local} of pair ${spec.pair} is registered already`,
          {
            details: { pair: spec.pair, side: spec.local, rank: this.#options.rank },
          },
        );
      }
      if (isSame(known.spec, spec)) {
        known.owner = client.id;
        return known;
      }
      known.abort.abort(new TensorBusError("TB_CANCELLED", "its side was registered anew"));
      this.#sides.delete(keyOf(spec));
    }
    return this.#join(spec, client.id, deadline.remainingMs);
  }

  #join(spec: SideSpec, owner: bigint | undefined, timeoutMs: number): PairSide {
    const { rank, generation, uplink, tell } = this.#options;
    const abort = new AbortController();
    const meeting = new PairMeeting(uplink.connection.rendezvous, { rank, generation }, spec);
    const deadline = new Deadline({ timeoutMs, signal: abort.signal });
    const met = this.#meet(meeting, spec, deadline).catch((error: unknown) => {
      const reason: unknown = abort.signal.reason;
      throw reason instanceof TensorBusError ? reason : error;
    });
    this.#count += 1;
    const side: PairSide = { spec, owner, settled: false, met, meeting, abort, order: this.#count };
    this.#sides.set(keyOf(spec), side);
    this.#remembered.delete(keyOf(spec));
    const { pair, local, remote } = spec;
    met.then(
      () => {
        side.settled = true;
        tell({ kind: "pairMet", pair, local, remote });
        void this.#remember(spec);
      },
      (error: TensorBusError) => {
        side.settled = true;
        if (this.#sides.get(keyOf(spec)) === side) this.#sides.delete(keyOf(spec));
        tell({ kind: "pairFailed", pair, local, error });
      },
    );
    return side;
  }

  /** `TB_DEVICE_SHARED` if two of the pair's ranks stand on one GPU, and need NCCL, which wants one for each. */
  async #meet(meeting: PairMeeting, { pair }: SideSpec, deadline: Deadline): Promise<MetPair> {
    const met = await meeting.meet(deadline);
    const ranks = [...new Set([...met.local.ranks, ...met.remote.ranks])].sort((a, b) => a - b);
    try {
      await this.#options.uplink.connection.session.checkRanks?.(ranks, deadline.rest);
    } catch (error) {
      await meeting.leave().catch(() => {});
      if (!(error instanceof TensorBusError)) throw error;
      throw new TensorBusError(error.code, `pair ${pair}: ${error.message}`, {
        details: { ...error.details, pair },
        cause: error,
      });
    }
    return met;
  }

  async #remember(spec: SideSpec): Promise<void> {
    const { state, tell } = this.#options;
    try {
      await state.write("remembering a pair", () => this.#table.put(rowOf(spec), { ...spec }));
    } catch (error) {
      tell({ kind: "fault", error: error as TensorBusError });
    }
  }
}

function keyOf({ pair, local }: Pick<SideSpec, "pair" | "local">): string {
  return JSON.stringify([pair, local]);
}

/** The key of its row in the state: names may be longer than a key can be. */
function rowOf({ pair, local }: SideSpec): string {
  return `${keyPart(pair)} ${keyPart(local)}`;
}

function isSame(a: SideSpec, b: SideSpec): boolean {
  return (
    a.remote === b.remote && a.worldSize === b.worldSize && layoutDigest(a.layout) === layoutDigest(b.layout)
  );
}
