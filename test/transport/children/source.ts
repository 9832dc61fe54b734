/** A rank in a process of its own that is read from: it holds one tensor, of one value, and posts when it is told to. */
import { TensorBusError } from "../../../src/errors.ts";
import { createExecutor, type Execution } from "../../../src/exec/executor.ts";
import { HostMemory } from "../../../src/memory/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import { tcpStore } from "../../../src/store/tcp-store.ts";
import { type UcxTransportOptions, ucx } from "../../../transports/ucx/index.ts";
import { oneToOne } from "../kit/one-to-one.ts";

export interface SourceSetup {
  readonly kind: "prepare";
  readonly rank: number;
  readonly store: { readonly host: string; readonly port: number; readonly secret?: string };
  readonly bytes: number;
  readonly value: number;
  readonly options: UcxTransportOptions;
}

let execution: Execution;

async function prepare({ rank, store, bytes, value, options }: SourceSetup): Promise<void> {
  const session = await ucx(options).open({ rank, world: 2, store: await tcpStore(store) });
  const memory = HostMemory.allocate(bytes);
  memory.view(Uint8Array, 0n, bytes).fill(value);
  session.register(memory);
  const tensors = new Map([[0, { source: { memory, offset: 0n } }]]);
  execution = await createExecutor(session).prepare(await planTransfer(oneToOne(bytes)), {
    key: "one",
    tensors,
  });
}

async function post(): Promise<string> {
  try {
    await execution.run();
    return "done";
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
    return error.code;
  }
}

process.on("message", async (message: SourceSetup | { readonly kind: "post" }) => {
  if (message.kind === "post") return process.send!(await post());
  await prepare(message);
  process.send!("prepared");
});
process.on("disconnect", () => process.exit());
