import {
  type DeviceMesh,
  type DType,
  formatPlacement,
  isOpaque,
  type Layout,
  type PartialOp,
  type Placement,
  partialOps,
  type StridedShardReading,
  selectedCoordinate,
  shardSizes,
  sumOf,
  uncut,
} from "../../layout/index.ts";
import { checkKeys, fail } from "./check.ts";
import type { SelectInput, TensorSideInput } from "./types.ts";

/** A layout of a pair, checked as far as it can be without a tensor. Dimensions may still be negative. */
export interface SideLayout {
  readonly mesh: DeviceMesh;
  readonly meshNumber: number;
  readonly placements: readonly Placement[];
  readonly stridedShard: StridedShardReading | undefined;
  /** The operator of its Partial dimensions: avg folds as sum and divides afterwards. */
  readonly op: PartialOp | undefined;
  readonly hasAvg: boolean;
}

/** A layout as one kind of tensor meets it: dimensions from 0, the reading, and what of the mesh is kept. */
export interface NormalSide {
  readonly layout: SideLayout;
  readonly placements: readonly Placement[];
  /** The reading that the tensor itself asked for. */
  readonly override: StridedShardReading | undefined;
  /** The reading in force. */
  readonly reading: StridedShardReading | undefined;
  /** Mesh dimension that is selected in and among how many things, -1 and 0 without a selection. */
  readonly selectDim: number;
  readonly selectOf: number;
  /** How many things each coordinate owns, if that is not what `Shard` makes of them. */
  readonly selectSizes: readonly number[] | undefined;
  /** What one step of the selected coordinate is in the ranks of the mesh. */
  readonly selectStride: number;
  readonly subShape: readonly number[];
  /** Equal if the geometry is. */
  readonly key: string;
}

export function sideLayout(
  layout: Layout,
  mesh: DeviceMesh,
  meshNumber: number,
  place: string,
  isTarget: boolean,
): SideLayout {
  checkKeys(layout, ["mesh", "placements", "stridedShard"], place);
  const given = layout.placements;
  if (!Array.isArray(given)) throw fail("TB_PLACEMENT", `${place}.placements must be an array`, { place });
  const placements = given.map((placement, dim) => checkPlacement(placement, `${place}.placements[${dim}]`));
  if (placements.length !== mesh.ndim) {
    throw fail(
      "TB_PLACEMENT",
      `${place}: a mesh of ${mesh.ndim} dimensions needs as many placements, not ${placements.length}`,
      {
        place,
        placements: placements.map(formatPlacement),
        meshShape: mesh.shape,
      },
    );
  }
  placements.forEach((placement, dim) => {
    if (placement.kind === "shard") checkCount(placement.sizes, mesh, dim, `${place}.placements[${dim}]`);
  });
  const ops = [...new Set(placements.flatMap((one) => (one.kind === "partial" ? [one.op] : [])))];
  if (isTarget && ops.length > 0) {
    throw fail("TB_PARTIAL_TARGET", `${place}: a target cannot be Partial`, {
      place,
      placements: placements.map(formatPlacement),
    });
  }
  if (ops.length > 1 && !ops.every((op) => op === "sum" || op === "avg")) {
    throw fail("TB_PARTIAL_OP", `${place}: Partial operators ${ops.join(" and ")} cannot be mixed`, {
      place,
      ops,
    });
  }
  return {
    mesh,
    meshNumber,
    placements,
    stridedShard: checkReading(layout.stridedShard, place),
    op: ops.includes("avg") ? "sum" : ops[0],
    hasAvg: ops.includes("avg"),
  };
}

/** One size a coordinate. */
function checkCount(
  sizes: readonly number[] | undefined,
  mesh: DeviceMesh,
  dim: number,
  place: string,
): void {
  if (sizes === undefined || sizes.length === mesh.shape[dim]) return;
  throw fail(
    "TB_PLACEMENT",
    `${place}: ${sizes.length} sizes for the ${mesh.shape[dim]} coordinates of mesh dimension ${dim}`,
    { place, sizes, count: sizes.length, coordinates: mesh.shape[dim] },
  );
}

function checkReading(
  reading: StridedShardReading | undefined,
  place: string,
): StridedShardReading | undefined {
  if (reading === undefined || reading === "split" || reading === "order") return reading;
  throw fail("TB_PLACEMENT", `${place}.stridedShard must be "split" or "order"`, {
    place,
    stridedShard: reading,
  });
}

function checkPlacement(placement: Placement, place: string): Placement {
  const no = (why: string) => fail("TB_PLACEMENT", `${place}: ${why}`, { place, placement });
  if (typeof placement !== "object" || placement === null) throw no("this is not a placement");
  switch (placement.kind) {
    case "replicate":
      return { kind: "replicate" };
    case "shard":
      if (!Number.isSafeInteger(placement.dim)) throw no("dim must be an integer");
      return placement.sizes === undefined
        ? { kind: "shard", dim: placement.dim }
        : { kind: "shard", dim: placement.dim, sizes: shardSizes(placement.sizes, place) };
    case "stridedShard":
      if (!Number.isSafeInteger(placement.dim)) throw no("dim must be an integer");
      if (!Number.isSafeInteger(placement.splitFactor) || placement.splitFactor < 1) {
        throw no(`splitFactor must be at least 1, got ${placement.splitFactor}`);
      }
      return { kind: "stridedShard", dim: placement.dim, splitFactor: placement.splitFactor };
    case "partial":
      if (!partialOps.includes(placement.op)) {
        throw fail("TB_PARTIAL_OP", `${place}: unknown Partial operator ${JSON.stringify(placement.op)}`, {
          place,
          op: placement.op,
          known: partialOps,
        });
      }
      return { kind: "partial", op: placement.op };
    default:
      throw no("this is not a placement");
  }
}

