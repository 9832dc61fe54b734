import { TensorBusError } from "../../errors.ts";
import type { ChunkRow, PlanRows } from "../input/rows.ts";
import type { Bucket, Chunk, PlanInput } from "../input/types.ts";
import { Agreement } from "./agreement.ts";
import { BucketTable, invalid } from "./buckets.ts";
import { TensorView } from "./chunks.ts";
import { Fanout } from "./fanout.ts";
import { listedRows } from "./listed.ts";
import { Reductions } from "./reductions.ts";
import { Writes } from "./writes.ts";

/**
 * Proves that a list of chunks and buckets is a right plan of `input`, by code that shares nothing with the planner:
 *
 * - every element of every target rank is written exactly once, by an element with the same global index that its
 *   sender really holds;
 * - every contribution to a Partial source enters exactly once, at one owner of its group, and nothing else is reduced;
 * - every read of `reduced`, and of `target` for a later stage, waits for all writes of what it reads, and nothing
 *   waits in a circle (waves grow along what is waited for);
 * - chunks and buckets agree about ends, stages, waves, indexes and bytes, no chunk is empty, and `bucketBytes` and
 *   `peersInFlight` hold.
 *
 * The order of either list means nothing. Work and memory grow with chunks and runs, never with elements.
 *
 * @throws TensorBusError `TB_PLAN_INVALID` with the first broken rule; `details` name tensor, rank, chunk and bucket as
 *   far as the rule has them. `TB_STRIDED_SHARD` if the input itself has no one meaning.
 */
export function verifyChunks(input: PlanInput, chunks: Iterable<Chunk>, buckets: Iterable<Bucket>): void {
  const tensors = tensorViews(input);
  prove(tensors, input, listedRows(chunks, buckets)).finishWhole();
}

/**
 * Proves the same of rows, which have no ids that could be wrong.
 *
 * @throws TensorBusError as `verifyChunks`.
 */
export function verifyRows(input: PlanInput, rows: PlanRows): void {
  prove(tensorViews(input), input, rows).finishWhole();
}

/** All chunks and buckets that begin or end at one rank. */
export interface RankLists {
  readonly chunks: Iterable<Chunk>;
  readonly buckets: Iterable<Bucket>;
}

/**
 * Proves the same of a plan that is listed rank by rank, in memory for the lists of one rank at a time: for worlds whose
 * chunks are too many to list at once. `listsOf` is called once for every rank of either side; that the two ends of a
 * channel list it alike is checked by sums of hashes.
 *
 * @throws TensorBusError as `verifyChunks`.
 */
export function verifyRanks(input: PlanInput, listsOf: (rank: number) => RankLists): void {
  const tensors = tensorViews(input);
  const agreement = new Agreement();
  const reduced = new Map<number, bigint>();
  for (const rank of ranksOf(input)) {
    const { chunks, buckets } = listsOf(rank);
    const rows = listedRows(chunks, buckets, { rank, agreement });
    const reductions = prove(tensors, input, rows, rank);
    for (const [tensor, elements] of reductions.elements())
      reduced.set(tensor, (reduced.get(tensor) ?? 0n) + elements);
  }
  agreement.finish();
  for (const view of tensors) view.checkReduced(reduced.get(view.index) ?? 0n);
}

/** All rules that the rows of the world, or of one rank, can break by themselves. */
function prove(tensors: readonly TensorView[], limits: PlanInput, rows: PlanRows, only?: number): Reductions {
  const table = new BucketTable(rows.buckets, limits);
  const writes = new Writes(tensors, table);
  const reductions = new Reductions(tensors, table);
  const fanout = new Fanout(tensors, table, writes);
  rows.eachChunk((chunk) => {
    const view = viewOf(tensors, chunk, table);
    table.admit(chunk);
    view.check(chunk, table);
    if (only === undefined || chunk.dstRank === only) {
      if (chunk.stage === 0) reductions.contribute(chunk);
      else writes.write(chunk);
    }
    if (only === undefined || chunk.srcRank === only) {
      if (chunk.from === "reduced") reductions.read(chunk);
      if (chunk.from === "target") fanout.read(chunk);
    }
  });
  table.finish();
  writes.finish(only);
  reductions.finish();
  fanout.finish();
  return reductions;
}

function ranksOf(input: PlanInput): Set<number> {
  const sides = Object.values(input.pairs).flatMap(({ source, target }) => [source, target]);
  const ranks = new Set<number>();
  for (const { mesh } of sides) for (const rank of mesh.ranks) ranks.add(rank);
  return ranks;
}

/** One view a tensor; tensors of one shape and layout share what their sides hold. */
function tensorViews(input: PlanInput): TensorView[] {
  const sides = new Map();
  return input.tensors.map((tensor, index) => {
    const pair = Object.hasOwn(input.pairs, tensor.pair) ? input.pairs[tensor.pair] : undefined;
    if (pair === undefined) {
      throw new TensorBusError(
        "TB_PLAN_INPUT",
        `tensor ${tensor.name} names pair ${tensor.pair}, which the plan does not have`,
        {
          details: { tensor: index, name: tensor.name, pair: tensor.pair },
        },
      );
    }
    return new TensorView(index, tensor, pair, sides);
  });
}

function viewOf(tensors: readonly TensorView[], chunk: ChunkRow, table: BucketTable): TensorView {
  const view = tensors[chunk.tensor];
  if (view === undefined) {
    const { bucket, index, tensor, dstRank: rank } = chunk;
    throw invalid("a chunk belongs to a tensor that the input does not have", {
      chunk: table.chunkId(bucket, index),
      tensor,
      rank,
    });
  }
  return view;
}
