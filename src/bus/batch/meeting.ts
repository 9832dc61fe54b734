/**
 * How the ranks of a batch agree on what they registered. Each rank writes its tensors; the first rank of each side puts
 * them together and writes one record of the side, which all ranks of both sides read.
 */
import { Deadline } from "../../deadline.ts";
import { type ErrorCode, errorCodes, TensorBusError } from "../../errors.ts";
import type { Layout } from "../../layout/index.ts";
import { led, type MetPair } from "../pair/meeting.ts";
import { agentKey, agentSchema, layoutOf } from "../pair/records.ts";
import type { Rendezvous } from "../pair/rendezvous.ts";
import { solveSide } from "./global-shape.ts";
import { differingOption, showOption } from "./planning.ts";
import {
  type BatchKeys,
  type BatchSideRecord,
  batchSideSchema,
  decodeTable,
  encodeTable,
  type RankRecord,
  rankSchema,
  tensorNamesSchema,
} from "./records.ts";

/** What one rank brings. */
export interface RankRegistration {
  readonly batch: string;
  readonly keys: BatchKeys;
  readonly record: RankRecord;
  /** In the order of the record's pairs. */
  readonly pairs: readonly MetPair[];
  /** Pair and name of each tensor. */
  readonly names: readonly { readonly pair: number; readonly name: string }[];
}

export interface MetBatch {
  /** Which registration of this id it is, from 1. */
  readonly number: number;
  readonly local: BatchSideRecord;
  readonly remote: BatchSideRecord;
}

const cleaning = { timeoutMs: 1000 };

/**
 * Settles once both sides have registered. `TB_BATCH_MISMATCH`, `TB_SHAPE` and `TB_BUCKET_SIZE` name what differs within
 * the side; differences between the sides are for who reads both. A meeting that failed leaves nothing behind.
 */
export async function meetBatch(
  rendezvous: Rendezvous,
  registration: RankRegistration,
  deadline: Deadline,
): Promise<MetBatch> {
  const { keys, record } = registration;
  const { local, remote } = record.pairs[0]!;
  const number = (await latestNumber(rendezvous, keys, deadline)) + 1;
  const own = keys.rank(number, local, record.rank);
  const stop = new AbortController();
  const signal =
    deadline.signal === undefined ? stop.signal : AbortSignal.any([stop.signal, deadline.signal]);
  const bounded = new Deadline({ timeoutMs: deadline.remainingMs, signal });
  try {
    await rendezvous.publish(own, record, bounded.rest);
    const leads = registration.pairs[0]!.local.ranks[0] === record.rank;
    const leading = leads ? lead(rendezvous, registration, number, bounded) : undefined;
    const sides = Promise.all([
      awaitLocal(rendezvous, registration, number, bounded),
      awaitRemote(rendezvous, registration, remote, number, bounded),
    ]);
    const [mine, theirs] = await (leading === undefined ? sides : led(leading, sides));
    await raiseLatest(rendezvous, keys, number, bounded);
    return { number, local: mine, remote: theirs };
  } catch (error) {
    await rendezvous.remove(own, cleaning).catch(() => {});
    // What was found wrong stands in the records of this number: who tries again takes the next one.
    const found = error instanceof TensorBusError && !unfinished.has(error.code);
    if (found) await raiseLatest(rendezvous, keys, number, new Deadline(cleaning)).catch(() => {});
    throw error;
  } finally {
    stop.abort();
  }
}

/** What ends a meeting of which nobody has found anything wrong. */
const unfinished = new Set<ErrorCode>([
  "TB_TIMEOUT",
  "TB_CANCELLED",
  "TB_STORE_LOST",
  "TB_CLOSED",
  "TB_AUTH",
]);

async function latestNumber(rendezvous: Rendezvous, keys: BatchKeys, deadline: Deadline): Promise<number> {
  const bytes = await rendezvous.store.get(keys.latest, deadline.rest);
  const number = bytes === undefined ? 0 : Number(Buffer.from(bytes).toString("latin1"));
  if (Number.isSafeInteger(number) && number >= 0) return number;
  throw new TensorBusError("TB_VERSION", `the record ${keys.latest} is no number`, {
    details: { key: keys.latest },
  });
}

