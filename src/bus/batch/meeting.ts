/**
 * How the ranks of a batch agree on what they registered. Each rank writes its tensors; the first rank of each side puts
 * them together and writes one record of the side, which all ranks of both sides read.
 */
import { createHash } from "node:crypto";
import { Deadline } from "../../deadline.ts";
import { type ErrorCode, isErrorCode, TensorBusError } from "../../errors.ts";
import { led, type MetPair } from "../pair/meeting.ts";
import { agentKey, agentSchema, sharedLayout } from "../pair/records.ts";
import type { Rendezvous } from "../pair/rendezvous.ts";
import { solveSide } from "./global-shape.ts";
import type { TensorName } from "./names.ts";
import { differingOption, showOption } from "./planning.ts";
import {
  type BatchKeys,
  type BatchSideRecord,
  batchSideSchema,
  decodeTable,
  encodeTable,
  namesDigest,
  type RankRecord,
  rankSchema,
  requireCount,
  requireNames,
  tensorNamesSchema,
} from "./records.ts";
import { type Holder, type SideUnion, uniteHolders } from "./union.ts";

/** What one rank brings. */
export interface RankRegistration {
  readonly batch: string;
  readonly keys: BatchKeys;
  readonly record: RankRecord;
  /** In the order of the record's pairs. */
  readonly pairs: readonly MetPair[];
  /** The tensors of this rank, sorted. */
  readonly names: readonly TensorName[];
}

export interface MetBatch {
  /** Which registration of this id it is, from 1. */
  readonly number: number;
  /** Names it among all registrations of all stores: the same on all ranks. */
  readonly registration: string;
  readonly local: BatchSideRecord;
  readonly remote: BatchSideRecord;
}

/** What is said and removed of a call that has ended may take no longer than the call itself. */
const cleaning = { timeoutMs: 120 };

/**
 * Settles once both sides have registered. `TB_BATCH_MISMATCH`, `TB_SHAPE` and `TB_BUCKET_SIZE` name what differs within
 * the side; differences between the sides are found by those who read both. A meeting that failed leaves nothing behind.
 */
export async function meetBatch(
  rendezvous: Rendezvous,
  registration: RankRegistration,
  number: number,
  deadline: Deadline,
): Promise<MetBatch> {
  const { keys, record } = registration;
  const { local, remote } = record.pairs[0]!;
  const own = keys.rank(number, local, record.rank);
  const ownNames = keys.rankNames(number, local, record.rank);
  const stop = new AbortController();
  const signal =
    deadline.signal === undefined ? stop.signal : AbortSignal.any([stop.signal, deadline.signal]);
  const bounded = new Deadline({ timeoutMs: deadline.remainingMs, signal });
  try {
    if (record.partial) await publishNames(rendezvous, ownNames, registration.names, bounded);
    await rendezvous.publish(own, record, bounded.rest);
    const leads = registration.pairs[0]!.local.ranks[0] === record.rank;
    const leading = leads ? lead(rendezvous, registration, number, bounded) : undefined;
    const sides = Promise.all([
      awaitLocal(rendezvous, registration, number, bounded),
      awaitRemote(rendezvous, registration, remote, number, bounded),
    ]);
    const [mine, theirs] = await (leading === undefined ? sides : led(leading, sides));
    return { number, registration: nameOf(mine, theirs), local: mine, remote: theirs };
  } catch (error) {
    const left = record.partial ? [own, ownNames] : [own];
    await Promise.all(left.map((key) => rendezvous.remove(key, cleaning).catch(() => {})));
    throw error;
  } finally {
    stop.abort();
  }
}

/** A digest of the random numbers of all its ranks. */
function nameOf(...sides: readonly BatchSideRecord[]): string {
  const nonces = sides.flatMap(({ members }) => members.map(({ nonce }) => nonce));
  nonces.sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  return createHash("sha256").update(nonces.join()).digest("hex").slice(0, 32);
}

/** What ends a meeting of which nobody has found anything wrong. */
const unfinished = new Set<ErrorCode>([
  "TB_TIMEOUT",
  "TB_CANCELLED",
  "TB_STORE_LOST",
  "TB_CLOSED",
  "TB_AUTH",
]);

export function isUnfinished({ code }: TensorBusError): boolean {
  return unfinished.has(code);
}

