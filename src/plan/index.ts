/** `tensorbus/plan`: the planner, with nothing native, for Node.js and browsers. */
export { type ErrorCode, errorCodes, TensorBusError } from "../errors.ts";
export {
  DeviceMesh,
  type DeviceMeshOptions,
  type DType,
  dtypes,
  formatPlacement,
  itemSize,
  type Layout,
  Partial,
  type PartialOp,
  type Placement,
  parsePlacement,
  partialOps,
  Replicate,
  Shard,
  StridedShard,
  type StridedShardReading,
} from "../layout/index.ts";
export type { Box } from "./boxes.ts";
export type { ChannelStats, Channels, HostLinkStats, LinkMatrix } from "./channels.ts";

export { formatVersion, isSavedPlan, plannerVersion } from "./codec.ts";
export { diffPlans, type LinkChange, type OptionChange, type PlanDiff, type RankChange } from "./diff.ts";
export type { Change, SideForm, TensorField, TensorForm, TensorGroup } from "./diff-tensors.ts";
export type { Arrival, Departure, Explanation, Part, Place } from "./explain.ts";
export { chunkToJSON, planToJSON, toJSON } from "./json.ts";
export type { StridesByTensor } from "./lower.ts";
export {
  Plan,
  type ProgramOptions,
  planTransfer,
  type RankOption,
  type VerifyOptions,
} from "./plan.ts";
export { Program, type ProgramBuffer } from "./program.ts";
export type { LinkEnd, Schedule } from "./schedule.ts";
export type { PatternStats, PlanStats, RankStats, StageStats } from "./stats.ts";
export type * from "./types.ts";
export { type RankLists, verifyChunks, verifyRanks } from "./verify.ts";
