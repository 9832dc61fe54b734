/** The benchmark of UCX: `ucx/…` cases over UCX's own TCP. Needs `ucx_perftest` and UCX's headers. */
import { contest, type TransferOptions, type TransferResult } from "../transfer/contest.ts";

export function bench(options: TransferOptions): Promise<TransferResult[]> {
  return contest("ucx", options);
}
