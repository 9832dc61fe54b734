import type { PartialOp } from "../../../src/layout/index.ts";
import type { Bucket, Chunk, PlanInput } from "../../../src/plan/input/types.ts";
import type { Random } from "../../kit/random.ts";
import { type NaiveSide, naiveSide } from "./naive-holdings.ts";
import type { NaiveTensor } from "./naive-planner.ts";

/** What a rank has of a tensor. */
interface Local {
  readonly shape: readonly number[];
  readonly values: number[];
  /** Writes of each element. */
  readonly writes: number[];
}

/** Contributions to a reduced element, by contributing rank. */
type Contributions = Map<number, number>;

/** The value of element `id` as member `member` of a Partial group contributes it; small, so that folds are exact. */
export function contribution(tensor: number, id: number, member: number): number {
  return 1 + ((tensor * 5 + id * 7 + member * 3 + id * member) % 4);
}

export function fold(op: PartialOp, values: readonly number[], divisor: number): number {
  const combine = { sum: add, avg: add, product: multiply, max: Math.max, min: Math.min }[op];
  return values.reduce((a, b) => combine(a, b)) / divisor;
}
const add = (a: number, b: number): number => a + b;
const multiply = (a: number, b: number): number => a * b;

/** A value for every element of every tensor, no two alike, if nothing is Partial. */
export function plainValue(tensor: number, id: number): number {
  return (tensor + 1) * 1_000_000 + id;
}

/** The value that element `id` has on the target. */
function expectedValue(source: NaiveSide, tensor: number, id: number): number {
  if (source.op === undefined) return plainValue(tensor, id);
  const { group } = source.byRank.values().next().value!;
  return fold(
    source.op,
    group.map((_, member) => contribution(tensor, id, member)),
    source.divisor,
  );
}

/**
 * Runs a plan on real arrays and throws if a target differs from what it should hold, an element is not written
 * exactly once, or something is read before it is complete. Without `random` in the order of waves; with it in a
 * random order that `waitsFor` allows, chunks of a bucket shuffled. Returns the targets: by tensor, by rank, the values.
 */
export function simulate(
  input: PlanInput,
  chunks: Iterable<Chunk>,
  buckets: Iterable<Bucket>,
  options: { readonly random?: Random; readonly tensors?: readonly NaiveTensor[] } = {},
): ReadonlyMap<number, readonly number[]>[] {
  const world = new World(input, options.tensors);
  const contents = new Map<string, Chunk[]>();
  for (const chunk of chunks) {
    const list = contents.get(chunk.bucket) ?? [];
    contents.set(chunk.bucket, list);
    list.push(chunk);
  }
  const list = [...buckets];
  const order = options.random ? legalOrder(list, options.random) : waveOrder(list);
  for (const bucket of order) {
    const inside = contents.get(bucket.id) ?? [];
    for (const chunk of options.random?.shuffle(inside) ?? inside) world.run(chunk);
  }
  world.check();
  return world.targets();
}

function waveOrder(buckets: readonly Bucket[]): Bucket[] {
  return buckets.toSorted((a, b) => a.wave - b.wave);
}

function legalOrder(buckets: readonly Bucket[], random: Random): Bucket[] {
  const waiting = new Map(buckets.map((bucket) => [bucket.id, new Set(bucket.waitsFor)]));
  const followers = new Map<string, Bucket[]>();
  for (const bucket of buckets) {
    for (const id of bucket.waitsFor) followers.set(id, [...(followers.get(id) ?? []), bucket]);
  }
  const ready = buckets.filter((bucket) => bucket.waitsFor.length === 0);
  const order: Bucket[] = [];
  while (ready.length > 0) {
    const [bucket] = ready.splice(random.below(ready.length), 1);
    order.push(bucket!);
    for (const follower of followers.get(bucket!.id) ?? []) {
      const rest = waiting.get(follower.id)!;
      rest.delete(bucket!.id);
      if (rest.size === 0) ready.push(follower);
    }
  }
  if (order.length !== buckets.length)
    throw new Error("buckets wait in a circle, or for one that is not listed");
  return order;
}

class World {
  readonly #tensors: readonly NaiveTensor[];
  readonly #sources: Map<number, Local>[] = [];
  readonly #targets: Map<number, Local>[] = [];
  readonly #reduced: Map<number, Contributions[]>[] = [];

