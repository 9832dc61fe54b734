import { holdingAt, type Run } from "../../layout/holding.ts";
import { DeviceMesh, type Placement, type StridedShardReading } from "../../layout/index.ts";
import type { SelectInput } from "../../plan/input/types.ts";
import { partsError } from "./errors.ts";
import { coordinatesOf } from "./mesh-coordinates.ts";

/** Says where a range of a tensor lies: as a planner's layout, and the coordinate that is selected of it. */
export interface RangeLayout {
  readonly mesh: DeviceMesh;
  readonly placements: readonly Placement[];
  readonly stridedShard: StridedShardReading | undefined;
  readonly select: SelectInput | undefined;
}

/**
 * The layout of a range of a tensor whose layout is given: a shard becomes one by sizes, or the one coordinate that has all of
 * the range. What cuts a dimension twice becomes one dimension of the mesh. `TB_PARTS` if a rank has several runs of it.
 */
export function restrict(
  layout: RangeLayout,
  shape: readonly number[],
  start: readonly number[],
  length: readonly number[],
): RangeLayout {
  let current = layout;
  let extents = [...shape];
  for (const [dim, extent] of shape.entries()) {
    if (start[dim] === 0 && length[dim] === extent) continue;
    current = restrictDim(current, extents, dim, start[dim]!, length[dim]!);
    extents = extents.map((size, other) => (other === dim ? length[dim]! : size));
  }
  return current;
}

function restrictDim(
  layout: RangeLayout,
  shape: readonly number[],
  dim: number,
  start: number,
  length: number,
): RangeLayout {
  const cutters = layout.placements.flatMap((placement, meshDim) =>
    (placement.kind === "shard" || placement.kind === "stridedShard") && placement.dim === dim
      ? [meshDim]
      : [],
  );
  if (cutters.length === 0) return layout;
  const { mesh, runs, at } =
    cutters.length === 1 ? alone(layout, shape, dim, cutters[0]!) : flattened(layout, shape, dim, cutters);
  const sizes = runs.map((run) =>
    run === undefined
      ? 0
      : Math.max(0, Math.min(run.start + run.length, start + length) - Math.max(run.start, start)),
  );
  const others = layout.placements.filter((_, meshDim) => !cutters.includes(meshDim));
  const owner = sizes.indexOf(length);
  const placement: Placement =
    owner >= 0 && layout.select === undefined ? { kind: "replicate" } : { kind: "shard", dim, sizes };
  const moved = layout.select && { ...layout.select, dim: movedDim(layout.select.dim, cutters, at) };
  return {
    mesh,
    placements: [...others.slice(0, at), placement, ...others.slice(at)],
    stridedShard: layout.stridedShard,
    select:
      moved ?? (owner >= 0 && sizes.length > 1 ? { dim: at, index: owner, of: sizes.length } : undefined),
  };
}

interface CutRuns {
  readonly mesh: DeviceMesh;
  /** The place in the mesh of the dimension that cuts. */
  readonly at: number;
  /** What each of its coordinates has of the tensor's dimension. */
  readonly runs: readonly (Run | undefined)[];
}

function alone(
  { mesh, placements, stridedShard }: RangeLayout,
  shape: readonly number[],
  dim: number,
  cutter: number,
): CutRuns {
  const runs = Array.from({ length: mesh.shape[cutter]! }, (_, coordinate) =>
    oneRun(
      holdingAt(
        mesh.shape,
        placements,
        shape,
        mesh.shape.map((_, other) => (other === cutter ? coordinate : 0)),
        stridedShard,
      ).runs[dim]!,
      dim,
    ),
  );
  return { mesh, at: cutter, runs };
}

/** Several mesh dimensions that cut one of the tensor's, seen as one dimension in the order of the elements that its coordinates have. */
function flattened(
  { mesh, placements, stridedShard }: RangeLayout,
  shape: readonly number[],
  dim: number,
  cutters: readonly number[],
): CutRuns {
  const outer = mesh.shape.map((_, meshDim) => meshDim).filter((meshDim) => !cutters.includes(meshDim));
  const groups = new Map<string, { readonly run: Run | undefined; readonly ranks: Map<string, number> }>();
  for (const [position, rank] of mesh.ranks.entries()) {
    const coordinate = coordinatesOf(mesh, position);
    const inner = cutters.map((meshDim) => coordinate[meshDim]).join();
    let group = groups.get(inner);
    if (group === undefined) {
      const held = holdingAt(mesh.shape, placements, shape, coordinate, stridedShard).runs[dim]!;
      group = { run: oneRun(held, dim), ranks: new Map() };
      groups.set(inner, group);
    }
    group.ranks.set(outer.map((meshDim) => coordinate[meshDim]).join(), rank);
  }
  const sorted = [...groups.values()].sort(
    (a, b) => (a.run?.start ?? Number.POSITIVE_INFINITY) - (b.run?.start ?? Number.POSITIVE_INFINITY) || 0,
  );
  const at = outer.filter((meshDim) => meshDim < cutters[0]!).length;
  const outerShape = outer.map((meshDim) => mesh.shape[meshDim]!);
  const flat = [...outerShape.slice(0, at), sorted.length, ...outerShape.slice(at)];
  const order = new DeviceMesh(flat);
  const ranks = Array.from({ length: mesh.size }, (_, position) => {
    const coordinate = coordinatesOf(order, position);
    const key = coordinate.filter((_, index) => index !== at).join();
    return sorted[coordinate[at]!]!.ranks.get(key)!;
  });
  return { mesh: new DeviceMesh(flat, { ranks }), at, runs: sorted.map(({ run }) => run) };
}

function movedDim(dim: number, cutters: readonly number[], at: number): number {
  const before = dim - cutters.filter((cutter) => cutter < dim).length;
  return before >= at ? before + 1 : before;
}

function oneRun(runs: readonly Run[], dim: number): Run | undefined {
  if (runs.length > 1) {
    throw partsError(
      `a range of dimension ${dim} is wanted of a layout that gives a rank ${runs.length} runs of it`,
      {
        dim,
        runs: runs.length,
      },
    );
  }
  return runs[0];
}
