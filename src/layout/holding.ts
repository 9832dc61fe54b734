import { TensorBusError } from "../errors.ts";
import type { Layout, StridedShardReading } from "./layout.ts";
import { type Placement, sumOf } from "./placement.ts";

/** Global indices `start` to `start + length - 1` of one tensor dimension. */
export interface Run {
  readonly start: number;
  readonly length: number;
}

/**
 * What one rank holds of a tensor: per tensor dimension the runs of global indices, ascending; the local tensor is their
 * product, contiguous and row-major, of shape `localShape`.
 */
export interface Holding {
  readonly runs: readonly (readonly Run[])[];
  readonly localShape: readonly number[];
}

/** `select` of a tensor's side: `TensorSideInput.select`. */
interface Selection {
  readonly dim: number;
  readonly index: number;
  readonly of: number;
  readonly sizes?: readonly number[];
}

/** The coordinate that owns thing `index`: things are cut by `sizes`, else as `Shard` cuts `of` among `count`. */
export function selectedCoordinate({ index, of, sizes }: Omit<Selection, "dim">, count: number): number {
  if (sizes === undefined) return Math.floor(index / Math.ceil(of / count));
  let end = 0;
  return sizes.findIndex((size) => {
    end += size;
    return index < end;
  });
}

/**
 * The holding of the rank at a coordinate of a mesh, by PyTorch's rules for uneven, nested and strided shards
 * (`distribute_tensor` for the reading `split`, FSDP2 for `order`); a shard with sizes is cut by them. The layout must be
 * valid for the shape. `TB_STRIDED_SHARD` if the reading `order` cannot decode the placements, `TB_PLACEMENT` if
 * sizes do not add up to what they cut.
 */
export function holdingAt(
  meshShape: readonly number[],
  placements: Layout["placements"],
  shape: readonly number[],
  coordinate: readonly number[],
  reading: StridedShardReading = "split",
): Holding {
  const runs: Run[][] = shape.map((extent) => (extent > 0 ? [{ start: 0, length: extent }] : []));
  for (const one of cuts(meshShape, placements, shape.length, reading)) {
    const { meshDim, tensorDim, splitFactor, sizes } = one;
    const list = runs[tensorDim]!;
    runs[tensorDim] =
      sizes === undefined
        ? cut(list, meshShape[meshDim]!, coordinate[meshDim]!, splitFactor)
        : cutBySizes(list, sizes, coordinate[meshDim]!, meshDim);
  }
  return { runs, localShape: runs.map(total) };
}

/** The holding of a rank, or `undefined` if it is not in the mesh, or not in the part that `select` keeps. */
export function holdingOf(
  layout: Layout,
  shape: readonly number[],
  rank: number,
  options: { readonly select?: Selection; readonly stridedShard?: StridedShardReading } = {},
): Holding | undefined {
  const meshShape = [...layout.mesh.shape];
  const coordinate = coordinateOf(layout, rank);
  if (coordinate === undefined) return undefined;
  const { select } = options;
  let { placements } = layout;
  if (select !== undefined) {
    if (coordinate[select.dim] !== selectedCoordinate(select, meshShape[select.dim]!)) return undefined;
    meshShape[select.dim] = 1;
    coordinate[select.dim] = 0;
    placements = placements.map((placement, dim) => (dim === select.dim ? uncut(placement) : placement));
  }
  return holdingAt(
    meshShape,
    placements,
    shape,
    coordinate,
    options.stridedShard ?? layout.stridedShard ?? "split",
  );
}

/** A rank's index in the mesh's array, one entry a mesh dimension; `undefined` if it is not in the mesh. */
export function coordinateOf(layout: Layout, rank: number): number[] | undefined {
  let position = layout.mesh.ranks.indexOf(rank);
  if (position < 0) return undefined;
  const coordinate = new Array<number>(layout.mesh.ndim);
  for (let dim = layout.mesh.ndim - 1; dim >= 0; dim--) {
    const extent = layout.mesh.shape[dim]!;
    coordinate[dim] = position % extent;
    position = Math.floor(position / extent);
  }
  return coordinate;
}

/** A placement of a mesh dimension of which one coordinate was selected: it cuts nothing, by sizes or otherwise. */
export function uncut(placement: Placement): Placement {
  return placement.kind === "shard" ? { kind: "shard", dim: placement.dim } : placement;
}

interface Cut {
  readonly meshDim: number;
  readonly tensorDim: number;
  readonly splitFactor: number;
  readonly sizes: readonly number[] | undefined;
}

