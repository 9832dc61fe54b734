import { DeviceMesh, type Placement } from "../../layout/index.ts";

/** A dimension of a side's mesh: how many coordinates, and how far apart their ranks are. */
export interface MeshDim {
  readonly size: number;
  readonly stride: number;
  readonly placement: Placement;
}

/** A mesh of the dimensions that have more than one coordinate, and their placements; one of a single rank has one. */
export function meshOf(
  first: number,
  dims: readonly MeshDim[],
): { readonly mesh: DeviceMesh; readonly placements: Placement[]; readonly kept: readonly number[] } {
  const kept = dims.flatMap(({ size }, dim) => (size > 1 ? [dim] : []));
  if (kept.length === 0) {
    return { mesh: new DeviceMesh([1], { ranks: [first] }), placements: [{ kind: "replicate" }], kept };
  }
  let ranks = [first];
  for (const dim of kept) {
    const { size, stride } = dims[dim]!;
    ranks = ranks.flatMap((rank) => Array.from({ length: size }, (_, index) => rank + index * stride));
  }
  return {
    mesh: new DeviceMesh(
      kept.map((dim) => dims[dim]!.size),
      { ranks },
    ),
    placements: kept.map((dim) => dims[dim]!.placement),
    kept,
  };
}

export const replicate: Placement = { kind: "replicate" };
export const shard = (dim: number, sizes?: readonly number[]): Placement => ({
  kind: "shard",
  dim,
  ...(sizes !== undefined && { sizes }),
});
