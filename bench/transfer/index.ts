/** The transfer benchmark: `tcp/…` cases, beside plain programs of sockets. */
import { contest, type TransferOptions, type TransferResult } from "./contest.ts";

export function bench(options: TransferOptions): Promise<TransferResult[]> {
  return contest("tcp", options);
}
