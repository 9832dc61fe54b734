import type { ChunkRow } from "../input/rows.ts";
import { type BucketTable, invalid } from "./buckets.ts";
import type { TensorView } from "./chunks.ts";
import { Places } from "./places.ts";
import { findUneven } from "./tiling.ts";
import { BoxList, chunksAt } from "./writes.ts";

/** One piece of a Partial source at the owner that reduces it. */
interface Piece {
  readonly tensor: number;
  readonly owner: number;
  readonly position: number;
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
  /** Bucket of the contribution of each member of the owner's group, in the group's order. */
  readonly buckets: (number | undefined)[];
  /** The index in its bucket that every contribution has. */
  readonly index: number;
  read: boolean;
}

interface Read {
  readonly piece: string;
  readonly tensor: number;
  readonly bucket: number;
  readonly index: number;
  readonly srcRank: number;
  readonly dstRank: number;
}

/**
 * Reduced pieces: each place of a Partial source is reduced at exactly one owner, from every member of the owner's
 * group once, before anyone reads it. All contributors of an owner cut their buckets alike, so that whole buckets can
 * be folded one after the other.
 */
export class Reductions {
  readonly #tensors: readonly TensorView[];
  readonly #table: BucketTable;
  readonly #pieces = new Map<string, Piece>();
  readonly #groups = new Map<string, readonly number[]>();
  readonly #reads: Read[] = [];
  /** A bucket of reads, and the first contributor's bucket, which leads to those of all others: proved already. */
  readonly #waited = new Places(0);

  constructor(tensors: readonly TensorView[], table: BucketTable) {
    this.#tensors = tensors;
    this.#table = table;
  }

