/** How tensors are cut into pieces that fit into buffers, and those into blocks that fit into a processor's cache. */

export interface Cut {
  readonly offsets: readonly number[];
  readonly lengths: readonly number[];
}

/** Consecutive parts of a box, in its row-major order: of at most so many elements each. */
export function* cutRows(box: Cut, most: number, dim = 0): Generator<Cut> {
  const { offsets, lengths } = box;
  const elements = countOf(lengths);
  if (elements === 0) return;
  if (elements <= most || dim === lengths.length) {
    yield box;
    return;
  }
  const extent = lengths[dim]!;
  const rows = Math.max(1, Math.floor((most * extent) / elements));
  const isLong = elements / extent > most;
  for (let at = 0; at < extent; at += rows) {
    const length = Math.min(rows, extent - at);
    const part = { offsets: offsets.with(dim, offsets[dim]! + at), lengths: lengths.with(dim, length) };
    if (isLong) yield* cutRows(part, most, dim + 1);
    else yield part;
  }
}

/**
 * Tiles of a tensor that is turned on its way: of at most so many elements each, and as long along the last dimension, which
 * is in one piece where it is read, as along `inner`, which is where it is written. A dimension that is not much longer is not
 * cut at all: then one end has all of it in one piece.
 */
export function* cutTiles(shape: readonly number[], inner: number, most: number): Generator<Cut> {
  if (shape.includes(0)) return;
  const last = shape.length - 1;
  const lengths = shape.map(() => 1);
  const grow = (dim: number, room: number) => {
    lengths[dim] = even(shape[dim]!, Math.max(1, Math.min(shape[dim]!, Math.floor(room))));
  };
  const side = Math.sqrt(most);
  const whole = [inner, last].find((dim) => shape[dim]! <= 2 * side);
  if (whole === undefined) grow(last, side);
  else grow(whole, most);
  for (const dim of new Set([inner, last, ...[...shape.keys()].reverse()])) {
    grow(dim, (most * lengths[dim]!) / countOf(lengths));
  }
  yield* grid(shape, lengths);
}

/** The longest equal pieces, of `most` at the most; the last may be shorter. */
function even(extent: number, most: number): number {
  return Math.ceil(extent / Math.ceil(extent / most));
}

function* grid(shape: readonly number[], lengths: readonly number[]): Generator<Cut> {
  const offsets = shape.map(() => 0);
  for (;;) {
    yield {
      offsets: [...offsets],
      lengths: lengths.map((length, dim) => Math.min(length, shape[dim]! - offsets[dim]!)),
    };
    let dim = shape.length - 1;
    for (; dim >= 0; dim--) {
      offsets[dim]! += lengths[dim]!;
      if (offsets[dim]! < shape[dim]!) break;
      offsets[dim] = 0;
    }
    if (dim < 0) return;
  }
}

export function countOf(lengths: readonly number[]): number {
  return lengths.reduce((product, extent) => product * extent, 1);
}