/** The cuts in the order in which they apply: mesh order for `split`, shard order for `order`. */
function cuts(
  meshShape: readonly number[],
  placements: Layout["placements"],
  ndim: number,
  reading: StridedShardReading,
): Cut[] {
  const inMeshOrder: Cut[] = [];
  placements.forEach((placement, meshDim) => {
    if (placement.kind !== "shard" && placement.kind !== "stridedShard") return;
    const tensorDim = placement.dim < 0 ? placement.dim + ndim : placement.dim;
    const splitFactor = placement.kind === "shard" ? 1 : placement.splitFactor;
    const sizes = placement.kind === "shard" ? placement.sizes : undefined;
    inMeshOrder.push({ meshDim, tensorDim, splitFactor, sizes });
  });
  if (reading === "split") return inMeshOrder;
  const orders = new Map<number, Cut[]>();
  for (const entry of inMeshOrder.reverse()) {
    const order = orders.get(entry.tensorDim) ?? [];
    orders.set(entry.tensorDim, order);
    order.splice(decodedPosition(order, meshShape, entry), 0, { ...entry, splitFactor: 1 });
  }
  return [...orders.values()].flat();
}

/** Says where a mesh dimension stands in the shard order: after as many shards as its split factor counts. */
function decodedPosition(
  order: readonly Cut[],
  meshShape: readonly number[],
  { splitFactor, meshDim }: Cut,
): number {
  let shards = 1;
  for (let position = 0; position <= order.length; position++) {
    if (shards === splitFactor) return position;
    if (position < order.length) shards *= meshShape[order[position]!.meshDim]!;
  }
  throw new TensorBusError(
    "TB_STRIDED_SHARD",
    `a split factor of ${splitFactor} on mesh dimension ${meshDim} names no shard order`,
    { details: { meshDim, splitFactor } },
  );
}

/** The list of indices is cut into `splitFactor` pieces, and each piece among `count`: part `index` of each is kept. */
function cut(runs: readonly Run[], count: number, index: number, splitFactor: number): Run[] {
  const length = total(runs);
  // Pieces of one index each are all the first part's.
  if (splitFactor > 1 && splitFactor >= length) return index === 0 || count === 1 ? [...runs] : [];
  if (count > 1) admitPieces(splitFactor);
  else return [...runs];
  const kept: Run[] = [];
  const cursor = { run: 0, position: 0 };
  for (const piece of chunkBounds(length, splitFactor)) {
    const size = piece.end - piece.begin;
    const step = Math.ceil(size / count);
    const begin = piece.begin + Math.min(index * step, size);
    const end = piece.begin + Math.min((index + 1) * step, size);
    if (end > begin) slice(runs, begin, end, kept, cursor);
  }
  return kept;
}

/** More runs of one rank than this are refused. */
const mostPieces = 2 ** 20;

function admitPieces(count: number): void {
  if (count <= mostPieces) return;
  throw new TensorBusError(
    "TB_PLAN_TOO_LARGE",
    `a strided shard cuts a dimension into ${count} pieces, more than ${mostPieces}`,
    { details: { runs: count } },
  );
}

function cutBySizes(runs: readonly Run[], sizes: readonly number[], index: number, meshDim: number): Run[] {
  const extent = total(runs);
  if (sumOf(sizes) !== extent) {
    throw new TensorBusError(
      "TB_PLACEMENT",
      `the sizes of mesh dimension ${meshDim} add up to ${sumOf(sizes)}, and cut an extent of ${extent}`,
      { details: { meshDim, sizes, sum: sumOf(sizes), extent } },
    );
  }
  const begin = sumOf(sizes.slice(0, index));
  const kept: Run[] = [];
  if (sizes[index]! > 0) slice(runs, begin, begin + sizes[index]!, kept);
  return kept;
}

/** The non-empty pieces of `torch.chunk`. */
function* chunkBounds(length: number, count: number): Generator<{ begin: number; end: number }> {
  const step = Math.ceil(length / count);
  for (let begin = 0; begin < length; begin += step) yield { begin, end: Math.min(begin + step, length) };
}

/**
 * Appends positions `begin` to `end - 1` of the list that the runs spell, joining neighbours. The cursor stands at the run
 * that the last slice ended in; slices ascend.
 */
function slice(
  runs: readonly Run[],
  begin: number,
  end: number,
  into: Run[],
  cursor = { run: 0, position: 0 },
): void {
  for (; cursor.run < runs.length; cursor.position += runs[cursor.run++]!.length) {
    const run = runs[cursor.run]!;
    const { position } = cursor;
    const from = Math.max(begin, position);
    const to = Math.min(end, position + run.length);
    if (from < to) {
      const start = run.start + (from - position);
      const last = into.at(-1);
      if (last !== undefined && last.start + last.length === start) {
        into[into.length - 1] = { start: last.start, length: last.length + (to - from) };
      } else {
        into.push({ start, length: to - from });
      }
    }
    if (position + run.length > end) return;
  }
}

function total(runs: readonly Run[]): number {
  return runs.reduce((sum, run) => sum + run.length, 0);
}
