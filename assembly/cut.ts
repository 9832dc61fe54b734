/**
 * Cut: a box becomes a grid of pieces, near-equal slabs of its outermost dimension longer than 1. Where one
 * row of it is still too large, every row is a slab and the next dimension is cut; so the grid is uniform,
 * and any piece of it has a closed form.
 */
import { ceilDiv, i64At, setI64 } from "./words";

/** A box that several ranks could send is not cut into pieces smaller than this for their sake. */
const SHARE_BYTES: i64 = 256 << 10;

/** Pieces of the current box. */
export let pieces: i64 = 1;
/** Slabs along each dimension. */
const slabs: usize = memory.data(64, 8);
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
  pieces = 1;
  let row = item;
  for (let dim: u32 = 0; dim < dims; dim++) {
    row *= i64At(lengths, dim);
    setI64(slabs, dim, 1);
  }
  // The common case: small enough, and nobody to share it with.
  if (row <= limit && (senders <= 1 || row < SHARE_BYTES * 2)) return;
  let wanted = senders;
  for (let dim: u32 = 0; dim < dims; dim++) {
    const length = i64At(lengths, dim);
    if (length <= 1) continue;
    row /= length;
    const rowsMost = limit / row;
    if (rowsMost == 0) {
      setI64(slabs, dim, length);
      pieces *= length;
      wanted = max<i64>(wanted / length, 1);
      continue;
    }
    const shared = max<i64>(min(wanted, length / ceilDiv(SHARE_BYTES, row)), 1);
    const count = min(length, ceilDiv(ceilDiv(length, rowsMost), shared) * shared);
    setI64(slabs, dim, count);
    pieces *= count;
    // Rows that are large themselves are cut further while there are ranks without a part.
    if (count < length || wanted / length < 2 || row < SHARE_BYTES * 2) return;
    wanted /= length;
  }
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
    const count = i64At(slabs, dim - 1);
    const length = i64At(boxLengths, dim - 1);
    const slab = rest % count;
    rest /= count;
    // Larger slabs first: they differ by at most one.
    const size = length / count;
    const larger = length % count;
    setI64(pieceOffsets, dim - 1, slab * size + min(slab, larger));
    setI64(pieceLengths, dim - 1, size + (slab < larger ? 1 : 0));
  }
}
