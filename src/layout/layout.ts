import type { DeviceMesh } from "./mesh.ts";
import type { Placement } from "./placement.ts";

/**
 * How a layout's strided shards read: `split` is what `distribute_tensor` does, `order` what the parameters of a real
 * FSDP2 model hold. Without one it is an error (`TB_STRIDED_SHARD`) only if the two differ for a planned shape.
 */
export type StridedShardReading = "split" | "order";

/** Says where a tensor lies on one side: the mesh, one placement a mesh dimension, and how strided shards read. */
export interface Layout {
  readonly mesh: DeviceMesh;
  readonly placements: readonly Placement[];
  readonly stridedShard?: StridedShardReading;
}
