/** From what each rank of a side holds to what the side holds together. */
import { TensorBusError } from "../../errors.ts";
import {
  coordinateOf,
  type DType,
  holdingAt,
  type Layout,
  type StridedShardReading,
} from "../../layout/index.ts";

/** Tensors of one rank that share pair, type and local shape. */
export interface TensorKind {
  /** Index of the pair in the batch. */
  readonly pair: number;
  readonly dtype: DType;
  /** The local shape; the global one where the table is a side's. */
  readonly shape: readonly number[];
  /** Where the client has said it. */
  readonly globalShape?: readonly number[] | undefined;
}

/** All tensors of a batch, in its order: the kind of each. */
export interface TensorTable {
  readonly kinds: readonly TensorKind[];
  readonly kindOf: Uint32Array;
}

/** What a side is known by when its tables are put together. */
export interface SideContext {
  readonly side: string;
  readonly pairs: readonly string[];
  /** One a pair; without one, tensors are whole. */
  readonly layouts: readonly (Layout | undefined)[];
  /** The ranks of the tables, in their order. */
  readonly ranks: readonly number[];
  readonly nameOf: (tensor: number) => string;
}

/**
 * The tables of a side with global shapes in place of local ones where there is a layout; tables that are equal come as
 * one. `TB_SHAPE`, `TB_BATCH_MISMATCH` name pair, tensor, rank and both values.
 */
export function solveSide(
  tables: readonly TensorTable[],
  context: SideContext,
): { readonly tables: readonly TensorTable[]; readonly tableOf: readonly number[] } {
  const groups = groupTensors(tables);
  const solved = groups.members.map((kinds, group) => {
    const tensor = groups.first[group]!;
    return solveKind(
      kinds.map((kind, member) => tables[member]!.kinds[kind]!),
      tensor,
      context,
    );
  });
  if (context.layouts.every((layout) => layout !== undefined)) {
    return {
      tables: [{ kinds: solved.map((kinds) => kinds[0]!), kindOf: groups.groupOf }],
      tableOf: tables.map(() => 0),
    };
  }
  const distinct: TensorTable[] = [];
  const byText = new Map<string, number>();
  const tableOf = tables.map((_, member) => {
    const kinds = solved.map((each) => each[member]!);
    const text = JSON.stringify(kinds);
    const known = byText.get(text) ?? distinct.push({ kinds, kindOf: groups.groupOf }) - 1;
    byText.set(text, known);
    return known;
  });
  return { tables: distinct, tableOf };
}

interface Groups {
  readonly groupOf: Uint32Array;
  /** Of each group its first tensor, and the kind that each member has there. */
  readonly first: readonly number[];
  readonly members: readonly (readonly number[])[];
}

/** Tensors that are of the same kind on each rank, whatever kind that is there. */
function groupTensors(tables: readonly TensorTable[]): Groups {
  const count = tables[0]!.kindOf.length;
  let groupOf = new Uint32Array(count);
  let first: number[] = count === 0 ? [] : [0];
  for (const { kinds, kindOf } of tables) {
    const refined = new Map<number, number>();
    const next = new Uint32Array(count);
    first = [];
    for (let tensor = 0; tensor < count; tensor++) {
      const key = groupOf[tensor]! * kinds.length + kindOf[tensor]!;
      let group = refined.get(key);
      if (group === undefined) {
        group = first.push(tensor) - 1;
        refined.set(key, group);
      }
      next[tensor] = group;
    }
    groupOf = next;
  }
  const members = first.map((tensor) => tables.map(({ kindOf }) => kindOf[tensor]!));
  return { groupOf, first, members };
}

