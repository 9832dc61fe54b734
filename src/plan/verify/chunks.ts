import { TensorBusError } from "../../errors.ts";
import { itemSize } from "../../layout/index.ts";
import type { ChunkRow } from "../input/rows.ts";
import type { LogicalBuffer, PairInput, TensorInput } from "../input/types.ts";
import { type BucketTable, invalid } from "./buckets.ts";
import { runCount, SideHoldings, sameIndices } from "./holdings.ts";

/** What names a chunk and its ends. */
type ChunkPlace = Pick<ChunkRow, "bucket" | "index" | "srcRank" | "dstRank">;

/** A tensor of the input, as the rules of a chunk see it. */
export class TensorView {
  readonly index: number;
  readonly name: string;
  readonly source: SideHoldings;
  readonly target: SideHoldings;
  /** Bits of an element on the wire, by stage. */
  readonly #wireBits: readonly number[];
  readonly #shape: readonly number[];

  constructor(index: number, tensor: TensorInput, pair: PairInput, sides: Map<string, SideHoldings>) {
    this.index = index;
    this.name = tensor.name;
    this.#shape = tensor.shape;
    if (pair.target.placements.some((placement) => placement.kind === "partial")) {
      throw new TensorBusError("TB_PARTIAL_TARGET", `the target of ${tensor.name} is Partial`, {
        details: { tensor: index, name: tensor.name, pair: tensor.pair },
      });
    }
    this.source = holdingsOf("source", tensor, pair, sides);
    this.target = holdingsOf("target", tensor, pair, sides);
    const from = itemSize(tensor.dtype) * 8;
    const to = itemSize(tensor.targetDtype ?? tensor.dtype) * 8;
    this.#wireBits = [from, Math.min(from, to), to];
  }

  /** The rules of a chunk alone: kind and buffers, bytes, and that both ends hold the same global indices. */
  check(chunk: ChunkRow, table: BucketTable): void {
    this.#checkKind(chunk, table);
    this.#checkNumbers(chunk, chunk.srcOffsets, 0, table);
    this.#checkNumbers(chunk, chunk.dstOffsets, 0, table);
    this.#checkNumbers(chunk, chunk.lengths, 1, table);
    const elementBits = this.#wireBits[chunk.stage]!;
    if (!hasBytes(chunk, elementBits)) {
      const { bytes, lengths } = chunk;
      const details = { bytes, lengths: lengths.slice(), elementBits };
      throw this.broken(
        chunk,
        table,
        "the bytes of a chunk are not the bytes of its elements on the wire",
        details,
      );
    }
    this.#checkBytes(chunk, elementBits, table);
    this.#checkIndices(chunk, table);
  }

  /** The side whose holdings a logical buffer has the shape of. */
  sideOf(buffer: LogicalBuffer): SideHoldings {
    return buffer === "target" ? this.target : this.source;
  }

  /** Each element of a Partial source is reduced once: all that is read is reduced, so the count says the rest. */
  checkReduced(elements: bigint): void {
    const all = this.#shape.reduce((product, extent) => product * BigInt(extent), 1n);
    const expected = this.source.partialDims.length > 0 ? all : 0n;
    if (elements !== expected) {
      throw invalid(`${elements} elements of ${this.name} are reduced, not ${expected}`, {
        tensor: this.index,
        name: this.name,
        elements,
        expected,
      });
    }
  }

  broken(
    { bucket, index, srcRank, dstRank }: ChunkPlace,
    table: BucketTable,
    message: string,
    details: Readonly<Record<string, unknown>> = {},
  ): TensorBusError {
    const id = table.chunkId(bucket, index);
    return invalid(`${message} (chunk ${id} of ${this.name})`, {
      chunk: id,
      tensor: this.index,
      name: this.name,
      rank: dstRank,
      srcRank,
      ...details,
    });
  }

  #checkKind(chunk: ChunkRow, table: BucketTable): void {
    const { stage, kind, from, to } = chunk;
    const partial = this.source.partialDims.length > 0;
    const own = chunk.srcRank === chunk.dstRank;
    if (stage === 0 && partial && kind === "reduce" && from === "source" && to === "reduced") return;
    const isMove = to === "target" && kind === (own ? "copy" : "send");
    if (stage === 1 && isMove && from === (partial ? "reduced" : "source")) return;
    if (stage === 2 && isMove && from === "target" && !own) return;
    const found = `${kind} from ${from} to ${to}`;
    throw this.broken(chunk, table, `stage ${stage} has no ${found} here`, { found, partial });
  }

  #checkNumbers(chunk: ChunkRow, values: readonly number[], least: number, table: BucketTable): void {
    if (values.length !== this.source.ndim)
      throw this.broken(chunk, table, "a box has the wrong number of dimensions");
    for (const value of values) {
      if (Number.isSafeInteger(value) && value >= least) continue;
      const message = least > 0 ? "a chunk is empty" : "an offset is out of range";
      throw this.broken(chunk, table, message, { value });
    }
  }

  /** Elements that share bytes with others are not parted from them: local rows are whole bytes, and so are boxes. */
  #checkBytes(chunk: ChunkRow, bits: number, table: BucketTable): void {
    if (bits >= 8) return;
    const places = [chunk.srcOffsets, chunk.dstOffsets, chunk.lengths].map((values) => values.at(-1) ?? 1);
    if (places.every((place) => ((place % 8) * bits) % 8 === 0)) return;
    throw this.broken(chunk, table, "a box of a packed type begins or ends inside of a byte", { places });
  }

  #checkIndices(chunk: ChunkRow, table: BucketTable): void {
    const { srcRank, dstRank, from, to } = chunk;
    const left = this.sideOf(from).heldBy(srcRank);
    const right = this.sideOf(to).heldBy(dstRank);
    if (left === undefined) throw this.broken(chunk, table, `rank ${srcRank} has no ${from} of this tensor`);
    if (right === undefined) throw this.broken(chunk, table, `rank ${dstRank} has no ${to} of this tensor`);
    for (let dim = 0; dim < left.length; dim++) {
      const src = chunk.srcOffsets[dim]!;
      const dst = chunk.dstOffsets[dim]!;
      const length = chunk.lengths[dim]!;
      if (src + length > runCount(left[dim]!) || dst + length > runCount(right[dim]!))
        throw this.broken(chunk, table, "a box lies outside of the elements that its rank holds", { dim });
      if (!sameIndices(left[dim]!, src, right[dim]!, dst, length))
        throw this.broken(chunk, table, "the two ends of a chunk have different global indices", { dim });
    }
  }
}

/** True if the bytes of a chunk are those of its elements; products that are not exact are made of bigints. */
function hasBytes({ bytes, lengths }: ChunkRow, elementBits: number): boolean {
  let bits = elementBits;
  for (const length of lengths) bits *= length;
  if (bits <= Number.MAX_SAFE_INTEGER) return bytes * 8 === bits;
  if (!Number.isSafeInteger(bytes)) return false;
  return (
    BigInt(bytes) * 8n === lengths.reduce((product, length) => product * BigInt(length), BigInt(elementBits))
  );
}

function holdingsOf(
  which: "source" | "target",
  tensor: TensorInput,
  pair: PairInput,
  sides: Map<string, SideHoldings>,
): SideHoldings {
  const side = tensor[which];
  const key = JSON.stringify([tensor.pair, which, side?.select, side?.stridedShard, tensor.shape]);
  let holdings = sides.get(key);
  if (holdings === undefined) {
    holdings = new SideHoldings(pair[which], side, tensor.shape);
    sides.set(key, holdings);
  }
  return holdings;
}
