/** Both sides of a batch put together: what they must agree on, and which of their tensors belong together. */
import { TensorBusError } from "../../errors.ts";
import type { Layout } from "../../layout/index.ts";
import { collapseNames } from "../../model/names.ts";
import type { PlanOptions } from "../../plan/index.ts";
import type { MetPair } from "../pair/meeting.ts";
import { layoutOf } from "../pair/records.ts";
import { alignNames, type TensorName } from "./names.ts";
import { differingOption, showOption } from "./planning.ts";
import type { BatchPair, BatchSideRecord } from "./records.ts";
import { decodeTable } from "./records.ts";
import type { TensorTable } from "./tensor-kinds.ts";

/** One side of a batch, as it is planned. */
export interface PlanSide {
  readonly name: string;
  /** All tensors of its ranks, sorted. */
  readonly tensors: readonly TensorName[];
  /** For each of them its index in the tensors of the other side, -1 if that has none of its name. */
  readonly otherOf: Int32Array;
  /** Those that kinds of the tables name; one object for each, however often it is asked for. */
  readonly layouts: readonly Layout[];
  /** Global shapes of the tensors of each member; by rank. */
  readonly tableOf: (rank: number) => TensorTable;
  readonly refusal?: { readonly code: string; readonly message: string; readonly rank: number } | undefined;
}

/** A pair of a batch with both sides. */
export interface PlanPair {
  readonly pair: string;
  /** Rank i's tensor goes whole to rank i. */
  readonly whole: boolean;
  readonly ranks: readonly [readonly number[], readonly number[]];
}

/**
 * Which tensors travel: `exact`, both sides have the same; `target`, all of the target's; `common`, those that both have.
 */
type Match = "exact" | "target" | "common";

export interface BatchSubject {
  readonly batch: string;
  readonly sides: readonly [PlanSide, PlanSide];
  readonly pairs: readonly PlanPair[];
  readonly match: Match;
  readonly bucketBytes: number;
  readonly planning: PlanOptions;
}

/**
 * Both sides as one subject, of which index 0 is the local side. `TB_PAIR_MISMATCH`, `TB_BATCH_MISMATCH`,
 * `TB_BUCKET_SIZE` and `TB_SHAPE` name pair, rank and both values.
 */
export function joinSides(
  batch: string,
  local: BatchSideRecord,
  remote: BatchSideRecord,
  mets: readonly MetPair[],
  [ours, theirs]: readonly [readonly TensorName[], readonly TensorName[]],
  planning: PlanOptions,
): BatchSubject {
  requireMirrored(batch, local, remote);
  const same = ours === theirs ? Int32Array.from(ours, (_, index) => index) : undefined;
  const [mine, other] = [local.pairs[0]!.local, local.pairs[0]!.remote];
  const subject: BatchSubject = {
    batch,
    sides: [
      planSide(local, mine, ours, same ?? alignNames(ours, theirs)),
      planSide(remote, other, theirs, same ?? alignNames(theirs, ours)),
    ],
    pairs: mets.map((met, index) => planPair(local.pairs[index]!, met)),
    match: local.match ?? remote.match ?? "exact",
    bucketBytes: local.bucketBytes,
    planning,
  };
  requireSameRanks(subject);
  if (subject.match === "exact") {
    const missing = missingNames(subject, remote.leader);
    if (missing !== undefined) throw missing;
  }
  requireSameShapes(subject);
  return subject;
}

/**
 * Why tensors of one side have none to go with on the other; `undefined` if all have. Numbers in the names of what is
 * missing are collapsed.
 */
export function missingNames(
  { batch, sides, pairs, match }: BatchSubject,
  rank: number,
  needing: readonly (0 | 1)[] = [0, 1],
): TensorBusError | undefined {
  const unmatched = sides.map(({ tensors, otherOf }) => tensors.filter((_, index) => otherOf[index]! < 0));
  const lacking = needing.filter((side) => unmatched[side]!.length > 0);
  if (lacking.length === 0) return undefined;
  const parts = lacking.map((side) => {
    const other = sides[side === 0 ? 1 : 0].name;
    return `${other} does not have ${collapseNames(unmatched[side]!.map(({ name }) => name))}`;
  });
  const first = unmatched[lacking[0]!]![0]!;
  const both = lacking.length === 2 ? ": are they fused or named otherwise on one side?" : "";
  const way = match === "exact" && lacking.length === 1 ? "; match `target` or `common` leaves them out" : "";
  return new TensorBusError("TB_BATCH_MISMATCH", `batch ${batch}: ${parts.join(", ")}${both}${way}`, {
    details: {
      batch,
      pair: pairs[first.pair]!.pair,
      rank,
      tensor: first.name,
      value: unmatched[0]![0]?.name,
      expected: unmatched[1]![0]?.name,
      lacking: Object.fromEntries(
        lacking.map((side) => [sides[side === 0 ? 1 : 0].name, unmatched[side]!.length]),
      ),
    },
  });
}

function planSide(
  record: BatchSideRecord,
  name: string,
  tensors: readonly TensorName[],
  otherOf: Int32Array,
): PlanSide {
  const tables = record.tables.map((table) => decodeTable(table, record));
  const byRank = new Map(
    record.members.map(({ rank }, member) => [rank, tables[record.tableOf[member] ?? 0]]),
  );
  const tableOf = (rank: number) => {
    const table = byRank.get(rank);
    if (table !== undefined) return table;
    throw new TensorBusError("TB_BATCH_MISMATCH", `rank ${rank} of side ${name} did not register`, {
      details: { side: name, rank },
    });
  };
  const layouts = record.layouts.map(layoutOf);
  return { name, tensors, otherOf, layouts, tableOf, refusal: record.refusal };
}