function solveKind(kinds: readonly TensorKind[], tensor: number, context: SideContext): TensorKind[] {
  const { side, pairs, layouts, ranks } = context;
  const [one] = kinds as [TensorKind];
  const pair = pairs[one.pair]!;
  const name = context.nameOf(tensor);
  kinds.forEach((kind, member) => {
    for (const [field, is, expected] of [
      ["pair", pairs[kind.pair], pair],
      ["dtype", kind.dtype, one.dtype],
    ] as const) {
      if (is === expected) continue;
      throw new TensorBusError(
        "TB_BATCH_MISMATCH",
        `pair ${pair}, side ${side}, tensor ${name}: ${field} of rank ${ranks[member]} is ${is}, that of rank ${ranks[0]} is ${expected}`,
        { details: { pair, side, tensor: name, rank: ranks[member], field, value: is, expected } },
      );
    }
  });
  const layout = layouts[one.pair];
  if (layout === undefined)
    return kinds.map(({ pair: index, dtype, shape }) => ({ pair: index, dtype, shape }));
  const refuse = (member: number, message: string, details: Record<string, unknown>) =>
    new TensorBusError(
      "TB_SHAPE",
      `pair ${pair}, side ${side}, tensor ${name}, rank ${ranks[member]}: ${message}`,
      {
        details: { pair, side, tensor: name, rank: ranks[member], ...details },
      },
    );
  const locals = new Map(ranks.map((rank, member) => [rank, kinds[member]!.shape]));
  const shape = statedShape(kinds, refuse) ?? sumShape(layout, locals, one.shape.length);
  const wrong = findMisfit(layout, shape, ranks, kinds);
  if (wrong !== undefined) {
    throw refuse(
      wrong.member,
      `its shape is [${kinds[wrong.member]!.shape}]; of a tensor of [${shape}] its layout gives it [${wrong.expected}]`,
      { value: kinds[wrong.member]!.shape, expected: wrong.expected, globalShape: shape },
    );
  }
  const solved = { pair: one.pair, dtype: one.dtype, shape };
  return kinds.map(() => solved);
}

function statedShape(
  kinds: readonly TensorKind[],
  refuse: (member: number, message: string, details: Record<string, unknown>) => TensorBusError,
): readonly number[] | undefined {
  const stated = kinds.find(({ globalShape }) => globalShape !== undefined)?.globalShape;
  if (stated === undefined) return undefined;
  kinds.forEach(({ globalShape }, member) => {
    if (globalShape === undefined || String(globalShape) === String(stated)) return;
    throw refuse(member, `its global shape is [${globalShape}], not [${stated}]`, {
      value: globalShape,
      expected: stated,
    });
  });
  return stated;
}

/**
 * The shards of a dimension are a partition of it: its size is the sum of what one rank of each coordinate of the mesh
 * dimensions that cut it has. Other readings than that are found by `findMisfit`.
 */
function sumShape(layout: Layout, locals: ReadonlyMap<number, readonly number[]>, ndim: number): number[] {
  return Array.from({ length: ndim }, (_, dim) => {
    const cutting = layout.placements.map(
      (placement) =>
        (placement.kind === "shard" || placement.kind === "stridedShard") &&
        (placement.dim + ndim) % ndim === dim,
    );
    let size = 0;
    for (const rank of layout.mesh.ranks) {
      const coordinate = coordinateOf(layout, rank)!;
      if (coordinate.every((at, meshDim) => cutting[meshDim] || at === 0))
        size += locals.get(rank)?.[dim] ?? 0;
    }
    return size;
  });
}

/** The first rank whose local shape is not what its layout gives it, in any reading that the layout leaves open. */
function findMisfit(
  layout: Layout,
  shape: readonly number[],
  ranks: readonly number[],
  kinds: readonly TensorKind[],
): { readonly member: number; readonly expected: readonly number[] } | undefined {
  const readings: StridedShardReading[] =
    layout.stridedShard === undefined ? ["split", "order"] : [layout.stridedShard];
  let first: { member: number; expected: readonly number[] } | undefined;
  for (const reading of readings) {
    let misfit: typeof first;
    for (const [member, rank] of ranks.entries()) {
      const expected = expectedShape(layout, shape, rank, reading);
      if (expected !== undefined && String(expected) === String(kinds[member]!.shape)) continue;
      misfit = { member, expected: expected ?? [] };
      break;
    }
    if (misfit === undefined) return undefined;
    first ??= misfit;
  }
  return first;
}

function expectedShape(
  { mesh, placements }: Layout,
  shape: readonly number[],
  rank: number,
  reading: StridedShardReading,
): readonly number[] | undefined {
  const coordinate = coordinateOf({ mesh, placements }, rank);
  if (coordinate === undefined) return undefined;
  try {
    return holdingAt(mesh.shape, placements, shape, coordinate, reading).localShape;
  } catch (error) {
    if (error instanceof TensorBusError && error.code === "TB_STRIDED_SHARD") return undefined;
    throw error;
  }
}
