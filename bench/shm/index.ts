/** The benchmark of shared memory: `shm/…` cases, beside plain copies between shared mappings. */
import { contest, type TransferOptions, type TransferResult } from "../transfer/contest.ts";

export function bench(options: TransferOptions): Promise<TransferResult[]> {
  return contest("shm", options);
}
