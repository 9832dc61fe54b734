import fc from "fast-check";
import {
  arithmeticTypes,
  DeviceMesh,
  type DType,
  type Layout,
  Partial,
  type PartialOp,
  type Placement,
  Replicate,
  Shard,
  StridedShard,
  type StridedShardReading,
} from "../../../src/layout/index.ts";
import type { PlanInput, TensorInput, TensorSideInput } from "../../../src/plan/input/types.ts";

/** What kinds of input an arbitrary makes. */
interface InputOptions {
  /** The most elements of a dimension. */
  readonly extent: number;
  readonly ndim?: number;
  readonly partial?: boolean;
  /** Readings to choose from; `undefined` names none. */
  readonly readings?: readonly (StridedShardReading | undefined)[];
  readonly bucketBytes?: fc.Arbitrary<number | undefined>;
}

const meshShapes = fc.oneof(
  fc.tuple(fc.integer({ min: 1, max: 8 })),
  fc.tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 4 })),
  fc.tuple(
    fc.integer({ min: 1, max: 3 }),
    fc.integer({ min: 1, max: 3 }),
    fc.constantFrom(1, 2),
    fc.constant(1),
  ),
  fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 2 })),
);

/** A mesh whose ranks are any of a world that both sides share: disjoint, overlapping or colocated, in any order. */
const meshes: fc.Arbitrary<DeviceMesh> = meshShapes.chain((shape) => {
  const size = shape.reduce((a, b) => a * b, 1);
  const inOrder = fc
    .integer({ min: 0, max: 8 })
    .map((first) => Array.from({ length: size }, (_, i) => first + i));
  const anyOrder = fc
    .shuffledSubarray(
      Array.from({ length: 24 }, (_, rank) => rank),
      { minLength: size, maxLength: size },
    )
    .map((ranks) => ranks);
  return fc.oneof(inOrder, anyOrder).map((ranks) => new DeviceMesh(shape, { ranks }));
});

function placements(ndim: number, ops: readonly PartialOp[]): fc.Arbitrary<Placement> {
  const choices: fc.Arbitrary<Placement>[] = [fc.constant(Replicate())];
  if (ndim > 0) {
    const dim = fc.integer({ min: -ndim, max: ndim - 1 });
    choices.push(
      dim.map((d) => Shard(d)),
      fc.tuple(dim, fc.integer({ min: 1, max: 6 })).map(([d, factor]) => StridedShard(d, factor)),
    );
  }
  if (ops.length > 0) choices.push(fc.constantFrom(...ops).map((op) => Partial(op)));
  return fc.oneof(...choices);
}

function layouts(
  ndim: number,
  ops: readonly PartialOp[],
  readings: InputOptions["readings"],
): fc.Arbitrary<Layout> {
  return meshes.chain((mesh) =>
    fc
      .tuple(
        fc.array(placements(ndim, ops), { minLength: mesh.ndim, maxLength: mesh.ndim }),
        fc.constantFrom(...(readings ?? ["split" as const])),
      )
      .map(([list, stridedShard]) => ({
        mesh,
        placements: list,
        ...(stridedShard === undefined ? {} : { stridedShard }),
      })),
  );
}

function sides(layout: Layout): fc.Arbitrary<TensorSideInput | undefined> {
  const select = fc
    .tuple(fc.integer({ min: 0, max: layout.mesh.ndim - 1 }), fc.integer({ min: 1, max: 9 }), fc.nat(8))
    .map(([dim, of, index]) => ({ select: { dim, of, index: index % of } }));
  return fc.oneof({ weight: 4, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: select });
}

/** Numbers that a Partial operator is defined for, wide enough for what the simulator folds. */
const averaged: readonly DType[] = ["float64", "float32", "bfloat16", "float16"];

const partialMixes: fc.Arbitrary<readonly PartialOp[]> = fc.constantFrom<readonly PartialOp[]>(
  [],
  ["sum"],
  ["avg"],
  ["sum", "avg"],
  ["max"],
  ["min"],
  ["product"],
);