  contribute(chunk: ChunkRow): void {
    const view = this.#tensors[chunk.tensor]!;
    const position = view.source.positionOf(chunk.dstRank)!;
    const group = this.#groupOf(view, chunk.dstRank, position);
    // By its place in the group: a look through the group for each contribution would take its square for a piece.
    const contributor = view.source.positionOf(chunk.srcRank);
    const member = contributor === undefined ? -1 : view.source.memberOf(contributor);
    if (group[member] !== chunk.srcRank)
      throw view.broken(chunk, this.#table, "a contribution comes from outside of the owner's group", {
        group,
      });
    if (chunk.srcOffsets.some((offset, dim) => offset !== chunk.dstOffsets[dim])) {
      throw view.broken(chunk, this.#table, "a contribution goes to another place than it comes from");
    }
    const key = pieceKey(chunk.tensor, chunk.dstRank, chunk.dstOffsets, chunk.lengths);
    let piece = this.#pieces.get(key);
    if (piece === undefined) {
      piece = {
        tensor: chunk.tensor,
        owner: chunk.dstRank,
        position,
        offsets: chunk.dstOffsets.slice(),
        lengths: chunk.lengths.slice(),
        buckets: group.map(() => undefined),
        index: chunk.index,
        read: false,
      };
      this.#pieces.set(key, piece);
    }
    if (piece.buckets[member] !== undefined)
      throw view.broken(chunk, this.#table, "a contribution enters a piece a second time");
    if (piece.index !== chunk.index) {
      throw view.broken(chunk, this.#table, "contributors to a piece cut their buckets differently");
    }
    piece.buckets[member] = chunk.bucket;
  }

  read({ bucket, index, srcRank, dstRank, tensor, srcOffsets, lengths }: ChunkRow): void {
    const piece = pieceKey(tensor, srcRank, srcOffsets, lengths);
    this.#reads.push({ piece, tensor, bucket, index, srcRank, dstRank });
  }

  finish(): void {
    for (const piece of this.#pieces.values()) this.#checkMembers(piece);
    this.#checkCuts();
    for (const read of this.#reads) this.#checkRead(read);
    for (const piece of this.#pieces.values()) {
      if (!piece.read) throw this.#broken(piece, "no chunk reads a reduced piece");
    }
  }

  /** The pieces of all owners that hold the same tile it exactly: no place is reduced at two owners, or nowhere. */
  finishWhole(): void {
    const tiles = new Map<string, { readonly first: Piece; readonly boxes: BoxList }>();
    for (const piece of this.#pieces.values()) {
      const { source } = this.#tensors[piece.tensor]!;
      const key = `${piece.tensor}:${source.holdingOf(piece.position)}`;
      let tile = tiles.get(key);
      if (tile === undefined) {
        tile = { first: piece, boxes: new BoxList(source.ndim) };
        tiles.set(key, tile);
      }
      tile.boxes.add(piece.buckets[0]!, piece.index, piece.offsets, piece.lengths);
    }
    for (const { first, boxes } of tiles.values()) {
      const shape = this.#tensors[first.tensor]!.source.localShape(first.position);
      const uneven = findUneven(shape, boxes);
      if (uneven === undefined) continue;
      const chunks = chunksAt(boxes, uneven.at, this.#table);
      throw this.#broken(first, `an element is reduced ${uneven.count} times`, {
        element: uneven.at,
        chunk: chunks[0],
        chunks,
      });
    }
  }

  /** Elements that are reduced, by tensor. */
  elements(): Map<number, bigint> {
    const elements = new Map<number, bigint>();
    for (const { tensor, lengths } of this.#pieces.values()) {
      const count = lengths.reduce((product, length) => product * BigInt(length), 1n);
      elements.set(tensor, (elements.get(tensor) ?? 0n) + count);
    }
    return elements;
  }

  #groupOf(view: TensorView, rank: number, position: number): readonly number[] {
    const key = `${view.index}:${rank}`;
    let group = this.#groups.get(key);
    if (group === undefined) {
      group = view.source.partialGroup(position);
      this.#groups.set(key, group);
    }
    return group;
  }

  #checkMembers(piece: Piece): void {
    const group = this.#groupOf(this.#tensors[piece.tensor]!, piece.owner, piece.position);
    const missing = piece.buckets.indexOf(undefined);
    if (missing >= 0)
      throw this.#broken(piece, "a contribution to a piece is missing", { srcRank: group[missing] });
  }

  /** If the first contributor has one bucket, each other contributor has one bucket too, of as many chunks. */
  #checkCuts(): void {
    const partners = new Map<string, number>();
    for (const piece of this.#pieces.values()) {
      const first = piece.buckets[0]!;
      piece.buckets.forEach((bucket, member) => {
        const key = `${first}:${member}`;
        const partner = partners.get(key) ?? bucket!;
        partners.set(key, partner);
        if (partner !== bucket || this.#table.chunkCount(first) !== this.#table.chunkCount(partner)) {
          throw this.#broken(piece, "contributors to a piece cut their buckets differently", {
            bucket: this.#table.idOf(bucket!),
          });
        }
      });
    }
  }

  #checkRead(read: Read): void {
    const view = this.#tensors[read.tensor]!;
    const piece = this.#pieces.get(read.piece);
    if (piece === undefined)
      throw view.broken(read, this.#table, "a chunk reads elements that its sender has not reduced");
    piece.read = true;
    const known = this.#waited.count;
    if (this.#waited.placeOf(read.bucket * this.#table.rows.count + piece.buckets[0]!) < known) return;
    for (const writer of piece.buckets) {
      if (!this.#table.waitsFor(read.bucket, writer!)) {
        throw view.broken(
          read,
          this.#table,
          "a chunk does not wait for a contribution to the elements that it reads",
          {
            bucket: this.#table.idOf(read.bucket),
            contribution: this.#table.idOf(writer!),
          },
        );
      }
    }
  }

  #broken(piece: Piece, message: string, details: Readonly<Record<string, unknown>> = {}) {
    const view = this.#tensors[piece.tensor]!;
    const bucket = piece.buckets.find((number) => number !== undefined)!;
    return invalid(`${message} (${view.name} at rank ${piece.owner})`, {
      tensor: piece.tensor,
      name: view.name,
      rank: piece.owner,
      chunk: this.#table.chunkId(bucket, piece.index),
      ...details,
    });
  }
}

function pieceKey(
  tensor: number,
  owner: number,
  offsets: readonly number[],
  lengths: readonly number[],
): string {
  return `${tensor}:${owner}:${offsets.join()}:${lengths.join()}`;
}
