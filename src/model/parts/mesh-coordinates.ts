import type { DeviceMesh } from "../../layout/index.ts";

/** The coordinate of the rank at a position of a mesh's flat list. */
export function coordinatesOf(mesh: DeviceMesh, position: number): number[] {
  const coordinate = new Array<number>(mesh.ndim);
  let rest = position;
  for (let dim = mesh.ndim - 1; dim >= 0; dim--) {
    coordinate[dim] = rest % mesh.shape[dim]!;
    rest = Math.floor(rest / mesh.shape[dim]!);
  }
  return coordinate;
}
