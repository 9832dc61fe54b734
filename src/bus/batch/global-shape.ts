/** From what each rank of a side holds to what the side holds together. */
import { type ErrorCode, TensorBusError } from "../../errors.ts";
import {
  coordinateOf,
  formatPlacement,
  holdingAt,
  type Layout,
  type Placement,
  type StridedShardReading,
} from "../../layout/index.ts";
import type { LayoutMessage } from "../queue/commands.ts";
import { SideLayouts } from "./side-layouts.ts";
import { absent, type TensorKind, type TensorTable } from "./tensor-kinds.ts";
import { requireHolders } from "./union.ts";

/** What a side is known by when its tables are put together. */
export interface SideContext {
  readonly side: string;
  /** For each pair its name, the layout of tensors that name none, and whether tensors are whole: rank i's to rank i. */
  readonly pairs: readonly {
    readonly pair: string;
    readonly layout: LayoutMessage | undefined;
    readonly whole: boolean;
  }[];
  /** The ranks of the tables, in their order, and the layouts that each table's kinds name. */
  readonly ranks: readonly number[];
  readonly layouts: readonly (readonly LayoutMessage[])[];
  readonly nameOf: (tensor: number) => string;
}

interface SolvedSide {
  readonly tables: readonly TensorTable[];
  /** The table of each rank. */
  readonly tableOf: readonly number[];
  /** Those that kinds of the tables name. */
  readonly layouts: readonly LayoutMessage[];
}

/**
 * The tables of a side with global shapes in place of local ones, but for whole tensors; tables that are equal come as one.
 * `TB_SHAPE`, `TB_PLACEMENT`, `TB_BATCH_MISMATCH` and `TB_PAIR_MISMATCH` name pair, tensor, rank and both values.
 */
export function solveSide(tables: readonly TensorTable[], context: SideContext): SolvedSide {
  const groups = groupTensors(tables);
  const layouts = new SideLayouts();
  const solved = groups.members.map((kinds, group) =>
    solveKind(
      kinds.map((kind, member) => (kind === absent ? undefined : tables[member]!.kinds[kind]!)),
      groups.first[group]!,
      context,
      layouts,
    ),
  );
  const distinct: TensorTable[] = [];
  const byText = new Map<string, number>();
  const isOne = context.pairs.every(({ whole }) => !whole);
  const tableOf = tables.map((_, member) => {
    if (isOne && distinct.length > 0) return 0;
    const kinds = solved.map((each) => each[member]!);
    const text = JSON.stringify(kinds);
    const known = byText.get(text) ?? distinct.push({ kinds, kindOf: groups.groupOf }) - 1;
    byText.set(text, known);
    return known;
  });
  return { tables: distinct, tableOf, layouts: layouts.messages };
}

