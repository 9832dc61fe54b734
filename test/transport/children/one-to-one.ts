/**
 * A rank of a tensor that goes from rank 0 to rank 1 by UCX, in a process of its own: it posts when it is told to, and says how
 * the round ended. Rank 0 holds one value throughout, and rank 1 looks whether all of it has come.
 */
import { TensorBusError } from "../../../src/errors.ts";
import { createExecutor, type Execution } from "../../../src/exec/executor.ts";
import { HostMemory } from "../../../src/memory/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import { tcpStore } from "../../../src/store/tcp-store.ts";
import { type UcxTransportOptions, ucx } from "../../../transports/ucx/index.ts";
import { oneToOne } from "../kit/one-to-one.ts";

export interface OneToOneSetup {
  readonly kind: "prepare";
  readonly rank: number;
  readonly store: { readonly host: string; readonly port: number };
  readonly bytes: number;
  readonly value: number;
  readonly options: UcxTransportOptions;
}

let execution: Execution;
let complete: () => boolean;

async function prepare({ rank, store, bytes, value, options }: OneToOneSetup): Promise<void> {
  const session = await ucx(options).open({ rank, world: 2, store: await tcpStore(store) });
  const memory = HostMemory.allocate(bytes);
  const view = memory.view(Uint8Array, 0n, bytes);
  view.fill(rank === 0 ? value : value + 1);
  complete = () => rank === 0 || !view.includes(value + 1);
  session.register(memory);
  const place = { memory, offset: 0n };
  const tensors = new Map([[0, rank === 0 ? { source: place } : { target: place }]]);
  const plan = await planTransfer(oneToOne(bytes));
  execution = await createExecutor(session).prepare(plan, { key: "one", tensors });
}

async function post(): Promise<string> {
  try {
    await execution.run();
    return complete() ? "done" : "bytes are missing";
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    return error.code;
  }
}

process.on("message", async (message: OneToOneSetup | { readonly kind: "post" }) => {
  if (message.kind === "post") return process.send!(await post());
  await prepare(message);
  process.send!("prepared");
});
process.on("disconnect", () => process.exit());
