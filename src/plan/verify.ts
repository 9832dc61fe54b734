import { TensorBusError } from "../errors.ts";
import type { Bucket, Chunk, PlanInput } from "./types.ts";
import { BucketTable } from "./verify-buckets.ts";
import { TensorView } from "./verify-chunks.ts";
import { Fanout } from "./verify-fanout.ts";
import { Reductions } from "./verify-reductions.ts";
import { Writes } from "./verify-writes.ts";

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
 *   far as the rule has them. `TB_STRIDED_SHARD` where the input itself has no one meaning.
 */
export function verifyChunks(input: PlanInput, chunks: Iterable<Chunk>, buckets: Iterable<Bucket>): void {
  const tensors = tensorViews(input);
  const table = new BucketTable(buckets, input);
  const writes = new Writes(tensors, table);
  const reductions = new Reductions(tensors, table);
  const fanout = new Fanout(tensors, table, writes);
  for (const chunk of chunks) {
    const view = viewOf(tensors, chunk);
    const bucket = table.admit(chunk);
    const box = view.check(chunk);
    if (chunk.stage === 0) reductions.contribute(chunk, bucket, box);
    else writes.write(chunk, bucket, box);
    if (chunk.from === "reduced") reductions.read(chunk, bucket, box);
    if (chunk.from === "target") fanout.read(chunk, bucket, box);
  }
  table.finish();
  writes.finish();
  reductions.finish();
  fanout.finish();
}

/** One view a tensor; tensors of one shape and layout share what their sides hold. */
function tensorViews(input: PlanInput): TensorView[] {
  const sides = new Map();
  return input.tensors.map((tensor, index) => {
    const pair = Object.hasOwn(input.pairs, tensor.pair) ? input.pairs[tensor.pair] : undefined;
    if (pair === undefined) {
      throw new TensorBusError("TB_PLAN_INPUT", `tensor ${tensor.name} is of an unknown pair`, {
        details: { tensor: index, name: tensor.name, pair: tensor.pair },
      });
    }
    return new TensorView(index, tensor, pair, sides);
  });
}

function viewOf(tensors: readonly TensorView[], chunk: Chunk): TensorView {
  const view = tensors[chunk.tensor];
  if (view === undefined) {
    throw new TensorBusError("TB_PLAN_INVALID", "a chunk is of a tensor that the input does not have", {
      details: { chunk: chunk.id, tensor: chunk.tensor, rank: chunk.dstRank },
    });
  }
  return view;
}
