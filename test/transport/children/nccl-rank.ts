/**
 * One rank of the nccl transport in a process of its own, on the doubles that the environment names, on the device of its
 * number. Its parent tells it what to do, one thing at a time, and hears how that ended.
 */
import { TensorBusError } from "../../../src/errors.ts";
import { createExecutor, type Execution } from "../../../src/exec/executor.ts";
import { DeviceMesh, Shard } from "../../../src/layout/index.ts";
import { DeviceMemory } from "../../../src/memory/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import { tcpStore } from "../../../src/store/tcp-store.ts";
import type { TransportSession } from "../../../src/transport/transport.ts";
import { nccl } from "../../../transports/nccl/index.ts";
import { deviceOf } from "../kit/nccl-doubles.ts";

export type Task =
  | { readonly kind: "open"; readonly rank: number; readonly world: number; readonly storePort: number }
  | { readonly kind: "prepare" }
  | { readonly kind: "post"; readonly timeoutMs?: number }
  | { readonly kind: "release" };

/** `moving` comes before the end of a round. */
export type Answer = "done" | "moving" | { readonly code: string; readonly rank: unknown };

let session: TransportSession;
let world: number;
let execution: Execution;

async function run(task: Task): Promise<void> {
  switch (task.kind) {
    case "open": {
      const store = await tcpStore({ host: "127.0.0.1", port: task.storePort });
      const { rank } = task;
      world = task.world;
      const transport = nccl({ device: deviceOf(rank), peerTimeoutMs: 600_000, quiesceMs: 300 });
      session = await transport.open({ rank, world, store });
      return;
    }
    case "prepare":
      return prepare();
    case "post":
      return post(task.timeoutMs);
    case "release":
      return execution.release();
  }
}

/** Says so once something of the round came from another rank, or went to one. */
async function post(timeoutMs = 30_000): Promise<void> {
  const looking = setInterval(() => {
    if (execution.progress().bytesDone <= execution.stats.bytesCopied) return;
    clearInterval(looking);
    process.send!("moving" satisfies Answer);
  }, 2);
  try {
    await execution.run({ timeoutMs });
  } finally {
    clearInterval(looking);
  }
}

async function prepare(): Promise<void> {
  const mesh = new DeviceMesh([world]);
  const plan = await planTransfer({
    pairs: { all: { source: { mesh, placements: [Shard(0)] }, target: { mesh, placements: [Shard(1)] } } },
    tensors: [{ name: "matrix", pair: "all", shape: [240, 240], dtype: "float32" }],
    bucketBytes: 4096,
  });
  const bytes = (240 * 240 * 4) / world;
  const memory = DeviceMemory.allocate(deviceOf(session.rank), 2 * bytes);
  session.register(memory);
  const place = (offset: number) => ({ memory, offset: BigInt(offset) });
  const tensors = new Map([[0, { source: place(0), target: place(bytes) }]]);
  execution = await createExecutor(session).prepare(plan, { key: "all", tensors });
}

process.on("message", async (task: Task) => {
  let answer: Answer = "done";
  try {
    await run(task);
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    answer = { code: error.code, rank: error.details["rank"] };
  }
  process.send!(answer);
});
process.on("disconnect", () => process.exit());
