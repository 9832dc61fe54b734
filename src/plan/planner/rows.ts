import { type ChunkRow, emptyChunkRow, type PlanRows } from "../input/rows.ts";
import { type Gathered, headBytes, kinds, readAnswers } from "./listing.ts";
import { Question, type Subject } from "./question.ts";

/**
 * Hands over all chunks of one tensor and the buckets that they make: those of the plan's channels and waves, cut as if
 * it had no other tensor; chunks call it `named`. They are gone once `use` returns.
 */
export function withTensorRows(
  subject: Subject,
  tensor: number,
  use: (rows: PlanRows) => void,
  named = tensor,
): void {
  const question = new Question(subject).withChannels();
  try {
    question.ask((planner) => planner.gatherTensor(tensor, BigInt(2 ** 32 - 2)));
    use(rowsOf(readAnswers(question, subject, true), named));
  } finally {
    question.end();
  }
}

function rowsOf(gathered: Gathered, tensor: number): PlanRows {
  const { bucketCount: count, recordWords, order, wordsPerRecord, bucketFirst } = gathered;
  const stage = new Uint8Array(count);
  const wave = new Float64Array(count);
  const srcRank = new Uint32Array(count);
  const dstRank = new Uint32Array(count);
  const bytes = new Float64Array(count);
  for (let bucket = 0; bucket < count; bucket++) {
    const at = order[bucketFirst[bucket]!]! * wordsPerRecord;
    stage[bucket] = recordWords[at + 3]! & 0xff;
    wave[bucket] = gathered.wave[gathered.bucketChannel[bucket]!]!;
    srcRank[bucket] = recordWords[at]!;
    dstRank[bucket] = recordWords[at + 1]!;
    bytes[bucket] = Number(gathered.bucketSize[bucket]!);
  }
  const { bucketSequence: sequence, dependencyFirst: waitFirst, dependencies: waits } = gathered;
  return {
    buckets: { count, stage, wave, srcRank, dstRank, sequence, bytes, waitFirst, waits },
    eachChunk: (use) => eachChunk(gathered, tensor, use),
  };
}

function eachChunk(gathered: Gathered, tensor: number, use: (row: ChunkRow) => void): void {
  const { recordWords: words, recordLongs, order, wordsPerRecord, wave, bucketChannel, dims } = gathered;
  const row = emptyChunkRow();
  row.tensor = tensor;
  for (let place = 0; place < gathered.count; place++) {
    const at = order[place]! * wordsPerRecord;
    const flags = words[at + 3]!;
    const ndim = (flags >>> 16) & 0xff;
    const stage = flags & 0xff;
    row.stage = stage;
    row.srcRank = words[at]!;
    row.dstRank = words[at + 1]!;
    row.bucket = words[at + 6]!;
    row.index = words[at + 7]!;
    row.wave = wave[bucketChannel[row.bucket]!]!;
    row.kind = kinds[(flags >>> 8) & 0xff]!;
    row.from = stage === 2 ? "target" : flags >>> 24 === 0 ? "source" : "reduced";
    row.to = stage === 0 ? "reduced" : "target";
    row.bytes = (words[at + 9] === 0 ? words[at + 8]! : Number(recordLongs[at / 2 + 4]!)) * words[at + 10]!;
    const offsets = at + headBytes / 4;
    readVector(gathered, row.srcOffsets, offsets, 0, ndim);
    readVector(gathered, row.dstOffsets, offsets, dims, ndim);
    readVector(gathered, row.lengths, offsets, 2 * dims, ndim);
    const unit = gathered.units?.get(words[at + 2]!);
    if (unit !== undefined) scaleLast(row, ndim, Number(unit));
    use(row);
  }
}

function readVector(gathered: Gathered, values: number[], offsets: number, first: number, ndim: number) {
  if (values.length !== ndim) values.length = ndim;
  for (let dim = 0; dim < ndim; dim++) {
    values[dim] = gathered.wide
      ? Number(gathered.recordLongs[offsets / 2 + first + dim]!)
      : gathered.recordWords[offsets + first + dim]!;
  }
}

/** The last dimension of a packed type is counted in units there, in elements here. */
function scaleLast({ srcOffsets, dstOffsets, lengths }: ChunkRow, ndim: number, unit: number): void {
  for (const values of [srcOffsets, dstOffsets, lengths]) values[ndim - 1]! *= unit;
}
