import {
  DeviceMesh,
  type DType,
  type Layout,
  Partial,
  type Placement,
  Replicate,
  Shard,
  StridedShard,
} from "../../../src/layout/index.ts";
import type { PlanInput, TensorInput, TensorSideInput } from "../../../src/plan/input/types.ts";
import { Random } from "../../kit/random.ts";

/** A list of `parts` sizes, zero among them, whose sum is `total`. */
function composition(total: number, parts: number, random: Random): number[] {
  if (total % parts === 0 && random.below(3) === 0) return Array.from({ length: parts }, () => total / parts);
  const cuts = Array.from({ length: parts - 1 }, () => random.below(total + 1)).sort((a, b) => a - b);
  return [...cuts, total].map((cut, part) => cut - (part === 0 ? 0 : cuts[part - 1]!));
}

function chunkSizes(length: number, parts: number): number[] {
  const size = Math.ceil(length / parts);
  return Array.from({ length: parts }, (_, part) => Math.max(0, Math.min(size, length - part * size)));
}

/** Nested placements that mostly fit `shape`; one size in forty is off by one. */
function placementsFor(
  mesh: readonly number[],
  shape: readonly number[],
  isSource: boolean,
  random: Random,
): Placement[] {
  // The lengths that groups have so far, by tensor dimension.
  const lengths = shape.map((extent) => [extent]);
  return mesh.map((count) => {
    if (shape.length === 0 || random.below(5) === 0) {
      return isSource && random.below(3) === 0 ? Partial("sum") : Replicate();
    }
    const dim = random.below(shape.length);
    const known = lengths[dim]!;
    const first = known[0]!;
    if (known.every((length) => length === first) && random.below(4) > 0) {
      const sizes = composition(first, count, random);
      if (random.below(40) === 0) sizes[random.below(count)]!++;
      lengths[dim] = sizes;
      return Shard(random.below(2) === 0 ? dim : dim - shape.length, { sizes });
    }
    const factor = 1 + random.below(3);
    if (factor > 1) {
      // The first coordinates get the longer parts of every piece.
      lengths[dim] = known.flatMap((length) =>
        Array.from({ length: count }, (_, at) =>
          chunkSizes(length, factor).reduce((sum, piece) => sum + chunkSizes(piece, count)[at]!, 0),
        ),
      );
      return StridedShard(dim, factor);
    }
    lengths[dim] = known.flatMap((length) => chunkSizes(length, count));
    return Shard(dim);
  });
}

function layoutFor(shape: readonly number[], isSource: boolean, random: Random): Layout {
  const mesh = Array.from({ length: 1 + random.below(3) }, () => 1 + random.below(4));
  const size = mesh.reduce((a, b) => a * b, 1);
  const ranks = random.shuffle(Array.from({ length: size + 3 }, (_, rank) => rank));
  return {
    mesh: new DeviceMesh(mesh, { ranks: ranks.slice(0, size) }),
    placements: placementsFor(mesh, shape, isSource, random),
    stridedShard: random.below(3) === 0 ? "order" : "split",
  };
}

/** Things of which a coordinate owns some, by sizes or as a shard cuts. */
function selection({ mesh }: Layout, random: Random): TensorSideInput | undefined {
  if (random.below(4) > 0) return undefined;
  const dim = random.below(mesh.ndim);
  const of = 1 + random.below(9);
  const sizes = random.below(3) === 0 ? undefined : composition(of, mesh.shape[dim]!, random);
  return { select: { dim, index: random.below(of), of, ...(sizes && { sizes }) } };
}

/** An input whose shards are cut by size on both sides, nested in each other and in shards of other kinds. */
export function sizedInput(seed: number, most = 9): PlanInput {
  const random = new Random(seed);
  const shape = Array.from({ length: 1 + random.below(3) }, () => random.below(most + 1));
  const source = layoutFor(shape, true, random);
  const target = layoutFor(shape, false, random);
  const dtype: DType = "float32";
  const tensors = Array.from({ length: 1 + random.below(3) }, (_, index): TensorInput => {
    const [from, to] = [selection(source, random), selection(target, random)];
    return {
      name: `t${index}`,
      pair: "p",
      shape,
      dtype,
      ...(from && { source: from }),
      ...(to && { target: to }),
    };
  });
  const strategy = (["direct", "striped", "auto"] as const)[random.below(3)]!;
  const topology = { ranksPerHost: 4, hostMBps: 1000, networkMBps: 100, latencyUs: 0 };
  return {
    pairs: { p: { source, target } },
    tensors,
    bucketBytes: most > 100 ? 2 ** 22 : 4096,
    strategy,
    ...(random.below(2) === 0 && { topology }),
  };
}
