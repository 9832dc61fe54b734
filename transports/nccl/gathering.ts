/**
 * Which ranks of a plan come together for NCCL: what pairs of ranks take is known of all of them before anything is
 * prepared, from what each has said of itself in the store, so every rank comes to the same answer by itself.
 */
import type { Deadline } from "../../src/deadline.ts";
import { TensorBusError } from "../../src/errors.ts";
import {
  type Carrier,
  carrierBetween,
  identityBytes,
  type Member,
  readIdentity,
} from "../../src/ffi/carriers.ts";
import type { PeerDirectory } from "../../src/transport/peer-directory.ts";
import type { PlanLinks } from "../../src/transport/transport.ts";

interface GatheringSetup {
  readonly rank: number;
  readonly directory: PeerDirectory;
}

type Neighbours = ReadonlyMap<number, ReadonlySet<number>>;
type Identities = ReadonlyMap<number, Uint8Array>;

export class Gathering {
  readonly #setup: GatheringSetup;

  constructor(setup: GatheringSetup) {
    this.#setup = setup;
  }

  /**
   * For a plan whose tensors lie in GPU memory: who begins its rounds together, by ascending rank; nobody if no bucket
   * goes by NCCL. `TB_UNSUPPORTED` and `TB_DEVICE_SHARED` name two ranks that it cannot serve.
   */
  async choose(links: PlanLinks, checksum: boolean, deadline: Deadline): Promise<readonly Member[]> {
    const { rank } = this.#setup;
    const neighbours = neighboursOf(rank, links);
    if (neighbours.size === 1) return [];
    const identities = await this.#identities([...neighbours.keys()], deadline);
    return chooseMembers(rank, neighbours, {
      wayOf: (one, other) => wayBetween(identities, one, other, checksum),
      gathers: (other) => readIdentity(identities.get(other)!).uses("nccl"),
      gpuOf: (other) => readIdentity(identities.get(other)!).gpu,
      mayShare: (other) => readIdentity(identities.get(other)!).uses("shared-gpu"),
    });
  }

  /** See `TransportSession.checkRanks`. */
  async check(ranks: readonly number[], deadline: Deadline): Promise<void> {
    const identities = await this.#identities(ranks, deadline);
    const needs = (rank: number) =>
      ranks.some((other) => other !== rank && needsNccl(identities, rank, other));
    const read = (rank: number) => readIdentity(identities.get(rank)!);
    const shared = findShared(
      ranks.filter((rank) => read(rank).uses("nccl") && !read(rank).uses("shared-gpu")),
      (rank) => read(rank).gpu,
      needs,
    );
    if (shared !== undefined) throw sharedError(shared, read(shared[0]).gpu);
  }

  async #identities(ranks: readonly number[], deadline: Deadline): Promise<Identities> {
    const identities = await this.#setup.directory.identities(ranks, deadline);
    for (const [rank, identity] of identities) {
      if (identity?.length === identityBytes) continue;
      const message = `rank ${rank} published an identity that this version cannot read: run the same version on all ranks`;
      throw new TensorBusError("TB_VERSION", message, { details: { rank } });
    }
    return identities as Identities;
  }
}

interface PairRules {
  readonly wayOf: (one: number, other: number) => Carrier;
  /** True if a rank comes together with others at all. */
  readonly gathers: (rank: number) => boolean;
  readonly gpuOf: (rank: number) => string;
  /** True if NCCL may be asked to take it on one GPU with another. */
  readonly mayShare: (rank: number) => boolean;
}

/** The members as one of the ranks sees them; for all of them the same ones join. */
function chooseMembers(
  rank: number,
  neighbours: Neighbours,
  { wayOf, gathers, gpuOf, mayShare }: PairRules,
): readonly Member[] {
  const joining = new Set<number>();
  const peers = new Set<number>();
  for (const [one, others] of neighbours) {
    for (const other of others) {
      if (other < one || wayOf(one, other) !== "nccl") continue;
      joining.add(one).add(other);
      if (one === rank) peers.add(other);
      if (other === rank) peers.add(one);
    }
  }
  if (joining.size === 0) return [];
  const ranks = [...neighbours.keys()].toSorted((a, b) => a - b);
  const shared = findShared(ranks, gpuOf, (each) => joining.has(each) && !mayShare(each));
  if (shared !== undefined) throw sharedError(shared, gpuOf(shared[0]));
  return ranks
    .filter((each) => joining.has(each) || gathers(each))
    .map((each) => ({ rank: each, joins: joining.has(each), peer: peers.has(each) }));
}

/** For each rank that a rank deals with, directly or by way of others: the ranks that it deals with. */
function neighboursOf(rank: number, { count, srcRank, dstRank }: PlanLinks): Neighbours {
  const all = new Map<number, Set<number>>([[rank, new Set()]]);
  const add = (one: number, other: number) => {
    const known = all.get(one);
    if (known === undefined) all.set(one, new Set([other]));
    else known.add(other);
  };
  for (let link = 0; link < count; link++) {
    const [one, other] = [srcRank[link]!, dstRank[link]!];
    if (one === other) continue;
    add(one, other);
    add(other, one);
  }
  const reached = new Map([[rank, all.get(rank)!]]);
  for (const [, others] of reached) for (const other of others) reached.set(other, all.get(other)!);
  return reached;
}

function wayBetween(identities: Identities, one: number, other: number, checksum: boolean): Carrier {
  try {
    return carrierBetween(identities.get(one)!, identities.get(other)!, { memory: "cuda", checksum });
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    if (error.code === "TB_DEVICE_SHARED")
      throw sharedError([one, other], readIdentity(identities.get(one)!).gpu);
    throw new TensorBusError(error.code, `ranks ${one} and ${other}: ${error.message}`, {
      details: { ranks: [one, other] },
    });
  }
}

/** True if two ranks could only meet by NCCL, were they on GPUs of their own. */
function needsNccl(identities: Identities, one: number, other: number): boolean {
  try {
    return wayBetween(identities, one, other, false) === "nccl";
  } catch (error) {
    return error instanceof TensorBusError && error.code === "TB_DEVICE_SHARED";
  }
}

/** The first two ranks on one GPU that both concern. */
function findShared(
  ranks: readonly number[],
  gpuOf: (rank: number) => string,
  concerns: (rank: number) => boolean,
): readonly [number, number] | undefined {
  const byGpu = new Map<string, number[]>();
  for (const rank of ranks) {
    const gpu = gpuOf(rank);
    byGpu.set(gpu, [...(byGpu.get(gpu) ?? []), rank]);
  }
  for (const together of byGpu.values()) {
    const [one, other] = together.length < 2 ? [] : together.filter(concerns);
    if (one !== undefined && other !== undefined) return [one, other];
  }
  return undefined;
}

/** gpu: as of `readIdentity`, whose second half is the UUID. */
function sharedError(ranks: readonly [number, number], gpu: string): TensorBusError {
  const uuid = gpu.slice(32).replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "GPU-$1-$2-$3-$4-$5");
  return new TensorBusError(
    "TB_DEVICE_SHARED",
    `ranks ${ranks[0]} and ${ranks[1]} are on one GPU, ${uuid}, but need NCCL, which wants one GPU for each rank`,
    { details: { ranks, device: uuid } },
  );
}
