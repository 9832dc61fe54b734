/** From what both sides registered to a plan for each direction, the same on every rank. */
import { TensorBusError } from "../../errors.ts";
import { DeviceMesh, type Layout, Replicate } from "../../layout/index.ts";
import {
  type PairInput,
  Plan,
  type PlanInput,
  type PlanOptions,
  type TensorInput,
} from "../../plan/index.ts";
import type { MetPair } from "../pair/meeting.ts";
import { layoutOf } from "../pair/records.ts";
import type { TensorKind, TensorTable } from "./global-shape.ts";
import { differingOption, showOption } from "./planning.ts";
import type { BatchPair, BatchSideRecord } from "./records.ts";
import { decodeTable } from "./records.ts";

/** One side of a batch, as it is planned. */
export interface PlanSide {
  readonly name: string;
  /** Global shapes of the tensors of each member; by rank. */
  readonly tableOf: (rank: number) => TensorTable;
  readonly refusal?: { readonly code: string; readonly message: string; readonly rank: number } | undefined;
}

/** A pair of a batch with both sides; `a` is the side whose name comes first, so that both sides build the same. */
export interface PlanPair {
  readonly pair: string;
  /** Index of this side in `sides`. */
  readonly layouts: readonly [Layout | undefined, Layout | undefined];
  readonly ranks: readonly [readonly number[], readonly number[]];
}

export interface BatchSubject {
  readonly batch: string;
  readonly sides: readonly [PlanSide, PlanSide];
  readonly pairs: readonly PlanPair[];
  /** Pair and name of each tensor. */
  readonly tensors: readonly { readonly pair: number; readonly name: string }[];
  readonly bucketBytes: number;
  readonly planning: PlanOptions;
}

/** What was planned for a direction, or why it cannot be. */
export type PlannedDirection =
  | {
      readonly plan: Plan;
      /** Planned tensor of each registered one, from a rank of either side. */
      readonly plannedOf: (tensor: number, rank: number, side: 0 | 1) => number;
    }
  | { readonly refused: TensorBusError };

/**
 * Both sides as one subject, of which index 0 is the local side. `TB_PAIR_MISMATCH`, `TB_BATCH_MISMATCH`,
 * `TB_BUCKET_SIZE` and `TB_SHAPE` name pair, rank and both values.
 */
export function joinSides(
  batch: string,
  local: BatchSideRecord,
  remote: BatchSideRecord,
  mets: readonly MetPair[],
  tensors: BatchSubject["tensors"],
  planning: PlanOptions,
): BatchSubject {
  requireMirrored(batch, local, remote);
  const subject: BatchSubject = {
    batch,
    sides: [planSide(local, local.pairs[0]!.local), planSide(remote, local.pairs[0]!.remote)],
    pairs: mets.map((met, index) => planPair(local.pairs[index]!, met)),
    tensors,
    bucketBytes: local.bucketBytes,
    planning,
  };
  requireSameRanks(subject);
  requireSameShapes(subject);
  return subject;
}

function planSide(record: BatchSideRecord, name: string): PlanSide {
  const tables = record.tables.map((table) => decodeTable(table, record.names.count, record.pairs.length));
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
  return { name, tableOf, refusal: record.refusal };
}

