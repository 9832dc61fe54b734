/** The end of a registration, told from rank to rank through the store. */
import { TensorBusError } from "../../errors.ts";
import type { Rendezvous } from "../pair/rendezvous.ts";
import type { Batch } from "./batch.ts";

const foreverMs = 2 ** 31 - 1;

/** Tells others of the batch's end on this rank, and learns when another rank has ended it, with that rank and why. */
export function shareEnd(
  batch: Batch,
  key: string,
  { store }: Rendezvous,
  rank: number,
  onEnded: (rank: number, reason: TensorBusError) => void,
): void {
  batch.onClose(async (reason) => {
    const said = Buffer.from(JSON.stringify({ rank, reason: reason.message }));
    await store.compareAndSet(key, undefined, said, { timeoutMs: 1000 }).catch(() => {});
  });
  const watch = async () => {
    await store.wait([key], { timeoutMs: foreverMs, signal: batch.ended });
    const said = JSON.parse(Buffer.from((await store.get(key)) ?? "{}").toString());
    if (!batch.ended.aborted) onEnded(said.rank, new TensorBusError("TB_PEER_LOST", String(said.reason)));
  };
  watch().catch(() => {});
}
