/**
 * tensorbus: plans and moves sharded tensors between jobs that were launched apart. This is the library as its callers
 * see it; transports are imported from `tensorbus/transports/…` and handed in, the planner alone is `tensorbus/plan`.
 */
export { Agent, type AgentOptions } from "./bus/agent.ts";
export type { AgentEvent, AgentProgress, RoundIdentity } from "./bus/agent-events.ts";
export { logAgent } from "./bus/agent-log.ts";
export { BatchHandler } from "./bus/batch-handler.ts";
export { type BootstrapOptions, type Bootstrapped, bootstrapClient } from "./bus/bootstrap.ts";
export {
  type CallOptions,
  type ConnectOptions,
  type InitPairOptions,
  type RegisterOptions,
  TensorBusClient,
  type TransferOptions,
} from "./bus/client.ts";
export type { ClientTensor, CudaMemory, TensorData, TensorDescription } from "./bus/client-memory.ts";
export type { CommandType } from "./bus/command-header.ts";
export type { CommandQueue, EnqueueOptions } from "./bus/command-queue.ts";
export type { BatchId, Command } from "./bus/commands.ts";
export { fromFloat32, type TensorArray, toFloat32 } from "./bus/float-bits.ts";
export { logger, setLogger } from "./bus/logger.ts";
export { agentMetrics, type MetricsOptions, type MetricsServer, serveMetrics } from "./bus/metrics.ts";
export { type BusPaths, defaultPaths } from "./bus/paths.ts";
export type { BatchPlans } from "./bus/registration.ts";
export type { RoundEvent, TransferResult } from "./bus/round-events.ts";
export { generateSemaphoreName, type Semaphore } from "./bus/semaphore.ts";
export { SharedTensor } from "./bus/shared-tensor.ts";
export type { DeadlineOptions } from "./deadline.ts";
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
