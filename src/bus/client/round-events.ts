import type { TensorBusError } from "../../errors.ts";
import type { CommandResult } from "../queue/commands.ts";

/** What one rank did in a round, as its agent tells it. */
export type TransferResult = CommandResult<"Transfer">;

/** A round that all of its sources have ready, and the version that it carries, if a rank has named one. */
export type PendingRound = NonNullable<CommandResult<"QueryStatus">["pending"]>;

/** What becomes of a batch and its transfers, as its client sees it. */
export type RoundEvent =
  /** The command stands in the agent's queue. */
  | { readonly kind: "queued"; readonly direction: "send" | "recv" }
  | { readonly kind: "completed"; readonly direction: "send" | "recv"; readonly result: TransferResult }
  | { readonly kind: "failed"; readonly direction: "send" | "recv"; readonly error: TensorBusError }
  /** The batch is over on all ranks, and waits to be registered anew: the agent says so by itself, once. */
  | { readonly kind: "ended"; readonly error: TensorBusError };
