export {
  arithmeticTypes,
  bytesOf,
  checkCast,
  type DType,
  dtypeNumber,
  dtypes,
  isDType,
  isOpaque,
  isPacked,
  itemSize,
  movedAs,
  refusePacked,
  unitOf,
} from "./dtype.ts";
export {
  coordinateOf,
  type Holding,
  holdingAt,
  holdingOf,
  type Run,
  selectedCoordinate,
  uncut,
} from "./holding.ts";
export type { Layout, StridedShardReading } from "./layout.ts";
export { DeviceMesh, type DeviceMeshOptions, maxRanks } from "./mesh.ts";
export {
  formatPlacement,
  Partial,
  type PartialOp,
  type Placement,
  parsePlacement,
  partialOps,
  Replicate,
  Shard,
  type ShardOptions,
  type ShardPlacement,
  StridedShard,
  shardSizes,
  sumOf,
} from "./placement.ts";
