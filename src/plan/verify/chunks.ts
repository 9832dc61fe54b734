import { TensorBusError } from "../../errors.ts";
import { itemSize } from "../../layout/index.ts";
import type { Chunk, LogicalBuffer, PairInput, TensorInput } from "../input/types.ts";
import { invalid } from "./buckets.ts";
import { SideHoldings, sameIndices } from "./holdings.ts";

/** The box of a chunk in the local index spaces of its two ends. */
export interface ChunkBox {
  readonly src: readonly number[];
  readonly dst: readonly number[];
  readonly lengths: readonly number[];
}

/** A tensor of the input, as the rules of a chunk see it. */
export class TensorView {
  readonly index: number;
  readonly name: string;
  readonly source: SideHoldings;
  readonly target: SideHoldings;
  /** Bits of an element on the wire, by stage. */
  readonly #wireBits: readonly bigint[];
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
    this.#wireBits = [from, Math.min(from, to), to].map(BigInt);
  }

  /** The rules of a chunk alone: kind and buffers, bytes, and that both ends hold the same global indices. */
  check(chunk: Chunk): ChunkBox {
    this.#checkKind(chunk);
    const src = this.#numbers(chunk, chunk.srcOffsets, 0);
    const dst = this.#numbers(chunk, chunk.dstOffsets, 0);
    const lengths = this.#numbers(chunk, chunk.lengths, 1);
    const elements = chunk.lengths.reduce((product, length) => product * length, 1n);
    const bits = this.#wireBits[chunk.stage]!;
    if (chunk.bytes * 8n !== elements * bits) {
      throw this.broken(chunk, "the bytes of a chunk are not the bytes of its elements on the wire", {
        bytes: chunk.bytes,
        elements,
      });
    }
    this.#checkBytes(chunk, bits);
    this.#checkIndices(chunk, { src, dst, lengths });
    return { src, dst, lengths };
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
    chunk: Pick<Chunk, "id" | "srcRank" | "dstRank">,
    message: string,
    details: Readonly<Record<string, unknown>> = {},
  ): TensorBusError {
    return invalid(`${message} (chunk ${chunk.id} of ${this.name})`, {
      chunk: chunk.id,
      tensor: this.index,
      name: this.name,
      rank: chunk.dstRank,
      srcRank: chunk.srcRank,
      ...details,
    });
  }

  #checkKind(chunk: Chunk): void {
    const partial = this.source.partialDims.length > 0;
    const own = chunk.srcRank === chunk.dstRank;
    const found = `${chunk.kind} from ${chunk.from} to ${chunk.to}`;
    const allowed = [
      partial ? ["reduce from source to reduced"] : [],
      [`${own ? "copy" : "send"} from ${partial ? "reduced" : "source"} to target`],
      own ? [] : ["send from target to target"],
    ][chunk.stage]!;
    if (!allowed.includes(found)) {
      throw this.broken(chunk, `stage ${chunk.stage} has no ${found} here`, { found, allowed, partial });
    }
  }

  #numbers(chunk: Chunk, values: readonly bigint[], least: number): number[] {
    if (values.length !== this.source.ndim)
      throw this.broken(chunk, "a box has the wrong number of dimensions");
    return values.map((value) => {
      const number = Number(value);
      if (typeof value !== "bigint" || !Number.isSafeInteger(number) || number < least) {
        throw this.broken(chunk, least > 0 ? "a chunk is empty" : "an offset is out of range", { value });
      }
      return number;
    });
  }

  /** Elements that share bytes with others are not parted from them: local rows are whole bytes, and so are boxes. */
  #checkBytes(chunk: Chunk, bits: bigint): void {
    if (bits >= 8n) return;
    const places = [chunk.srcOffsets, chunk.dstOffsets, chunk.lengths].map((values) => values.at(-1) ?? 1n);
    if (places.every((place) => (place * bits) % 8n === 0n)) return;
    throw this.broken(chunk, "a box of a packed type begins or ends inside of a byte", { places });
  }

  #checkIndices(chunk: Chunk, box: ChunkBox): void {
    const from = this.sideOf(chunk.from);
    const to = this.sideOf(chunk.to);
    const srcPosition = from.positionOf(chunk.srcRank);
    const dstPosition = to.positionOf(chunk.dstRank);
    if (srcPosition === undefined)
      throw this.broken(chunk, `rank ${chunk.srcRank} has no ${chunk.from} of it`);
    if (dstPosition === undefined)
      throw this.broken(chunk, `rank ${chunk.dstRank} has no ${chunk.to} of this tensor`);
    for (let dim = 0; dim < from.ndim; dim++) {
      const left = from.runs(dim, srcPosition);
      const right = to.runs(dim, dstPosition);
      const [src, dst, length] = [box.src[dim]!, box.dst[dim]!, box.lengths[dim]!];
      if (src + length > left.before.at(-1)! || dst + length > right.before.at(-1)!) {
        throw this.broken(chunk, "a box lies outside of the elements that its rank holds", { dim });
      }
      if (!sameIndices(left, src, right, dst, length)) {
        throw this.broken(chunk, "the two ends of a chunk have different global indices", { dim });
      }
    }
  }
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