async function raiseLatest(
  rendezvous: Rendezvous,
  keys: BatchKeys,
  number: number,
  deadline: Deadline,
): Promise<void> {
  let expected = await rendezvous.store.get(keys.latest, deadline.rest);
  while (expected === undefined || Number(Buffer.from(expected).toString("latin1")) < number) {
    const desired = Buffer.from(String(number));
    const { swapped, stored } = await rendezvous.store.compareAndSet(
      keys.latest,
      expected,
      desired,
      deadline.rest,
    );
    if (swapped) return;
    expected = stored;
  }
}

async function lead(
  rendezvous: Rendezvous,
  registration: RankRegistration,
  number: number,
  deadline: Deadline,
): Promise<void> {
  const { keys, record, pairs, names } = registration;
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
  await rendezvous.publish(
    keys.names(number, local),
    names.map(({ pair, name }) => [pair, name]),
    deadline.rest,
  );
  let side: BatchSideRecord;
  let failure: TensorBusError | undefined;
  try {
    side = putTogether(registration, records);
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
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
    ["TB_BATCH_MISMATCH", "number of tensors", ({ names }) => names.count],
    ["TB_BATCH_MISMATCH", "names of tensors", ({ names }) => names.digest],
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

function putTogether(registration: RankRegistration, records: readonly RankRecord[]): BatchSideRecord {
  const { record, pairs, names, batch } = registration;
  const { local } = record.pairs[0]!;
  requireAlike(batch, local, records);
  const layouts = pairs.map(({ local: side }): Layout | undefined =>
    side.layout === undefined ? undefined : layoutOf(side.layout),
  );
  // Where one side has no layout, tensors of the other are whole as well: rank i's goes to rank i.
  const whole = pairs.map((pair, index) => (pair.remote.layout === undefined ? undefined : layouts[index]));
  const { tables, tableOf } = solveSide(
    records.map(({ table, names: { count } }) => decodeTable(table, count, pairs.length)),
    {
      side: local,
      pairs: record.pairs.map(({ pair }) => pair),
      layouts: whole,
      ranks: records.map(({ rank }) => rank),
      nameOf: (tensor) => names[tensor]!.name,
    },
  );
  const refusal = records.find((each) => each.refusal !== undefined)?.refusal;
  return {
    ...sideHead(registration, records),
    tables: tables.map(encodeTable),
    tableOf: [...tableOf],
    ...(refusal === undefined ? {} : { refusal }),
  };
}

function sideHead({ record }: RankRegistration, records: readonly RankRecord[]) {
  const { version, generation, pairs, bucketBytes, commit, planning, names } = record;
  const members = records.map(({ rank, nonce }) => ({ rank, nonce }));
  return { version, generation, pairs, bucketBytes, commit, planning, names, leader: record.rank, members };
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
  const code = failure.code in errorCodes ? (failure.code as ErrorCode) : "TB_BATCH_MISMATCH";
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
  { keys, record, batch }: RankRegistration,
  remote: string,
  number: number,
  deadline: Deadline,
): Promise<BatchSideRecord> {
  const { pair } = record.pairs[0]!;
  const key = keys.side(number, remote);
  const look = async (rest: object) => {
    const side = await rendezvous.read(key, batchSideSchema, rest);
    if (side === undefined) return undefined;
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
  return rendezvous.await([key], look, what, deadline.rest, details).catch(async (error: unknown) => {
    // It may have failed before this rank came, and not have tried again.
    if (!(error instanceof TensorBusError) || error.code !== "TB_TIMEOUT" || number === 1) throw error;
    const before = await rendezvous
      .read(keys.side(number - 1, remote), batchSideSchema, cleaning)
      .catch(() => undefined);
    throw (before === undefined ? undefined : failureOf(before)) ?? error;
  });
}

/** Names of a side's tensors, for saying what differs. */
export function readNames(
  rendezvous: Rendezvous,
  keys: BatchKeys,
  number: number,
  side: string,
  deadline: Deadline,
): Promise<[number, string][] | undefined> {
  return rendezvous.read(keys.names(number, side), tensorNamesSchema, deadline.rest);
}