function planPair({ pair }: BatchPair, { local, remote }: MetPair): PlanPair {
  const whole = local.layout === undefined || remote.layout === undefined;
  if (whole && local.ranks.length !== remote.ranks.length) {
    throw new TensorBusError(
      "TB_PAIR_MISMATCH",
      `pair ${pair}: ${local.ranks.length} ranks to ${remote.ranks.length}; without a layout, rank i goes to rank i`,
      { details: { pair, value: local.ranks.length, expected: remote.ranks.length, rank: local.ranks[0] } },
    );
  }
  return { pair, whole, ranks: [local.ranks, remote.ranks] };
}

function requireMirrored(batch: string, local: BatchSideRecord, remote: BatchSideRecord): void {
  const { pair } = local.pairs[0]!;
  const mismatch = (
    code: "TB_PAIR_MISMATCH" | "TB_BATCH_MISMATCH" | "TB_BUCKET_SIZE",
    what: string,
    is: unknown,
    expected: unknown,
  ) =>
    new TensorBusError(
      code,
      `batch ${batch}, pair ${pair}: ${what} of side ${local.pairs[0]!.local} is ${is}, but side ${local.pairs[0]!.remote} (rank ${remote.leader}) has ${expected}`,
      { details: { batch, pair, field: what, value: is, expected, rank: remote.leader } },
    );
  const [ours, theirs] = [local, remote].map(({ pairs }) => pairs.map((each) => each.pair).join(", "));
  if (ours !== theirs) throw mismatch("TB_BATCH_MISMATCH", "the list of pairs", ours, theirs);
  local.pairs.forEach((mine, index) => {
    const their = remote.pairs[index]!;
    if (mine.local !== their.remote || mine.remote !== their.local) {
      throw mismatch(
        "TB_PAIR_MISMATCH",
        `the sides of pair ${mine.pair}`,
        `${mine.local}, ${mine.remote}`,
        `${their.remote}, ${their.local}`,
      );
    }
    if (mine.localLayout !== their.remoteLayout || mine.remoteLayout !== their.localLayout) {
      throw mismatch(
        "TB_PAIR_MISMATCH",
        `what is known of the layouts of pair ${mine.pair}`,
        mine.localLayout,
        their.remoteLayout,
      );
    }
  });
  if (local.match !== undefined && remote.match !== undefined && local.match !== remote.match)
    throw mismatch("TB_BATCH_MISMATCH", "match", local.match, remote.match);
  if (local.commit !== remote.commit)
    throw mismatch("TB_BATCH_MISMATCH", "commit", local.commit, remote.commit);
  const option = differingOption(local.planning, remote.planning);
  if (option !== undefined) {
    const [is, expected] = [local, remote].map((side) => showOption(side.planning, option));
    throw mismatch("TB_BATCH_MISMATCH", option, is, expected);
  }
  if (local.bucketBytes !== remote.bucketBytes) {
    throw mismatch("TB_BUCKET_SIZE", "bucketSize", local.bucketBytes, remote.bucketBytes);
  }
}

/** A plan is of all ranks of the batch: pairs that are transferred as one have their ranks in common. */
function requireSameRanks({ batch, pairs }: BatchSubject): void {
  for (const side of [0, 1] as const) {
    const sorted = (pair: PlanPair) => [...pair.ranks[side]].sort((a, b) => a - b).join(", ");
    const expected = sorted(pairs[0]!);
    const odd = pairs.find((pair) => sorted(pair) !== expected);
    if (odd === undefined) continue;
    throw new TensorBusError(
      "TB_BATCH_MISMATCH",
      `batch ${batch}: pair ${odd.pair} has ranks ${sorted(odd)}, pair ${pairs[0]!.pair} has ${expected}; the pairs of a batch share theirs`,
      { details: { batch, pair: odd.pair, value: sorted(odd), expected } },
    );
  }
}

/** Pairs of ranks whose tables describe the same tensors. */
function* comparedRanks(
  pairs: readonly PlanPair[],
): Generator<readonly [pair: number, local: number, remote: number]> {
  for (const [index, { whole, ranks }] of pairs.entries()) {
    const count = whole ? ranks[0].length : 1;
    for (let at = 0; at < count; at++) yield [index, ranks[0][at]!, ranks[1][at]!];
  }
}

function requireSameShapes({ batch, sides, pairs }: BatchSubject): void {
  const { tensors, otherOf } = sides[0];
  for (const [pair, local, remote] of comparedRanks(pairs)) {
    const [mine, theirs] = [sides[0].tableOf(local), sides[1].tableOf(remote)];
    const seen = new Set<number>();
    for (let tensor = 0; tensor < mine.kindOf.length; tensor++) {
      const other = otherOf[tensor]!;
      if (tensors[tensor]!.pair !== pair || other < 0) continue;
      const [a, b] = [mine.kindOf[tensor]!, theirs.kindOf[other]!];
      const key = a * theirs.kinds.length + b;
      if (seen.has(key)) continue;
      seen.add(key);
      const [is, expected] = [mine.kinds[a]!.shape, theirs.kinds[b]!.shape];
      if (String(is) === String(expected)) continue;
      const { name } = tensors[tensor]!;
      throw new TensorBusError(
        "TB_SHAPE",
        `batch ${batch}, pair ${pairs[pair]!.pair}, tensor ${name}: side ${sides[0].name} (rank ${local}) has [${is}], side ${sides[1].name} (rank ${remote}) has [${expected}]`,
        {
          details: {
            batch,
            pair: pairs[pair]!.pair,
            tensor: name,
            rank: remote,
            value: is,
            expected,
          },
        },
      );
    }
  }
}
