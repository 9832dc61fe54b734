import { DeviceMesh } from "../../layout/index.ts";
import type { PairInput } from "../../plan/input/types.ts";
import type { JoinedSides } from "./join.ts";
import { coordinatesOf } from "./mesh-coordinates.ts";

/** How a planned tensor lies on one side, as a client registers it: if one coordinate has it, on the sub-mesh of that one. */
export function plannedLayout(
  { pairs, tensors }: JoinedSides,
  side: "source" | "target",
  index: number,
): PairInput["source"] {
  const tensor = tensors[index]!;
  const layout = pairs[tensor.pair]![side];
  const select = tensor[side]?.select;
  if (select === undefined) return layout;
  const { mesh, placements } = layout;
  // Sides are joined with one thing a coordinate.
  const { dim, index: owner } = select;
  const ranks = Array.from(mesh.ranks).filter((_, position) => coordinatesOf(mesh, position)[dim] === owner);
  const only = <T>(values: readonly T[], one: T) =>
    values.map((value, other) => (other === dim ? one : value));
  return {
    ...layout,
    mesh: new DeviceMesh(only(mesh.shape, 1), { ranks }),
    placements: only(placements, { kind: "replicate" }),
  };
}
