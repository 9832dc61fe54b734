export { type DType, dtypeNumber, dtypes, isDType, itemSize } from "./dtype.ts";
export {
  coordinateOf,
  type Holding,
  holdingAt,
  holdingOf,
  type Run,
  type Selection,
  selectedCoordinate,
  uncut,
} from "./holding.ts";
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
  type ShardOptions,
  type ShardPlacement,
  StridedShard,
  type StridedShardPlacement,
  shardSizes,
  sumOf,
} from "./placement.ts";
