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
  type ShardOptions,
  StridedShard,
  type StridedShardReading,
} from "../layout/index.ts";
export type { Box } from "./explain/boxes.ts";
export {
  diffPlans,
  type LinkChange,
  type OptionChange,
  type PlanDiff,
  type RankChange,
} from "./explain/diff.ts";
export type { Change, SideForm, TensorField, TensorForm, TensorGroup } from "./explain/diff-tensors.ts";
export type { Arrival, Departure, Explanation, Part, Place } from "./explain/explain.ts";
export { formatVersion, isSavedPlan } from "./input/codec.ts";
export { plannerVersion } from "./input/decisions.ts";
export type * from "./input/types.ts";
export { chunkToJSON, planToJSON, toJSON } from "./json.ts";
export {
  Plan,
  type ProgramOptions,
  planTransfer,
  type RankOption,
  type VerifyOptions,
} from "./plan.ts";
export type { ChannelStats, Channels, HostLinkStats, LinkMatrix } from "./planner/channels.ts";
export type { StridesByTensor } from "./planner/lower.ts";
export { Program, type ProgramBuffer } from "./planner/program.ts";
export type { PatternStats, PlanStats, RankStats, StageStats } from "./planner/stats.ts";
export type { LinkEnd, Schedule } from "./schedule/schedule.ts";
export { type RankLists, verifyChunks, verifyRanks } from "./verify/verify.ts";