const integers = new Set<DType>(["int64", "int32", "int16", "int8", "uint8", "bool"]);

export function normalSide(
  layout: SideLayout,
  side: TensorSideInput | undefined,
  ndim: number,
  dtype: DType,
  place: string,
  tensor: string,
): NormalSide {
  if (side !== undefined) {
    if (typeof side !== "object" || side === null)
      throw fail("TB_PLAN_INPUT", `${place}: must be an object`, { tensor });
    checkKeys(side, ["select", "stridedShard"], place);
  }
  if (layout.op !== undefined && isOpaque(dtype)) {
    throw fail("TB_PARTIAL_OP", `${place}: ${dtype} cannot be reduced, it is only moved`, {
      tensor,
      place,
      dtype,
    });
  }
  if (layout.hasAvg && integers.has(dtype)) {
    throw fail("TB_PARTIAL_OP", `${place}: avg is not defined for ${dtype}`, { tensor, place, dtype });
  }
  const override = checkReading(side?.stridedShard, place);
  const isStrided = layout.placements.some((one) => one.kind === "stridedShard");
  const reading = isStrided ? (override ?? layout.stridedShard) : undefined;
  const subShape = [...layout.mesh.shape];
  const select = side?.select;
  const selectSizes = select === undefined ? undefined : checkSelect(select, layout.mesh, place, tensor);
  if (select !== undefined) subShape[select.dim] = 1;
  const isUncut = (placement: Placement, dim: number) =>
    dim === select?.dim && placement.kind === "shard" && placement.sizes !== undefined;
  const placements = layout.placements.map((placement, dim) => {
    const known = fromFront(placement, ndim, place, tensor);
    return dim === select?.dim ? uncut(known) : known;
  });
  return {
    layout,
    placements,
    override,
    reading,
    selectDim: select?.dim ?? -1,
    selectOf: select?.of ?? 0,
    selectSizes,
    selectStride:
      select === undefined
        ? 0
        : layout.mesh.shape.slice(select.dim + 1).reduce((product, size) => product * size, 1),
    subShape,
    key: `${subShape.join("x")};${reading ?? ""}${layout.placements.some(isUncut) ? ";uncut" : ""}`,
  };
}

/** Checks a selection; its sizes, if it has any. */
function checkSelect(
  select: SelectInput,
  mesh: DeviceMesh,
  place: string,
  tensor: string,
): readonly number[] | undefined {
  if (typeof select !== "object" || select === null) {
    throw fail("TB_MESH", `${place}: select must be an object`, { tensor, select });
  }
  checkKeys(select, ["dim", "index", "of", "sizes"], `${place}, select`);
  if (!Number.isSafeInteger(select.dim) || select.dim < 0 || select.dim >= mesh.ndim) {
    throw fail("TB_MESH", `${place}: there is no mesh dimension ${select.dim}`, { tensor, select });
  }
  if (!Number.isSafeInteger(select.of) || select.of < 1) {
    throw fail("TB_MESH", `${place}: select.of must be at least 1, got ${select.of}`, { tensor, select });
  }
  if (select.sizes === undefined) return undefined;
  const sizes = shardSizes(select.sizes, `${place}, select.sizes`);
  checkCount(sizes, mesh, select.dim, `${place}, select.sizes`);
  if (sumOf(sizes) !== select.of) {
    const why = `the sizes add up to ${sumOf(sizes)}, and select.of is ${select.of}`;
    throw fail("TB_PLACEMENT", `${place}, select: ${why}`, {
      tensor,
      select,
      sum: sumOf(sizes),
      of: select.of,
    });
  }
  return sizes;
}

/** The placement with its dimension counted from the front; what PyTorch rejects, and its quirks, are rejected. */
function fromFront(placement: Placement, ndim: number, place: string, tensor: string): Placement {
  if (placement.kind === "replicate" || placement.kind === "partial") return placement;
  const { dim } = placement;
  if (dim < -ndim || dim >= ndim) {
    throw fail(
      "TB_PLACEMENT",
      `${place}: ${formatPlacement(placement)} does not fit a tensor of ${ndim} dimension${ndim === 1 ? "" : "s"}`,
      { tensor, place, placement: formatPlacement(placement), ndim },
    );
  }
  return dim < 0 ? { ...placement, dim: dim + ndim } : placement;
}

/** The index of the first rank of the sub-mesh that owns `index`, in the ranks of the mesh. */
export function subMeshBase(side: NormalSide, index: number): number {
  if (side.selectDim < 0) return 0;
  const { selectDim, selectOf, selectSizes, layout } = side;
  const owner = { index, of: selectOf, ...(selectSizes !== undefined && { sizes: selectSizes }) };
  return selectedCoordinate(owner, layout.mesh.shape[selectDim]!) * side.selectStride;
}