interface Groups {
  readonly groupOf: Uint32Array;
  /** For each group its first tensor, and the kind that each member has there. */
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
      // One more than there are: `absent` is the last.
      const kind = Math.min(kindOf[tensor]!, kinds.length);
      const key = groupOf[tensor]! * (kinds.length + 1) + kind;
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

/** One kind of each rank that holds the tensor. */
interface HeldKind {
  readonly rank: number;
  readonly member: number;
  readonly kind: TensorKind;
}

/** What the ranks' kinds of one tensor are together, for each rank: one and the same, unless tensors are whole. */
function solveKind(
  kinds: readonly (TensorKind | undefined)[],
  tensor: number,
  context: SideContext,
  layouts: SideLayouts,
): TensorKind[] {
  const { side, ranks } = context;
  const held = kinds.flatMap((kind, member): HeldKind[] =>
    kind === undefined ? [] : [{ rank: ranks[member]!, member, kind }],
  );
  const first = held[0]!;
  const { pair, layout: shared, whole } = context.pairs[first.kind.pair]!;
  const name = context.nameOf(tensor);
  const where = `pair ${pair}, side ${side}`;
  const refuse: Refuse = (code, { rank }, message, details) =>
    new TensorBusError(code, `${where}, tensor ${name}, rank ${rank}: ${message}`, {
      details: { pair, side, tensor: name, rank, ...details },
    });
  for (const each of held) {
    if (each.kind.dtype === first.kind.dtype) continue;
    const message = `its dtype is ${each.kind.dtype}, but rank ${first.rank} has ${first.kind.dtype}`;
    throw refuse("TB_BATCH_MISMATCH", each, message, {
      field: "dtype",
      value: each.kind.dtype,
      expected: first.kind.dtype,
    });
  }
  const requireHeldBy = (mesh: Iterable<number>) => {
    const holders = new Set(held.map(({ rank }) => rank));
    requireHolders(where, name, mesh, (rank) => holders.has(rank), { pair, side });
  };
  if (whole) {
    const own = held.find(({ kind }) => kind.layout !== undefined);
    if (own !== undefined) {
      const message = `it names a layout, but the other side of pair ${pair} has none: there rank i's tensor goes whole to rank i`;
      throw refuse("TB_PAIR_MISMATCH", own, message, {});
    }
    requireHeldBy(ranks);
    return kinds.map((kind) => ({ pair: kind!.pair, dtype: kind!.dtype, shape: kind!.shape }));
  }
  const id = layoutIdOf(held, shared, context, layouts, refuse);
  const layout = layouts.at(id);
  requireHeldBy(layout.mesh.ranks);
  const shape = statedShape(held, refuse) ?? sumShape(layout, held, refuse);
  requireFit(layout, shape, held, refuse);
  const solved = { pair: first.kind.pair, dtype: first.kind.dtype, shape, layout: id };
  return kinds.map(() => solved);
}

type Refuse = (
  code: ErrorCode,
  who: HeldKind,
  message: string,
  details: Record<string, unknown>,
) => TensorBusError;

/** The layout by which these ranks together hold the tensor. */
function layoutIdOf(
  held: readonly HeldKind[],
  shared: LayoutMessage | undefined,
  context: SideContext,
  layouts: SideLayouts,
  refuse: Refuse,
): number {
  const idOf = (each: HeldKind): number => {
    const { layout } = each.kind;
    const message = layout === undefined ? shared : context.layouts[each.member]![layout]!;
    if (message === undefined)
      throw refuse("TB_PAIR_MISMATCH", each, "it names no layout, and its pair does not have one", {});
    const id = layouts.add(message);
    if (layouts.at(id).mesh.ranks.includes(each.rank)) return id;
    throw refuse("TB_MESH", each, "its rank is not in the mesh of its layout", { ranks: message.mesh.ranks });
  };
  const ids = [...new Set(held.map(idOf))].sort((a, b) => a - b);
  const together = ids.length === 1 ? ids[0] : layouts.merge(ids);
  if (together !== undefined) return together;
  const odd = held.find((each) => idOf(each) !== ids[0])!;
  const [says, expected] = [idOf(odd), ids[0]!].map((id) => formatLayout(layouts.messages[id]!));
  throw refuse("TB_PAIR_MISMATCH", odd, `its layout is ${says}, but another rank has ${expected}`, {
    field: "layout",
    value: says,
    expected,
  });
}

function formatLayout({ mesh, placements }: LayoutMessage): string {
  return `[${placements.join(", ")}] on a mesh of ${mesh.shape.join(" x ")} (ranks ${mesh.ranks.join(", ")})`;
}

function statedShape(held: readonly HeldKind[], refuse: Refuse): readonly number[] | undefined {
  const stated = held.find(({ kind }) => kind.globalShape !== undefined)?.kind.globalShape;
  if (stated === undefined) return undefined;
  for (const each of held) {
    const { globalShape } = each.kind;
    if (globalShape === undefined || String(globalShape) === String(stated)) continue;
    throw refuse("TB_SHAPE", each, `its global shape is [${globalShape}], not [${stated}]`, {
      value: globalShape,
      expected: stated,
    });
  }
  return stated;
}

/** The tensor dimension that a placement cuts, counted from 0. `TB_PLACEMENT` if the tensor has no such dimension. */
function cutDimension(placement: Placement, ndim: number, who: HeldKind, refuse: Refuse): number | undefined {
  if (placement.kind !== "shard" && placement.kind !== "stridedShard") return undefined;
  const dim = placement.dim < 0 ? placement.dim + ndim : placement.dim;
  if (dim >= 0 && dim < ndim) return dim;
  const text = formatPlacement(placement);
  const message = `${text} cuts dimension ${placement.dim} of a tensor that has ${ndim}; replicate it, or name its own layout`;
  throw refuse("TB_PLACEMENT", who, message, { placement: text, ndim });
}

/**
 * The shards of a dimension are a partition of it: its size is the sum of what one rank of each coordinate of the mesh
 * dimensions that cut it has. Readings other than that are found by `requireFit`.
 */
function sumShape(layout: Layout, held: readonly HeldKind[], refuse: Refuse): number[] {
  const first = held[0]!;
  const ndim = first.kind.shape.length;
  const cut = layout.placements.map((placement) => cutDimension(placement, ndim, first, refuse));
  const locals = new Map(held.map(({ rank, kind }) => [rank, kind.shape]));
  return Array.from({ length: ndim }, (_, dim) => {
    let size = 0;
    for (const rank of layout.mesh.ranks) {
      const coordinate = coordinateOf(layout, rank)!;
      if (coordinate.every((at, meshDim) => cut[meshDim] === dim || at === 0)) {
        size += locals.get(rank)?.[dim] ?? 0;
      }
    }
    return size;
  });
}

/** `TB_SHAPE` for a rank whose local shape is not what its layout gives it, in any reading that the layout leaves open. */
function requireFit(
  layout: Layout,
  shape: readonly number[],
  held: readonly HeldKind[],
  refuse: Refuse,
): void {
  for (const placement of layout.placements) cutDimension(placement, shape.length, held[0]!, refuse);
  const wrong = findMisfit(layout, shape, held);
  if (wrong === undefined) return;
  const { each, expected } = wrong;
  const gives = expected === undefined ? "gives it no reading" : `gives it [${expected}]`;
  throw refuse(
    "TB_SHAPE",
    each,
    `its shape is [${each.kind.shape}]; of a tensor of [${shape}] its layout ${gives}`,
    { value: each.kind.shape, expected: expected ?? [], globalShape: shape },
  );
}

interface Misfit {
  readonly each: HeldKind;
  readonly expected: readonly number[] | undefined;
}

function findMisfit(layout: Layout, shape: readonly number[], held: readonly HeldKind[]): Misfit | undefined {
  const readings: StridedShardReading[] =
    layout.stridedShard === undefined ? ["split", "order"] : [layout.stridedShard];
  let first: Misfit | undefined;
  for (const reading of readings) {
    const misfit = findMisfitOf(reading, layout, shape, held);
    if (misfit === undefined) return undefined;
    first ??= misfit;
  }
  return first;
}

function findMisfitOf(
  reading: StridedShardReading,
  layout: Layout,
  shape: readonly number[],
  held: readonly HeldKind[],
): Misfit | undefined {
  for (const each of held) {
    const expected = expectedShape(layout, shape, each.rank, reading);
    if (String(expected) !== String(each.kind.shape)) return { each, expected };
  }
  return undefined;
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
