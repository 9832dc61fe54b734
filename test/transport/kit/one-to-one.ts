/** A tensor of bytes that goes from rank 0 to rank 1. */
import { DeviceMesh, type PlanInput, Shard } from "../../../src/plan/index.ts";

const layout = (rank: number) => ({ mesh: new DeviceMesh([1], { ranks: [rank] }), placements: [Shard(0)] });

export const oneToOne = (bytes: number): PlanInput => ({
  pairs: { all: { source: layout(0), target: layout(1) } },
  tensors: [{ name: "a", pair: "all", shape: [bytes], dtype: "uint8" }],
});