  constructor(input: PlanInput, tensors?: readonly NaiveTensor[]) {
    this.#tensors =
      tensors ??
      input.tensors.map((tensor) => ({
        source: naiveSide(input.pairs[tensor.pair]!.source, tensor.source, tensor.shape),
        target: naiveSide(input.pairs[tensor.pair]!.target, tensor.target, tensor.shape),
      }));
    this.#tensors.forEach(({ source, target }, tensor) => {
      this.#sources.push(locals(source, (id, member) => sourceValue(source, tensor, id, member)));
      this.#targets.push(locals(target, () => Number.NaN));
      this.#reduced.push(
        new Map([...source.byRank.values()].map(({ rank, ids }) => [rank, ids.map(() => new Map())])),
      );
    });
  }

  run(chunk: Chunk): void {
    const cells = [...boxCells(chunk.lengths)];
    for (const cell of cells) {
      const value = this.#read(chunk, cell);
      this.#write(chunk, cell, value);
    }
  }

  check(): void {
    this.#targets.forEach((byRank, tensor) => {
      const { source, target } = this.#tensors[tensor]!;
      for (const [rank, local] of byRank) {
        target.byRank.get(rank)!.ids.forEach((id, at) => {
          const where = `element ${at} (global ${id}) of tensor ${tensor} on rank ${rank}`;
          if (local.writes[at] !== 1) throw new Error(`${where} is written ${local.writes[at]} times`);
          const expected = expectedValue(source, tensor, id);
          if (local.values[at] !== expected)
            throw new Error(`${where} is ${local.values[at]}, not ${expected}`);
        });
      }
    });
  }

  targets(): Map<number, number[]>[] {
    return this.#targets.map((byRank) => new Map([...byRank].map(([rank, { values }]) => [rank, values])));
  }

  #read(chunk: Chunk, cell: readonly number[]): number {
    if (chunk.from === "reduced") return this.#readReduced(chunk, cell);
    const local = (chunk.from === "source" ? this.#sources : this.#targets)[chunk.tensor]!.get(chunk.srcRank);
    if (local === undefined) throw new Error(`chunk ${chunk.id}: rank ${chunk.srcRank} has no ${chunk.from}`);
    const at = localIndex(chunk.id, local.shape, chunk.srcOffsets, cell);
    if (chunk.from === "target" && local.writes[at] !== 1)
      throw new Error(`chunk ${chunk.id} reads too early`);
    return local.values[at]!;
  }

  #readReduced(chunk: Chunk, cell: readonly number[]): number {
    const { source } = this.#tensors[chunk.tensor]!;
    const holding = source.byRank.get(chunk.srcRank);
    if (holding === undefined) throw new Error(`chunk ${chunk.id}: rank ${chunk.srcRank} reduces nothing`);
    const at = localIndex(chunk.id, holding.localShape, chunk.srcOffsets, cell);
    const contributions = this.#reduced[chunk.tensor]!.get(chunk.srcRank)![at]!;
    const values = holding.group.map((rank) => {
      const value = contributions.get(rank);
      if (value === undefined) throw new Error(`chunk ${chunk.id} reads before rank ${rank} contributed`);
      return value;
    });
    if (contributions.size !== holding.group.length)
      throw new Error(`chunk ${chunk.id} reads a foreign contribution`);
    return fold(source.op!, values, source.divisor);
  }

  #write(chunk: Chunk, cell: readonly number[], value: number): void {
    if (chunk.to === "reduced") {
      const holding = this.#tensors[chunk.tensor]!.source.byRank.get(chunk.dstRank);
      if (holding === undefined) throw new Error(`chunk ${chunk.id}: rank ${chunk.dstRank} reduces nothing`);
      const at = localIndex(chunk.id, holding.localShape, chunk.dstOffsets, cell);
      const contributions = this.#reduced[chunk.tensor]!.get(chunk.dstRank)![at]!;
      if (contributions.has(chunk.srcRank)) throw new Error(`chunk ${chunk.id} contributes a second time`);
      contributions.set(chunk.srcRank, value);
      return;
    }
    const local = this.#targets[chunk.tensor]!.get(chunk.dstRank);
    if (local === undefined) throw new Error(`chunk ${chunk.id}: rank ${chunk.dstRank} has no target`);
    const at = localIndex(chunk.id, local.shape, chunk.dstOffsets, cell);
    local.values[at] = value;
    local.writes[at]!++;
  }
}

function sourceValue(source: NaiveSide, tensor: number, id: number, member: number): number {
  return source.op === undefined ? plainValue(tensor, id) : contribution(tensor, id, member);
}

function locals(side: NaiveSide, value: (id: number, member: number) => number): Map<number, Local> {
  return new Map(
    [...side.byRank.values()].map(({ rank, localShape, ids, group }) => {
      const member = group.indexOf(rank);
      return [
        rank,
        { shape: localShape, values: ids.map((id) => value(id, member)), writes: ids.map(() => 0) },
      ];
    }),
  );
}

function* boxCells(lengths: readonly bigint[]): IterableIterator<number[]> {
  const cell = lengths.map(() => 0);
  if (lengths.includes(0n)) return;
  while (true) {
    yield cell.slice();
    let dim = cell.length - 1;
    while (dim >= 0 && ++cell[dim]! >= Number(lengths[dim])) cell[dim--] = 0;
    if (dim < 0) return;
  }
}

function localIndex(
  chunk: string,
  shape: readonly number[],
  offsets: readonly bigint[],
  cell: readonly number[],
): number {
  return cell.reduce((index, step, dim) => {
    const at = Number(offsets[dim]) + step;
    if (at < 0 || at >= shape[dim]!) throw new Error(`chunk ${chunk} lies outside of its tensor`);
    return index * shape[dim]! + at;
  }, 0);
}