async function lead(
  rendezvous: Rendezvous,
  registration: RankRegistration,
  number: number,
  deadline: Deadline,
): Promise<void> {
  const { keys, record, pairs } = registration;
  const { local } = record.pairs[0]!;
  const { ranks } = pairs[0]!.local;
  const rankKeys = ranks.map((rank) => keys.rank(number, local, rank));
  const collect = async (rest: object) => {
    const records = await rendezvous.readAll(rankKeys, rankSchema, rest);
    if (records.includes(undefined)) return undefined;
    const stale = await areStale(rendezvous, records as RankRecord[], new Deadline(rest));
    return stale ? undefined : (records as RankRecord[]);
  };
  const what = `batch ${registration.batch}, side ${local}: waiting for ranks ${ranks.join(", ")}`;
  const details = { batch: registration.batch, side: local, rank: record.rank };
  const records = await rendezvous
    .await(rankKeys, collect, what, deadline.rest, details)
    .catch(async (error) => {
      throw await nameMissing(rendezvous, registration, rankKeys, error);
    });
  const listOf = await readLists(rendezvous, registration, number, records, deadline);
  let side: BatchSideRecord;
  let failure: TensorBusError | undefined;
  try {
    const union = uniteHolders(holdersOf(registration, records, listOf));
    side = putTogether(registration, records, union);
    await publishNames(rendezvous, keys.names(number, local), union.names, deadline);
  } catch (error) {
    if (!(error instanceof TensorBusError) || isUnfinished(error)) throw error;
    failure = error;
    side = failedSide(registration, records, error);
  }
  await rendezvous.publish(keys.side(number, local), side, deadline.rest);
  if (failure !== undefined) throw failure;
}

async function areStale(
  rendezvous: Rendezvous,
  records: readonly { rank: number; generation: bigint }[],
  deadline: Deadline,
): Promise<boolean> {
  const agents = await rendezvous.readAll(
    records.map(({ rank }) => agentKey(rank)),
    agentSchema,
    deadline.rest,
  );
  return agents.some((agent, index) => agent?.generation !== records[index]!.generation);
}

async function nameMissing(
  rendezvous: Rendezvous,
  { batch, record, pairs }: RankRegistration,
  keys: readonly string[],
  error: unknown,
): Promise<unknown> {
  if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT") return error;
  const found = await Promise.all(
    keys.map((key) => rendezvous.store.get(key, cleaning).catch(() => undefined)),
  );
  const missing = pairs[0]!.local.ranks.filter((_, index) => found[index] === undefined);
  if (missing.length === 0) return error;
  const { pair, local } = record.pairs[0]!;
  return new TensorBusError(
    "TB_TIMEOUT",
    `batch ${batch}, pair ${pair}, side ${local}: rank ${missing.join(", ")} did not register`,
    { details: { batch, pair, side: local, rank: missing[0], ranks: missing }, cause: error },
  );
}

/** Fields that all ranks of a side must say alike. */
function requireAlike(batch: string, side: string, records: readonly RankRecord[]): void {
  const fields: [ErrorCode, string, (record: RankRecord) => unknown][] = [
    ["TB_BATCH_MISMATCH", "pairs", ({ pairs }) => pairs.map(({ pair }) => pair).join(", ")],
    ["TB_BATCH_MISMATCH", "commit", ({ commit }) => commit],
    ["TB_BATCH_MISMATCH", "match", ({ match }) => match],
    ["TB_BUCKET_SIZE", "bucketSize", ({ bucketBytes }) => bucketBytes],
    ["TB_PAIR_MISMATCH", "layouts", ({ pairs }) => JSON.stringify(pairs)],
  ];
  for (const record of records) {
    const option = differingOption(record.planning, records[0]!.planning);
    if (option === undefined) continue;
    fields.push(["TB_BATCH_MISMATCH", option, ({ planning }) => showOption(planning, option)]);
    break;
  }
  for (const [code, field, value] of fields) {
    const expected = value(records[0]!);
    const odd = records.find((record) => value(record) !== expected);
    if (odd === undefined) continue;
    const { pair } = records[0]!.pairs[0]!;
    throw new TensorBusError(
      code,
      `batch ${batch}, pair ${pair}, side ${side}: ${field} of rank ${odd.rank}: ${value(odd)}; of rank ${records[0]!.rank}: ${expected}`,
      { details: { batch, pair, side, rank: odd.rank, field, value: value(odd), expected } },
    );
  }
}

