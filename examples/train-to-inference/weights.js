// What both jobs know of the model: names, shapes and layouts. Values are such that every job can check them.
import { DeviceMesh, Replicate, Shard } from "tensorbus";

export const rounds = 10;
export const trainerMesh = new DeviceMesh([2], { ranks: [0, 1] });
export const engineMesh = new DeviceMesh([2], { ranks: [2, 3] });

/** Weights of one pair lie alike: FSDP cuts rows on the trainer; the engine cuts columns, or holds the whole. */
export const pairs = {
  matrices: { trainer: [Shard(0)], engine: [Shard(1)] },
  norms: { trainer: [Shard(0)], engine: [Replicate()] },
};

/** Sizes that two ranks cannot share evenly are as good as any. */
export const weights = [
  { name: "embed", pair: "matrices", shape: [101, 64] },
  { name: "up", pair: "matrices", shape: [64, 33] },
  { name: "down", pair: "matrices", shape: [33, 64] },
  { name: "norm", pair: "norms", shape: [65, 1] },
];

/** Rows and columns that one rank of a side holds, as `torch.chunk` cuts them: [first, count] of each dimension. */
export function localPart({ pair, shape }, side, rank) {
  const [placement] = pairs[pair][side];
  return shape.map((extent, dim) => {
    if (placement.kind !== "shard" || placement.dim !== dim) return [0, extent];
    const step = Math.ceil(extent / 2);
    const first = Math.min(rank * step, extent);
    return [first, Math.min(step, extent - first)];
  });
}

/** A weight's value after a round of training: whole numbers below 256, which bfloat16 holds exactly. */
export function expectedValue(weight, round, row, column) {
  return (weights.indexOf(weight) * 7 + round * 31 + row * 3 + column) % 256;
}

/** Calls `each` with every local element: where it lies, and which of the weight's it is. */
export function forEachElement(part, each) {
  const [[firstRow, rows], [firstColumn, columns]] = part;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      each(row * columns + column, firstRow + row, firstColumn + column);
    }
  }
}