function planPair({ pair }: BatchPair, { local, remote }: MetPair): PlanPair {
  const both = local.layout !== undefined && remote.layout !== undefined;
  if (!both && local.ranks.length !== remote.ranks.length) {
    throw new TensorBusError(
      "TB_PAIR_MISMATCH",
      `pair ${pair}: ${local.ranks.length} ranks to ${remote.ranks.length}; without a layout, rank i goes to rank i`,
      { details: { pair, value: local.ranks.length, expected: remote.ranks.length, rank: local.ranks[0] } },
    );
  }
  return {
    pair,
    layouts: both ? [layoutOf(local.layout!), layoutOf(remote.layout!)] : [undefined, undefined],
    ranks: [local.ranks, remote.ranks],
  };
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
      `batch ${batch}, pair ${pair}: ${what} of side ${local.pairs[0]!.local} is ${is}, that of side ${local.pairs[0]!.remote} (rank ${remote.leader}) is ${expected}`,
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
  if (local.names.count !== remote.names.count) {
    throw mismatch("TB_BATCH_MISMATCH", "number of tensors", local.names.count, remote.names.count);
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
  for (const [index, { layouts, ranks }] of pairs.entries()) {
    const count = layouts[0] === undefined ? ranks[0].length : 1;
    for (let at = 0; at < count; at++) yield [index, ranks[0][at]!, ranks[1][at]!];
  }
}

function requireSameShapes({ batch, sides, pairs, tensors }: BatchSubject): void {
  for (const [pair, local, remote] of comparedRanks(pairs)) {
    const [mine, theirs] = [sides[0].tableOf(local), sides[1].tableOf(remote)];
    const seen = new Set<number>();
    for (let tensor = 0; tensor < mine.kindOf.length; tensor++) {
      if (tensors[tensor]!.pair !== pair) continue;
      const [a, b] = [mine.kindOf[tensor]!, theirs.kindOf[tensor]!];
      const key = a * theirs.kinds.length + b;
      if (seen.has(key)) continue;
      seen.add(key);
      const [one, other] = [mine.kinds[a]!.shape, theirs.kinds[b]!.shape];
      if (String(one) === String(other)) continue;
      const { name } = tensors[tensor]!;
      throw new TensorBusError(
        "TB_SHAPE",
        `batch ${batch}, pair ${pairs[pair]!.pair}, tensor ${name}: side ${sides[0].name} (rank ${local}) has [${one}], side ${sides[1].name} (rank ${remote}) has [${other}]`,
        {
          details: {
            batch,
            pair: pairs[pair]!.pair,
            tensor: name,
            rank: remote,
            value: one,
            expected: other,
          },
        },
      );
    }
  }
}

/** Plans the direction from one side (by its index in the subject) to the other. */
export function planDirection(subject: BatchSubject, source: 0 | 1): PlannedDirection {
  const target = source === 0 ? 1 : 0;
  const { refusal } = subject.sides[target];
  if (refusal !== undefined) {
    const message = `rank ${refusal.rank} cannot receive: ${refusal.message}`;
    return { refused: new TensorBusError("TB_ALIAS", message, { details: { rank: refusal.rank } }) };
  }
  const firstOf = new Uint32Array(subject.tensors.length);
  const input = planInput(subject, source, target, firstOf);
  try {
    const plan = Plan.of(input);
    return {
      plan,
      plannedOf: (tensor, rank, side) => {
        const { layouts, ranks } = subject.pairs[subject.tensors[tensor]!.pair]!;
        return firstOf[tensor]! + (layouts[0] === undefined ? ranks[side].indexOf(rank) : 0);
      },
    };
  } catch (error) {
    if (error instanceof TensorBusError) return { refused: error };
    throw error;
  }
}

function planInput(subject: BatchSubject, source: 0 | 1, target: 0 | 1, firstOf: Uint32Array): PlanInput {
  const { pairs, sides, tensors, bucketBytes, planning } = subject;
  const inputs: Record<string, PairInput> = {};
  for (const { pair, layouts, ranks } of pairs) {
    if (layouts[0] !== undefined) {
      inputs[pair] = { source: layouts[source]!, target: layouts[target]! };
      continue;
    }
    ranks[0].forEach((_, index) => {
      inputs[`${pair}#${index}`] = {
        source: whole(ranks[source][index]!),
        target: whole(ranks[target][index]!),
      };
    });
  }
  const planned: TensorInput[] = [];
  const make = (name: string, pair: string, from: TensorKind, to: TensorKind): TensorInput => ({
    name,
    pair,
    shape: from.shape,
    dtype: from.dtype,
    ...(from.dtype === to.dtype ? {} : { targetDtype: to.dtype }),
  });
  tensors.forEach(({ pair: index, name }, tensor) => {
    const { pair, layouts, ranks } = pairs[index]!;
    firstOf[tensor] = planned.length;
    const count = layouts[0] === undefined ? ranks[0].length : 1;
    for (let at = 0; at < count; at++) {
      const from = sides[source].tableOf(ranks[source][at]!);
      const to = sides[target].tableOf(ranks[target][at]!);
      const single = layouts[0] !== undefined;
      planned.push(
        make(
          single ? name : `${name}#${at}`,
          single ? pair : `${pair}#${at}`,
          from.kinds[from.kindOf[tensor]!]!,
          to.kinds[to.kindOf[tensor]!]!,
        ),
      );
    }
  });
  return { pairs: inputs, tensors: planned, bucketBytes, ...planning };
}

function whole(rank: number): Layout {
  return { mesh: new DeviceMesh([1], { ranks: [rank] }), placements: [Replicate()] };
}