function tensors(
  pair: string,
  ndim: number,
  ops: readonly PartialOp[],
  source: Layout,
  target: Layout,
  extent: number,
): fc.Arbitrary<readonly Omit<TensorInput, "name">[]> {
  const sourceTypes = ops.includes("avg") ? averaged : arithmeticTypes;
  const tensor = fc
    .record({
      shape: fc.array(fc.integer({ min: 0, max: extent }), { minLength: ndim, maxLength: ndim }),
      dtype: fc.constantFrom(...sourceTypes),
      targetDtype: fc.option(fc.constantFrom(...arithmeticTypes), { nil: undefined }),
      source: sides(source),
      target: sides(target),
    })
    .map(({ shape, dtype, targetDtype, source: from, target: to }) => ({
      pair,
      shape,
      dtype,
      ...(targetDtype === undefined ? {} : { targetDtype }),
      ...(from === undefined ? {} : { source: from }),
      ...(to === undefined ? {} : { target: to }),
    }));
  return fc.array(tensor, { minLength: 1, maxLength: 4 });
}

function pairs(name: string, options: InputOptions) {
  const ops = options.partial === false ? fc.constant([]) : partialMixes;
  return fc
    .tuple(options.ndim === undefined ? fc.integer({ min: 0, max: 3 }) : fc.constant(options.ndim), ops)
    .chain(([ndim, mix]) =>
      fc
        .tuple(layouts(ndim, mix, options.readings), layouts(ndim, [], options.readings))
        .chain(([source, target]) =>
          tensors(name, ndim, mix, source, target, options.extent).map((list) => ({ source, target, list })),
        ),
    );
}

/** Three hosts of very different size, their ranks anywhere. */
const mixedHosts = Array.from({ length: 32 }, (_, rank) => [7, 7, 0, 7, 3][(rank * rank) % 5]!);

/** Whole inputs of one or two pairs, their tensors in turns, with limits small enough to be felt. */
export function planInputs(options: InputOptions): fc.Arbitrary<PlanInput> {
  return fc
    .record({
      a: pairs("a", options),
      b: fc.option(pairs("b", options), { nil: undefined, freq: 3 }),
      bucketBytes: options.bucketBytes ?? fc.constantFrom(undefined, 4096, 5000),
      bucketsInFlight: fc.constantFrom(undefined, 1, 3),
      peersInFlight: fc.constantFrom(undefined, 1, 2),
      hosts: fc.constantFrom(undefined, { ranksPerHost: 1 }, { ranksPerHost: 4 }, { hosts: mixedHosts }),
      strategy: fc.constantFrom("direct", "striped", "striped", "auto"),
      order: fc.nat(255),
    })
    .map(({ a, b, bucketBytes, bucketsInFlight, peersInFlight, hosts, strategy, order }) => {
      const lists = [a.list, b?.list ?? []].map((list) => [...list]);
      const mixed: TensorInput[] = [];
      while (lists.some((list) => list.length > 0)) {
        const turn = (order >> mixed.length) & 1;
        const next = (lists[turn]!.length > 0 ? lists[turn]! : lists[1 - turn]!).shift()!;
        mixed.push({ name: `t${mixed.length}`, ...next });
      }
      return {
        pairs: {
          a: { source: a.source, target: a.target },
          ...(b ? { b: { source: b.source, target: b.target } } : {}),
        },
        tensors: mixed,
        strategy,
        ...(bucketBytes === undefined ? {} : { bucketBytes }),
        ...(bucketsInFlight === undefined ? {} : { bucketsInFlight }),
        ...(peersInFlight === undefined ? {} : { peersInFlight }),
        ...(hosts === undefined
          ? {}
          : { topology: { ...hosts, hostMBps: 1000, networkMBps: 100, latencyUs: 0 } }),
      } as const;
    });
}
