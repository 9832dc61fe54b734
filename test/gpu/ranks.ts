/** Two ranks on one GPU, in this process: what GPU tests and benchmarks run transfers between. */
import { TensorBusError } from "../../src/errors.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import type { Transport, TransportSession } from "../../src/transport/transport.ts";
import { nccl } from "../../transports/nccl/index.ts";
import { Skip } from "./machine.ts";

/** A `Skip` where the machine's library of the transport lacks, or does not allow it. */
export async function betweenRanks<Result>(
  transport: Transport,
  run: (sessions: readonly TransportSession[]) => Promise<Result>,
): Promise<Result> {
  const stores = memoryStores();
  const sessions: TransportSession[] = [];
  try {
    for (const rank of [0, 1]) sessions.push(await transport.open({ rank, world: 2, store: stores() }));
    return await run(sessions);
  } catch (error) {
    if (error instanceof TensorBusError && error.code === "TB_LIBRARY") throw new Skip(error.message);
    throw error;
  } finally {
    await Promise.all(sessions.map((session) => session.close()));
  }
}

/** Has NCCL let ranks share the device, from 2.30 on. */
export function sharedNccl(device: string): Transport {
  process.env["NCCL_MULTI_RANK_GPU_ENABLE"] = "1";
  return nccl({ device, sharedDevices: true });
}
