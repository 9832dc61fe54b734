/** Random transfers: layouts, types, strides and values from a seed, and what every rank must hold afterwards. */
import {
  DeviceMesh,
  type Layout,
  Partial,
  type PartialOp,
  type Placement,
  Replicate,
  Shard,
  StridedShard,
} from "../../../src/layout/index.ts";
import type { PlanInput, TensorInput } from "../../../src/plan/input/types.ts";
import { Random } from "../../kit/random.ts";
import { coordinatesOf } from "../kit/holdings.ts";
import { mix, mixOn } from "../kit/mix.ts";
import { fold, isFloat, rounded, type TestType } from "../kit/numbers.ts";

export interface TransferCase {
  readonly name: string;
  readonly seed: number;
  /** Ranks 0 to `world - 1`; some may have nothing to do. */
  readonly world: number;
  readonly input: PlanInput;
  /** Local tensors lie with gaps, and with their dimensions in another order. */
  readonly strided: boolean;
}

export interface CaseOptions {
  readonly partial?: PartialOp;
  readonly types?: readonly (readonly [TestType, TestType])[];
  readonly strided?: boolean;
  readonly tensors?: number;
  readonly options?: Pick<
    PlanInput,
    "bucketBytes" | "bucketsInFlight" | "peersInFlight" | "strategy" | "topology"
  >;
}

const meshShapes = [[1], [2], [3], [4], [2, 2], [1, 3], [3, 2], [2, 1, 2]] as const;
export const sameTypes: readonly (readonly [TestType, TestType])[] = [
  ["float32", "float32"],
  ["bfloat16", "bfloat16"],
  ["float64", "float64"],
  ["uint8", "uint8"],
  ["int16", "int16"],
];
export const castTypes: readonly (readonly [TestType, TestType])[] = [
  ["float32", "bfloat16"],
  ["float32", "float16"],
  ["float64", "bfloat16"],
  ["bfloat16", "float32"],
  ["float32", "float64"],
  ["int32", "float32"],
  ["uint8", "float16"],
  ["int16", "int64"],
];

/** A case of up to six ranks, from nothing but its seed and options. */
export function randomCase(seed: number, options: CaseOptions = {}): TransferCase {
  const random = new Random(seed);
  const world = 6;
  const tensors: TensorInput[] = [];
  const pairs: Record<string, { source: Layout; target: Layout }> = {};
  const count = options.tensors ?? random.integer(1, 4);
  for (let index = 0; index < count; index++) {
    const ndim = random.integer(options.partial === undefined && index > 0 ? 0 : 1, 3);
    const pair = `pair${index}`;
    pairs[pair] = {
      source: randomLayout(random, world, ndim, options.partial),
      target: randomLayout(random, world, ndim),
    };
    const [dtype, targetDtype] = random.pick(options.types ?? sameTypes);
    const shape = Array.from({ length: ndim }, () => random.integer(random.chance(5) ? 0 : 1, 19));
    tensors.push({ name: `tensor${index}`, pair, shape, dtype, targetDtype });
  }
  return {
    name: `seed ${seed}`,
    seed,
    world,
    strided: options.strided ?? random.chance(40),
    input: { pairs, tensors, ...options.options },
  };
}

function randomLayout(random: Random, world: number, ndim: number, partial?: PartialOp): Layout {
  const shape = random.pick(meshShapes);
  const size = shape.reduce((count: number, extent) => count * extent, 1);
  const ranks = random.shuffle(Array.from({ length: world }, (_, rank) => rank)).slice(0, size);
  const placements = shape.map(() => randomPlacement(random, ndim));
  if (partial !== undefined) {
    for (const dim of random.shuffle(shape.map((_, dim) => dim)).slice(0, random.integer(1, shape.length))) {
      placements[dim] = Partial(partial);
    }
  }
  return { mesh: new DeviceMesh(shape, { ranks }), placements, stridedShard: "split" };
}

function randomPlacement(random: Random, ndim: number): Placement {
  if (ndim === 0 || random.chance(25)) return Replicate();
  const dim = random.integer(0, ndim - 1);
  return random.chance(25) ? StridedShard(dim, random.integer(1, 4)) : Shard(dim);
}

/** Values of a tensor's elements in a round, by their indices in the whole tensor. */
type Values = (global: readonly number[]) => number;

/** The values that a contributor holds: `position` counts along the Partial dimensions. */
export function sourceValues(
  { seed, input }: TransferCase,
  round: number,
  tensor: number,
  position: number,
): Values {
  const { dtype, pair } = input.tensors[tensor]!;
  const op = partialOpOf(input.pairs[pair]!.source);
  const type = dtype as TestType;
  const before = mix(seed, round, tensor, position);
  return (global) => {
    const bits = mixOn(before, global);
    if (op === "product") return isFloat(type) ? rounded(type, 0.5 + bits / 2 ** 32) : (bits % 5) - 2;
    if (!isFloat(type)) return rounded(type, type === "uint8" ? bits % 256 : (bits % 4001) - 2000);
    if ((op === "max" || op === "min") && bits % 29 === 0) return Number.NaN;
    // Exponents that differ, so that another order of adding gives another sum.
    return rounded(type, (bits / 2 ** 31 - 1) * 2 ** (bits % 7));
  };
}

/** The values that every target rank must hold. */
export function targetValues(transfer: TransferCase, round: number, tensor: number): Values {
  const { dtype, targetDtype, pair } = transfer.input.tensors[tensor]!;
  const { source } = transfer.input.pairs[pair]!;
  const [from, to] = [dtype as TestType, (targetDtype ?? dtype) as TestType];
  const { count } = positionsOf(source);
  const contributors = Array.from({ length: count }, (_, position) =>
    sourceValues(transfer, round, tensor, position),
  );
  const op = partialOpOf(source);
  const byWayOfFloat32 = (to === "float16" || to === "bfloat16") && from !== to;
  return (global) => {
    const value =
      op === undefined || count === 1
        ? contributors[0]!(global)
        : fold(
            from,
            op,
            contributors.map((valueAt) => valueAt(global)),
            op === "avg" ? count : 1,
          );
    return rounded(to, byWayOfFloat32 ? rounded("float32", value) : value);
  };
}

/** Where a coordinate stands among the contributors to its elements: row-major over the Partial dimensions. */
export function positionsOf({ mesh, placements }: Layout): {
  readonly count: number;
  readonly at: (coordinate: readonly number[]) => number;
} {
  const partialDims = placements.flatMap(({ kind }, dim) => (kind === "partial" ? [dim] : []));
  const at = (coordinate: readonly number[]) =>
    partialDims.reduce((position, dim) => position * mesh.shape[dim]! + coordinate[dim]!, 0);
  return { count: partialDims.reduce((count, dim) => count * mesh.shape[dim]!, 1), at };
}

function partialOpOf({ placements }: Layout): PartialOp | undefined {
  for (const placement of placements) if (placement.kind === "partial") return placement.op;
  return undefined;
}

/** The coordinate of a rank, or `undefined` if it is not in the mesh. */
export function coordinateOfRank({ mesh }: Layout, rank: number): number[] | undefined {
  const position = mesh.ranks.indexOf(rank);
  return position < 0 ? undefined : coordinatesOf(mesh.shape)[position];
}
