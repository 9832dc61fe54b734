/**
 * Cut: a box becomes a grid of pieces, near-equal slabs of its outermost dimension longer than 1. If one
 * row of it is still too large, every row is a slab and the next dimension is cut; so the grid is uniform,
 * and any piece of it has a closed form.
 */
import { ceilDiv, i64At, setI64 } from "./words";

/** A box that several ranks could send is not cut into pieces smaller than this for their sake. */
const SHARE_BYTES: i64 = 256 << 10;

/** Pieces of the current box. */
export let pieces: i64 = 1;
/** Slabs along each dimension of the current box. */
const boxSlabs: usize = memory.data(64, 8);
/** Offsets and lengths of the piece that `placePiece` was asked for. */
export const pieceOffsets: usize = memory.data(64, 8);
export const pieceLengths: usize = memory.data(64, 8);

let boxDims: u32 = 0;
let boxLengths: usize = 0;

/**
 * Sets up the grid for the box of `lengths`: no piece exceeds `limit` bytes at `item` bytes an element, and
 * there are up to `senders` of them, so that all who hold the box can send a part.
 */
export function cutBox(dims: u32, lengths: usize, item: i64, limit: i64, senders: i64): void {
  boxDims = dims;
  boxLengths = lengths;
  pieces = cutGrid(dims, lengths, item, limit, senders, SHARE_BYTES, boxSlabs);
}

/**
 * Cuts `lengths` into slabs along each dimension, which go to `slabs`; answers how many pieces that makes. As
 * `cutBox`, with pieces of at least `share` bytes if they are made so that each of `wanted` ranks has one.
 */
export function cutGrid(
  dims: u32,
  lengths: usize,
  item: i64,
  limit: i64,
  wanted: i64,
  share: i64,
  slabs: usize,
): i64 {
  let count: i64 = 1;
  let row = item;
  for (let dim: u32 = 0; dim < dims; dim++) {
    row *= i64At(lengths, dim);
    setI64(slabs, dim, 1);
  }
  // The common case: small enough, and nobody to share it with.
  if (row <= limit && (wanted <= 1 || row < share * 2)) return 1;
  for (let dim: u32 = 0; dim < dims; dim++) {
    const length = i64At(lengths, dim);
    if (length <= 1) continue;
    row /= length;
    const rowsMost = limit / row;
    if (rowsMost == 0) {
      setI64(slabs, dim, length);
      count *= length;
      wanted = max<i64>(wanted / length, 1);
      continue;
    }
    const shared = max<i64>(min(wanted, length / ceilDiv(share, row)), 1);
    const parts = min(length, ceilDiv(ceilDiv(length, rowsMost), shared) * shared);
    setI64(slabs, dim, parts);
    count *= parts;
    // Rows that are large themselves are cut further while there are ranks without a part.
    if (parts < length || wanted / length < 2 || row < share * 2) break;
    wanted /= length;
  }
  return count;
}

/** Says where slab `slab` of `count` begins along `length`: larger slabs come first, they differ by at most one. */
// @ts-ignore: decorator
@inline
export function slabStart(length: i64, count: i64, slab: i64): i64 {
  return slab * (length / count) + min(slab, length % count);
}

/** The slab that an index lies in. */
export function slabAt(length: i64, count: i64, index: i64): i64 {
  const size = length / count;
  const larger = length % count;
  const inLarger = larger * (size + 1);
  return index < inLarger ? index / (size + 1) : larger + (index - inLarger) / size;
}

/** Puts offset (within the box) and lengths of piece `index` into `pieceOffsets` and `pieceLengths`. */
export function placePiece(index: i64): void {
  if (pieces == 1) {
    for (let dim: u32 = 0; dim < boxDims; dim++) {
      setI64(pieceOffsets, dim, 0);
      setI64(pieceLengths, dim, i64At(boxLengths, dim));
    }
    return;
  }
  let rest = index;
  for (let dim = boxDims; dim > 0; dim--) {
    const count = i64At(boxSlabs, dim - 1);
    const length = i64At(boxLengths, dim - 1);
    const slab = rest % count;
    rest /= count;
    const start = slabStart(length, count, slab);
    setI64(pieceOffsets, dim - 1, start);
    setI64(pieceLengths, dim - 1, slabStart(length, count, slab + 1) - start);
  }
}
