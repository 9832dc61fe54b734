/**
 * tensorbus: plans and moves sharded tensors between jobs that were launched apart. This is the library as its callers
 * see it; transports are imported from `tensorbus/transports/…` and handed in, the planner alone is `tensorbus/plan`.
 */
export type { BatchTensor, BatchTensors } from "./exec/batch.ts";
export {
  createExecutor,
  type ExecutablePlan,
  type Execution,
  type ExecutionOptions,
  type ExecutionStats,
  type Executor,
} from "./exec/executor.ts";
export * from "./memory/index.ts";
export * from "./plan/index.ts";
export * from "./store/index.ts";
export type {
  OpenOptions,
  PostOptions,
  PreparedTransfer,
  PrepareOptions,
  RoundProgress,
  RoundReport,
  TensorBinding,
  Transport,
  TransportCapabilities,
  TransportEvent,
  TransportSession,
  WaitOptions,
} from "./transport/transport.ts";
