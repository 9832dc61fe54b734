export { type DType, dtypeNumber, dtypes, isDType, itemSize } from "./dtype.ts";
export { coordinateOf, type Holding, holdingAt, holdingOf, type Run, type Selection } from "./holding.ts";
export type { Layout, StridedShardReading } from "./layout.ts";
export { DeviceMesh, type DeviceMeshOptions, maxRanks } from "./mesh.ts";
export {
  formatPlacement,
  Partial,
  type PartialOp,
  type PartialPlacement,
  type Placement,
  parsePlacement,
  partialOps,
  Replicate,
  type ReplicatePlacement,
  Shard,
  type ShardPlacement,
  StridedShard,
  type StridedShardPlacement,
} from "./placement.ts";
