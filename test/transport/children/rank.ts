/**
 * One rank in a process of its own. Its parent tells it what it is and where the store is, and says when to post. It
 * answers once it is prepared, and how each round ended.
 */
import { TensorBusError } from "../../../src/errors.ts";
import { createExecutor, type Execution } from "../../../src/exec/executor.ts";
import { DeviceMesh, Shard } from "../../../src/layout/index.ts";
import { HostMemory } from "../../../src/memory/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import { tcpStore } from "../../../src/store/tcp-store.ts";
import { tcp } from "../../../transports/tcp/index.ts";

export type ParentMessage =
  | {
      readonly kind: "prepare";
      readonly rank: number;
      readonly world: number;
      readonly storePort: number;
      readonly peerTimeoutMs: number;
    }
  | { readonly kind: "post" };

export type ChildMessage =
  | { readonly kind: "prepared" }
  | { readonly kind: "round"; readonly outcome: "done" | { readonly code: string; readonly rank: unknown } };

const tell = (message: ChildMessage) => process.send!(message);
let execution: Execution;

async function prepare(message: ParentMessage & { readonly kind: "prepare" }): Promise<void> {
  const { rank, world, peerTimeoutMs } = message;
  const store = await tcpStore({ host: "127.0.0.1", port: message.storePort });
  const session = await tcp({ peerTimeoutMs }).open({ rank, world, store });
  const ranks = Array.from({ length: world }, (_, rank) => rank);
  const mesh = new DeviceMesh([world], { ranks });
  const plan = await planTransfer({
    pairs: { all: { source: { mesh, placements: [Shard(0)] }, target: { mesh, placements: [Shard(1)] } } },
    tensors: [{ name: "matrix", pair: "all", shape: [960, 960], dtype: "float32" }],
  });
  const bytes = (960 * 960 * 4) / world;
  const memory = HostMemory.allocate(2 * bytes);
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
    case "post":
      return post();
  }
});
process.on("disconnect", () => process.exit());
