/**
 * tensorbus: plans and moves sharded tensors between jobs that were launched apart. This is the library as its callers
 * see it; transports are imported from `tensorbus/transports/…` and handed in, the planner alone is `tensorbus/plan`.
 */
export { Agent, type AgentOptions } from "./bus/agent/agent.ts";
export { logAgent } from "./bus/agent/log.ts";
export { agentMetrics, type MetricsOptions, type MetricsServer, serveMetrics } from "./bus/agent/metrics.ts";
export { BatchHandler } from "./bus/client/batch-handler.ts";
export { type BootstrapOptions, type Bootstrapped, bootstrapClient } from "./bus/client/bootstrap.ts";
export {
  type CallOptions,
  type ConnectOptions,
  type InitPairOptions,
  type RegisterOptions,
  TensorBusClient,
  type TransferOptions,
} from "./bus/client/client.ts";
export type { ClientTensor, CudaMemory, TensorData, TensorDescription } from "./bus/client/memory.ts";
export type { BatchPlans } from "./bus/client/registration.ts";
export type { PendingRound, RoundEvent, TransferResult } from "./bus/client/round-events.ts";
export type { AgentEvent, AgentProgress, RoundIdentity } from "./bus/pair/events.ts";
export { logger, setLogger } from "./bus/process/logger.ts";
export { type BusPaths, defaultPaths } from "./bus/process/paths.ts";
export { generateSemaphoreName, type Semaphore } from "./bus/process/semaphore.ts";
export type { CommandType } from "./bus/queue/command-header.ts";
export type { CommandQueue, EnqueueOptions } from "./bus/queue/command-queue.ts";
export type { BatchId, Command } from "./bus/queue/commands.ts";
export { fromFloat32, type TensorArray, toFloat32 } from "./bus/tensor/float-bits.ts";
export { SharedTensor } from "./bus/tensor/shared-tensor.ts";
export type { DeadlineOptions } from "./deadline.ts";
export type { BatchTensor, BatchTensors } from "./exec/bind-batch.ts";
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
export { type SelectOptions, select } from "./transport/selection.ts";
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