/** Names of ranks whose tensors are not those of all, by their digests. */
type NameLists = ReadonlyMap<string, readonly TensorName[]>;

async function readLists(
  rendezvous: Rendezvous,
  { keys, record, names }: RankRegistration,
  number: number,
  records: readonly RankRecord[],
  deadline: Deadline,
): Promise<NameLists> {
  const { local } = record.pairs[0]!;
  const lists = new Map([[record.names.digest, names]]);
  for (const each of records) {
    const { digest } = each.names;
    if (!each.partial || lists.has(digest)) continue;
    lists.set(digest, await readNames(rendezvous, keys.rankNames(number, local, each.rank), each, deadline));
  }
  return lists;
}

/** The tensors of each rank. `TB_BATCH_MISMATCH` if one has other tensors than its layouts leave to it. */
function holdersOf(
  { batch, record }: RankRegistration,
  records: readonly RankRecord[],
  lists: NameLists,
): Holder[] {
  const { local } = record.pairs[0]!;
  requireAlike(batch, local, records);
  const first = records.find(({ partial }) => partial);
  // What all ranks of the side hold, as one of those says that hold more.
  const common = first && commonNames(first, lists.get(first.names.digest)!, records.length);
  const digest = common === undefined ? records[0]!.names.digest : namesDigest(common, record.pairs);
  return records.map((each) => {
    const { rank, partial, names } = each;
    if (!partial && names.digest !== digest) throw differentNames(batch, local, each, first ?? records[0]!);
    const list = lists.get(names.digest) ?? common!;
    requireCount(list, each);
    return { rank, names: list, table: decodeTable(each.table, each) };
  });
}

function commonNames(record: RankRecord, names: readonly TensorName[], ranks: number): TensorName[] {
  requireCount(names, record);
  const { kinds, kindOf } = decodeTable(record.table, record);
  return names.filter((_, tensor) => {
    const { layout } = kinds[kindOf[tensor]!]!;
    return layout === undefined || record.layouts[layout]!.mesh.ranks.length === ranks;
  });
}

function differentNames(batch: string, side: string, odd: RankRecord, other: RankRecord): TensorBusError {
  const { pair } = odd.pairs[0]!;
  const [value, expected] = [odd.names.count, other.names.count];
  const field = value === expected ? "names of tensors" : "number of tensors";
  return new TensorBusError(
    "TB_BATCH_MISMATCH",
    `batch ${batch}, pair ${pair}, side ${side}: ${field} of rank ${odd.rank} (${value}) differ from those of rank ${other.rank} (${expected}): tensors that only some ranks hold need a layout that names these`,
    { details: { batch, pair, side, rank: odd.rank, field, value, expected } },
  );
}

function putTogether(
  registration: RankRegistration,
  records: readonly RankRecord[],
  { names, tables: held }: SideUnion,
): BatchSideRecord {
  const { record, pairs } = registration;
  const { local } = record.pairs[0]!;
  const { tables, tableOf, layouts } = solveSide(held, {
    side: local,
    pairs: pairs.map(({ local: side, remote }, index) => ({
      pair: record.pairs[index]!.pair,
      layout: sharedLayout(side.layout),
      // If one side has no layout, tensors of the other are whole as well: rank i's goes to rank i.
      whole: side.layout === undefined || remote.layout === undefined,
    })),
    ranks: records.map(({ rank }) => rank),
    layouts: records.map((each) => each.layouts),
    nameOf: (tensor) => names[tensor]!.name,
  });
  const refusal = records.find((each) => each.refusal !== undefined)?.refusal;
  return {
    ...sideHead(registration, records),
    names: { count: names.length, digest: namesDigest(names, record.pairs) },
    layouts: [...layouts],
    tables: tables.map(encodeTable),
    tableOf: [...tableOf],
    ...(refusal === undefined ? {} : { refusal }),
  };
}

function sideHead({ record }: RankRegistration, records: readonly RankRecord[]) {
  const { version, generation, pairs, bucketBytes, commit, planning, names, match } = record;
  return {
    version,
    generation,
    pairs,
    bucketBytes,
    commit,
    planning,
    names,
    layouts: [],
    ...(match === undefined ? {} : { match }),
    leader: record.rank,
    members: records.map(({ rank, nonce }) => ({ rank, nonce })),
  };
}

