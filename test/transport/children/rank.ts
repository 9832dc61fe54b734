/**
 * One rank in a process of its own. Its parent tells it what it is and where the store is, and says when to post. It
 * answers once it is prepared, and how each round ended.
 */
import { TensorBusError } from "../../../src/errors.ts";
import { createExecutor, type Execution } from "../../../src/exec/executor.ts";
import { DeviceMesh, Shard } from "../../../src/layout/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import { tcpStore } from "../../../src/store/tcp-store.ts";
import type { TransportSession } from "../../../src/transport/transport.ts";
import { cudaIpc } from "../../../transports/cuda-ipc/index.ts";
import { shm } from "../../../transports/shm/index.ts";
import { tcp } from "../../../transports/tcp/index.ts";
import { ucx } from "../../../transports/ucx/index.ts";
import { doubleDevice } from "../../doubles/cuda/index.ts";
import type { CaseOptions } from "../compliance/cases.ts";
import { randomCase } from "../compliance/cases.ts";
import { RankMemory } from "../kit/rank-memory.ts";
import { allocate, type TestMemoryKind } from "../kit/test-memory.ts";

export interface RankSetup {
  readonly rank: number;
  readonly world: number;
  readonly storePort: number;
  readonly peerTimeoutMs: number;
  readonly transport: "tcp" | "shm" | "cuda-ipc" | "ucx" | "ucx by shared memory";
  readonly memory: TestMemoryKind;
}

/** Cases that every rank makes for itself, from the seed. */
export interface SeededCase {
  readonly seed: number;
  readonly options: CaseOptions;
}

export type ParentMessage =
  | ({ readonly kind: "prepare" } & RankSetup)
  | ({ readonly kind: "cases"; readonly cases: readonly SeededCase[] } & RankSetup)
  | { readonly kind: "post" };

export type ChildMessage =
  | { readonly kind: "prepared" }
  | { readonly kind: "ran"; readonly cases: number }
  | { readonly kind: "round"; readonly outcome: "done" | { readonly code: string; readonly rank: unknown } };

const tell = (message: ChildMessage) => process.send!(message);
let execution: Execution;

async function open({ rank, world, peerTimeoutMs, ...setup }: RankSetup): Promise<TransportSession> {
  const store = await tcpStore({ host: "127.0.0.1", port: setup.storePort });
  const device = process.env["TEST_CUDA_DEVICE"] ?? doubleDevice;
  const transports = {
    tcp: () => tcp({ peerTimeoutMs }),
    shm: () => shm({ peerTimeoutMs }),
    ucx: () => ucx({ peerTimeoutMs, transports: "tcp,self" }),
    "ucx by shared memory": () => ucx({ peerTimeoutMs, transports: "posix,cma,self" }),
    "cuda-ipc": () => cudaIpc({ peerTimeoutMs, device }),
  };
  return transports[setup.transport]().open({ rank, world, store });
}

/** Two rounds of each, compared byte for byte. */
async function runCases(message: ParentMessage & { readonly kind: "cases" }): Promise<void> {
  const session = await open(message);
  for (const [index, { seed, options }] of message.cases.entries()) {
    const transfer = randomCase(seed, options);
    const plan = await planTransfer(transfer.input);
    const local = new RankMemory(transfer, message.rank, message.memory);
    session.register(local.memory);
    const tensors = local.tensors;
    const execution = await createExecutor(session).prepare(plan, { key: `case ${index}`, tensors });
    for (let round = 1; round <= 2; round++) {
      local.fill(round);
      await execution.run();
      local.check();
    }
    await execution.release();
    session.unregister(local.memory);
    local.close();
  }
  tell({ kind: "ran", cases: message.cases.length });
}

async function prepare(message: ParentMessage & { readonly kind: "prepare" }): Promise<void> {
  const { world } = message;
  const session = await open(message);
  const ranks = Array.from({ length: world }, (_, rank) => rank);
  const mesh = new DeviceMesh([world], { ranks });
  const plan = await planTransfer({
    pairs: { all: { source: { mesh, placements: [Shard(0)] }, target: { mesh, placements: [Shard(1)] } } },
    tensors: [{ name: "matrix", pair: "all", shape: [960, 960], dtype: "float32" }],
  });
  const bytes = (960 * 960 * 4) / world;
  const { memory } = allocate(message.memory, 2 * bytes);
  session.register(memory);
  const tensors = new Map([
    [0, { source: { memory, offset: 0n }, target: { memory, offset: BigInt(bytes) } }],
  ]);
  execution = await createExecutor(session).prepare(plan, { key: "all", tensors });
  tell({ kind: "prepared" });
}

async function post(): Promise<void> {
  try {
    await execution.run();
    tell({ kind: "round", outcome: "done" });
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    tell({ kind: "round", outcome: { code: error.code, rank: error.details["rank"] } });
  }
}

process.on("message", (message: ParentMessage) => {
  switch (message.kind) {
    case "prepare":
      return prepare(message);
    case "cases":
      return runCases(message);
    case "post":
      return post();
  }
});
process.on("disconnect", () => process.exit());
