import { TensorBusError } from "../../errors.ts";
import type { DeviceMesh, Layout, Placement, StridedShardReading } from "../../layout/index.ts";
import type { SelectInput, TensorSideInput } from "../input/types.ts";

/**
 * A strictly increasing list of global indices of one tensor dimension as maximal runs: `starts[i]` is the first global
 * index of run i, `before[i]` how many indices stand before it; `before` has one entry more, the count of all.
 */
interface Runs {
  readonly starts: readonly number[];
  readonly before: readonly number[];
}

export function runCount(runs: Runs): number {
  return runs.before[runs.starts.length]!;
}

/** The run that holds list position `at`. */
function runAt(runs: Runs, at: number): number {
  let low = 0;
  let high = runs.starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (runs.before[middle]! <= at) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** True if `length` list positions from `a` on and from `b` on are the same global indices in the same order. */
export function sameIndices(left: Runs, a: number, right: Runs, b: number, length: number): boolean {
  let i = runAt(left, a);
  let j = runAt(right, b);
  for (let done = 0; done < length; ) {
    const at = a + done;
    const to = b + done;
    if (left.starts[i]! + at - left.before[i]! !== right.starts[j]! + to - right.before[j]!) return false;
    const leftRest = left.before[i + 1]! - at;
    const rightRest = right.before[j + 1]! - to;
    const step = Math.min(leftRest, rightRest);
    if (leftRest === step) i++;
    if (rightRest === step) j++;
    done += step;
  }
  return true;
}

function equalRuns(a: Runs, b: Runs): boolean {
  return runCount(a) === runCount(b) && (runCount(a) === 0 || sameIndices(a, 0, b, 0, runCount(a)));
}

class RunBuilder {
  readonly starts: number[] = [];
  readonly before: number[] = [0];

  append(start: number, length: number): void {
    if (length === 0) return;
    const last = this.starts.length - 1;
    const count = this.before[last + 1]!;
    if (last >= 0 && this.starts[last]! + count - this.before[last]! === start) {
      this.before[last + 1] = count + length;
      return;
    }
    this.starts.push(start);
    this.before.push(count + length);
  }

  /** Appends list positions `from` to `to` (exclusive) of other runs. */
  appendSlice(runs: Runs, from: number, to: number): void {
    if (from >= to) return;
    for (let i = runAt(runs, from), at = from; at < to; i++) {
      const end = Math.min(runs.before[i + 1]!, to);
      this.append(runs.starts[i]! + at - runs.before[i]!, end - at);
      at = end;
    }
  }
}

function ceilDiv(a: number, b: number): number {
  return (a - (a % b)) / b + (a % b > 0 ? 1 : 0);
}

/** The part [from, to) of `length` things that coordinate `index` of `count` gets, as `torch.chunk` cuts. */
function chunkBounds(length: number, count: number, index: number): [from: number, to: number] {
  const size = ceilDiv(length, count);
  return [Math.min(index * size, length), Math.min((index + 1) * size, length)];
}

/** The most runs that are listed for a rank. */
const mostRuns = 2 ** 20;

/** Cuts the list into `pieces`, each among `count`, and keeps part `index` of every piece. */
function pick(runs: Runs, pieces: number, count: number, index: number): Runs {
  const length = runCount(runs);
  if (count === 1) return runs;
  const picked = new RunBuilder();
  if (pieces >= length && pieces > 1) {
    // Each piece has one index at most, and its first part takes it.
    if (index === 0) picked.appendSlice(runs, 0, length);
    return picked;
  }
  if (pieces > mostRuns) {
    throw new TensorBusError("TB_PLAN_TOO_LARGE", `a strided shard of ${pieces} pieces has too many runs`, {
      details: { runs: pieces },
    });
  }
  for (let piece = 0; piece < Math.min(pieces, length); piece++) {
    const [from, to] = chunkBounds(length, pieces, piece);
    if (from === to) break;
    const [low, high] = chunkBounds(to - from, count, index);
    picked.appendSlice(runs, from + low, from + high);
  }
  return picked;
}

/** The part of the list that coordinate `index` gets when each coordinate gets as much as its size says. */
function pickSized(runs: Runs, sizes: readonly number[], index: number): Runs {
  let from = 0;
  for (let before = 0; before < index; before++) from += sizes[before]!;
  const picked = new RunBuilder();
  picked.appendSlice(runs, from, from + sizes[index]!);
  return picked;
}

/** One cut of a tensor dimension: by which mesh dimension, and by sizes or into how many pieces beforehand. */
interface Cut {
  readonly meshDim: number;
  readonly pieces: number;
  readonly sizes: readonly number[] | undefined;
}

function shardedDim(placement: Placement, ndim: number): number | undefined {
  if (placement.kind !== "shard" && placement.kind !== "stridedShard") return undefined;
  return placement.dim < 0 ? placement.dim + ndim : placement.dim;
}

/** The cuts of dimension `dim` from left to right, as `distribute_tensor` makes them. */
function splitCuts(placements: readonly Placement[], ndim: number, dim: number): Cut[] {
  return placements.flatMap((placement, meshDim) => {
    if (shardedDim(placement, ndim) !== dim) return [];
    if (placement.kind === "stridedShard")
      return [{ meshDim, pieces: placement.splitFactor, sizes: undefined }];
    return [{ meshDim, pieces: 1, sizes: placement.kind === "shard" ? placement.sizes : undefined }];
  });
}

/**
 * The plain cuts of dimension `dim` in shard order: from the last mesh dimension to the first, each is put where the
 * sizes before it multiply to its split factor. `undefined` if there is no such place.
 */
function orderCuts(sizes: readonly number[], cuts: readonly Cut[]): Cut[] | undefined {
  const order: Cut[] = [];
  for (const cut of cuts.toReversed()) {
    let product = 1;
    let at = 0;
    while (product !== cut.pieces && at < order.length) product *= sizes[order[at++]!.meshDim]!;
    if (product !== cut.pieces) return undefined;
    order.splice(at, 0, { ...cut, pieces: 1 });
  }
  return order;
}

/** The coordinate, of `count`, that owns the selected thing. */
function ownerOf({ index, of, sizes }: SelectInput, count: number): number {
  if (sizes === undefined) return Math.floor(index / ceilDiv(of, count));
  let coordinate = 0;
  for (let left = index - sizes[0]!; left >= 0; left -= sizes[coordinate]!) coordinate++;
  return coordinate;
}

/** Mesh positions by rank, one table a mesh. */
const positionTables = new WeakMap<DeviceMesh, Map<number, number>>();

function positionsOf(mesh: DeviceMesh): Map<number, number> {
  let table = positionTables.get(mesh);
  if (table === undefined) {
    table = new Map();
    for (let position = 0; position < mesh.ranks.length; position++)
      table.set(mesh.ranks[position]!, position);
    positionTables.set(mesh, table);
  }
  return table;
}

/**
 * What the ranks of one side hold of tensors of one shape, by the rules in PyTorch's own words: every rank's coordinates
 * in the selected mesh, and for every tensor dimension the run list of its coordinates. Run lists are made when asked
 * for. `TB_STRIDED_SHARD` if the reading matters and is not named, or is `order` and cannot be decoded;
 * `TB_PLACEMENT` if sizes do not add up to what they cut.
 */
export class SideHoldings {
  readonly ndim: number;
  /** Sizes of the mesh dimensions, 1 if one coordinate was selected. */
  readonly sizes: readonly number[];
  readonly partialDims: readonly number[];
  readonly #mesh: DeviceMesh;
  readonly #strides: readonly number[];
  readonly #selected: { readonly dim: number; readonly coordinate: number } | undefined;
  readonly #shape: readonly number[];
  readonly #cuts: readonly (readonly Cut[])[];
  readonly #runs: Map<number, Runs>[];
  readonly #held = new Map<number, readonly Runs[]>();

  constructor(layout: Layout, side: TensorSideInput | undefined, shape: readonly number[]) {
    const { mesh, placements } = layout;
    this.#mesh = mesh;
    this.#shape = shape;
    this.ndim = shape.length;
    this.#strides = mesh.shape.map((_, dim) =>
      mesh.shape.slice(dim + 1).reduce((product, size) => product * size, 1),
    );
    const select = side?.select;
    if (select !== undefined) {
      this.#selected = { dim: select.dim, coordinate: ownerOf(select, mesh.shape[select.dim]!) };
    }
    this.sizes = mesh.shape.map((size, dim) => (dim === select?.dim ? 1 : size));
    this.partialDims = placements.flatMap((placement, dim) =>
      placement.kind === "partial" && this.sizes[dim]! > 1 ? [dim] : [],
    );
    const reading = side?.stridedShard ?? layout.stridedShard;
    // A selected dimension cuts nothing, so its sizes say nothing.
    const cutting = placements.map(
      (placement, dim): Placement =>
        dim === select?.dim && placement.kind === "shard" ? { kind: "shard", dim: placement.dim } : placement,
    );
    this.#cuts = shape.map((_, dim) => this.#cutsOf(cutting, dim, reading));
    this.#runs = shape.map(() => new Map());
  }

  /** The mesh position of a rank; `undefined` if it is not in the selected mesh. */
  positionOf(rank: number): number | undefined {
    const position = positionsOf(this.#mesh).get(rank);
    if (position === undefined || this.#selected === undefined) return position;
    const { dim, coordinate } = this.#selected;
    return Math.floor(position / this.#strides[dim]!) % this.#mesh.shape[dim]! === coordinate
      ? position
      : undefined;
  }

  /** The ranks of the selected mesh with their positions, in mesh order. */
  *members(): IterableIterator<[rank: number, position: number]> {
    for (let position = 0; position < this.#mesh.ranks.length; position++) {
      const rank = this.#mesh.ranks[position]!;
      if (this.#selected === undefined || this.positionOf(rank) !== undefined) yield [rank, position];
    }
  }

  /** What a rank holds of every tensor dimension; `undefined` if it is not in the selected mesh. */
  heldBy(rank: number): readonly Runs[] | undefined {
    let held = this.#held.get(rank);
    if (held === undefined) {
      const position = this.positionOf(rank);
      if (position === undefined) return undefined;
      held = this.#shape.map((_, dim) => this.runs(dim, position));
      this.#held.set(rank, held);
    }
    return held;
  }

  /** What the rank at a mesh position holds of tensor dimension `dim`. */
  runs(dim: number, position: number): Runs {
    const cuts = this.#cuts[dim]!;
    const group = this.#groupOf(cuts, position);
    let runs = this.#runs[dim]!.get(group);
    if (runs === undefined) {
      runs = this.#cut(dim, cuts, position);
      this.#runs[dim]!.set(group, runs);
    }
    return runs;
  }

  localShape(position: number): number[] {
    return this.#shape.map((_, dim) => runCount(this.runs(dim, position)));
  }

  /** A number for what a position holds: two positions with one number hold the same. */
  holdingOf(position: number): number {
    let holding = 0;
    for (const cuts of this.#cuts) {
      for (const { meshDim } of cuts)
        holding = holding * this.sizes[meshDim]! + this.#coordinate(position, meshDim);
    }
    return holding;
  }

  /** Ranks whose contributions make the value of a position, in ascending row-major order; one if nothing is Partial. */
  partialGroup(position: number): number[] {
    let group = [position];
    for (const dim of this.partialDims) {
      const stride = this.#strides[dim]!;
      const first = -this.#coordinate(position, dim) * stride;
      group = group.flatMap((at) =>
        Array.from({ length: this.sizes[dim]! }, (_, index) => at + first + index * stride),
      );
    }
    return group.map((at) => this.#mesh.ranks[at]!);
  }

  /** The place of a position in its `partialGroup`. */
  memberOf(position: number): number {
    return this.partialDims.reduce((at, dim) => at * this.sizes[dim]! + this.#coordinate(position, dim), 0);
  }

  #coordinate(position: number, meshDim: number): number {
    return Math.floor(position / this.#strides[meshDim]!) % this.sizes[meshDim]!;
  }

  #groupOf(cuts: readonly Cut[], position: number): number {
    let group = 0;
    for (const { meshDim } of cuts)
      group = group * this.sizes[meshDim]! + this.#coordinate(position, meshDim);
    return group;
  }

  #cut(dim: number, cuts: readonly Cut[], position: number): Runs {
    const whole = new RunBuilder();
    whole.append(0, this.#shape[dim]!);
    let runs: Runs = whole;
    for (const { meshDim, pieces, sizes } of cuts) {
      const coordinate = this.#coordinate(position, meshDim);
      if (sizes !== undefined) this.#checkSum(dim, meshDim, sizes, runCount(runs));
      runs =
        sizes === undefined
          ? pick(runs, pieces, this.sizes[meshDim]!, coordinate)
          : pickSized(runs, sizes, coordinate);
    }
    return runs;
  }

  #cutsOf(placements: readonly Placement[], dim: number, reading: StridedShardReading | undefined): Cut[] {
    const split = splitCuts(placements, this.ndim, dim);
    if (reading === "split" || split.every((cut) => placements[cut.meshDim]!.kind === "shard")) return split;
    const order = orderCuts(this.sizes, split);
    if (order === undefined) throw this.#readingError(dim, reading, "cannot be decoded as a shard order");
    if (reading === "order") return order;
    const compared = new Set<number>();
    for (let position = 0; position < this.#mesh.ranks.length; position++) {
      const group = this.#groupOf(split, position);
      if (compared.has(group)) continue;
      compared.add(group);
      if (!equalRuns(this.#cut(dim, split, position), this.#cut(dim, order, position))) {
        throw this.#readingError(
          dim,
          reading,
          "has two readings that differ: name one by the option stridedShard",
        );
      }
    }
    return split;
  }

  #checkSum(dim: number, meshDim: number, sizes: readonly number[], extent: number): void {
    let sum = 0;
    for (const size of sizes) sum += size;
    if (sum === extent) return;
    const why = `the sizes of mesh dimension ${meshDim} add up to ${sum}, and cut ${extent} of dimension ${dim}`;
    throw new TensorBusError("TB_PLACEMENT", why, { details: { dim, meshDim, sizes, sum, extent } });
  }

  #readingError(dim: number, reading: StridedShardReading | undefined, what: string): TensorBusError {
    return new TensorBusError("TB_STRIDED_SHARD", `the strided shard of dimension ${dim} ${what}`, {
      details: { dim, reading, shape: this.#shape },
    });
  }
}