function failedSide(
  registration: RankRegistration,
  records: readonly RankRecord[],
  { code, message, details }: TensorBusError,
): BatchSideRecord {
  const failure = { code, message, details: { ...details } };
  return { ...sideHead(registration, records), tables: [], tableOf: [], failure };
}

function failureOf({ failure }: BatchSideRecord): TensorBusError | undefined {
  if (failure === undefined) return undefined;
  const code = isErrorCode(failure.code) ? failure.code : "TB_BATCH_MISMATCH";
  return new TensorBusError(code, failure.message, { details: failure.details });
}

function awaitLocal(
  rendezvous: Rendezvous,
  { keys, record, batch }: RankRegistration,
  number: number,
  deadline: Deadline,
): Promise<BatchSideRecord> {
  const { pair, local } = record.pairs[0]!;
  const key = keys.side(number, local);
  const look = async (rest: object) => {
    const side = await rendezvous.read(key, batchSideSchema, rest);
    if (side === undefined || !side.members.some(({ nonce }) => nonce === record.nonce)) return undefined;
    const failure = failureOf(side);
    if (failure !== undefined) throw failure;
    return side;
  };
  const details = { batch, pair, side: local, rank: record.rank };
  const what = `batch ${batch}, pair ${pair}: waiting for the ranks of side ${local} to register`;
  return rendezvous.await([key], look, what, deadline.rest, details);
}

function awaitRemote(
  rendezvous: Rendezvous,
  { keys, record, batch, pairs }: RankRegistration,
  remote: string,
  number: number,
  deadline: Deadline,
): Promise<BatchSideRecord> {
  const { pair } = record.pairs[0]!;
  const [leader] = pairs[0]!.remote.ranks;
  const key = keys.side(number, remote);
  const look = async (rest: object) => {
    const side = await rendezvous.read(key, batchSideSchema, rest);
    // Another rank's is what a job has left that was launched in another way.
    if (side === undefined || side.leader !== leader) return undefined;
    if (
      await areStale(rendezvous, [{ rank: side.leader, generation: side.generation }], new Deadline(rest))
    ) {
      return undefined;
    }
    const failure = failureOf(side);
    if (failure !== undefined) throw failure;
    return side;
  };
  const details = { batch, pair, side: remote, rank: record.rank };
  const what = `batch ${batch}, pair ${pair}: waiting for side ${remote} to register`;
  return rendezvous.await([key], look, what, deadline.rest, details);
}

/** The names that stand under a key. `TB_CANCELLED` if they are gone: their registration has ended meanwhile. */
async function readNames(
  rendezvous: Rendezvous,
  key: string,
  record: Pick<RankRecord, "names" | "pairs">,
  deadline: Deadline,
): Promise<TensorName[]> {
  const found = await rendezvous.read(key, tensorNamesSchema, deadline.rest);
  if (found !== undefined) {
    const names = found.map(([pair, name]) => ({ pair, name }));
    requireNames(names, record);
    return names;
  }
  throw new TensorBusError(
    "TB_CANCELLED",
    `the names of tensors in ${key} are gone, since their rank has left`,
    {
      details: { key },
    },
  );
}

async function publishNames(
  rendezvous: Rendezvous,
  key: string,
  names: readonly TensorName[],
  deadline: Deadline,
): Promise<void> {
  const message = names.map(({ pair, name }) => [pair, name]);
  await rendezvous.publish(key, message, deadline.rest);
}

/** The tensors of both sides, sorted: read from the store only if they are not this rank's own. */
export async function readSides(
  rendezvous: Rendezvous,
  { keys, names, record }: RankRegistration,
  { number, local, remote }: MetBatch,
  deadline: Deadline,
): Promise<readonly [local: readonly TensorName[], remote: readonly TensorName[]]> {
  const [side, other] = [record.pairs[0]!.local, record.pairs[0]!.remote];
  const ours =
    local.names.digest === record.names.digest
      ? names
      : await readNames(rendezvous, keys.names(number, side), local, deadline);
  const theirs =
    remote.names.digest === local.names.digest
      ? ours
      : await readNames(rendezvous, keys.names(number, other), remote, deadline);
  requireCount(ours, local);
  requireCount(theirs, remote);
  return [ours, theirs];
}
