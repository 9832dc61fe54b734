/** What a rank holds, as lists of global indices: the rules of DTensor in their plainest form, for the tests alone. */
import type { Layout } from "../../../src/layout/index.ts";

/** Per tensor dimension the global indices that a coordinate of the mesh holds, ascending. */
export function indicesAt(
  layout: Layout,
  shape: readonly number[],
  coordinate: readonly number[],
): number[][] {
  const lists = shape.map((extent) => Array.from({ length: extent }, (_, index) => index));
  layout.placements.forEach((placement, meshDim) => {
    const [count, part] = [layout.mesh.shape[meshDim]!, coordinate[meshDim]!];
    if (placement.kind === "shard") lists[placement.dim] = chunk(lists[placement.dim]!, count, part);
    if (placement.kind === "stridedShard") {
      const list = lists[placement.dim]!;
      lists[placement.dim] = Array.from({ length: placement.splitFactor }, (_, piece) =>
        chunk(chunk(list, placement.splitFactor, piece), count, part),
      ).flat();
    }
  });
  return lists;
}

/** Every coordinate of a mesh, in row-major order: that of its ranks. */
export function coordinatesOf(shape: readonly number[]): number[][] {
  return shape.reduce<number[][]>(
    (prefixes, extent) =>
      prefixes.flatMap((prefix) => Array.from({ length: extent }, (_, index) => [...prefix, index])),
    [[]],
  );
}

/** Every combination of one index of each list, in row-major order. */
export function* product(
  lists: readonly (readonly number[])[],
  prefix: readonly number[] = [],
): Generator<number[]> {
  const list = lists[prefix.length];
  if (list === undefined) {
    yield [...prefix];
    return;
  }
  for (const index of list) yield* product(lists, [...prefix, index]);
}

function chunk(list: readonly number[], count: number, part: number): number[] {
  const size = Math.ceil(list.length / count);
  return list.slice(part * size, (part + 1) * size);
}
