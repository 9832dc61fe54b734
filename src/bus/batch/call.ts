/** A call of a rank in a direction, and what its callers ask for. */
import type { Deadline } from "../../deadline.ts";
import type { TensorBusError } from "../../errors.ts";
import type { CommandResult } from "../queue/commands.ts";
import type { Role } from "./direction-options.ts";
import type { RegionEvents } from "./region-events.ts";

export type TransferResult = CommandResult<"Transfer">;

/** One role's call. */
export interface PostOptions {
  readonly deadline: Deadline;
  /** Those of this role's memory: if they do not come to the round in time, it fails on all ranks. */
  readonly events?: RegionEvents | undefined;
  readonly version?: bigint | undefined;
}

export interface Poster extends PostOptions {
  /** The GPUs of this role's memory have come to the round. */
  readonly ready: Promise<void>;
  readonly resolve: (result: TransferResult) => void;
  readonly reject: (error: TensorBusError) => void;
}

/** A call of this rank, from its first role's post until its end. */
export interface Call {
  readonly abort: AbortController;
  readonly posters: Map<Role, Poster>;
  /** The round that it is in. */
  round: number;
  started: boolean;
  /** The last round in which others saw this rank; 0 if there was none. */
  posted: number;
  /** The last one in which others may have seen it otherwise: in its signal, or in a note for the other direction. */
  shown: number;
  /** Looks who waits in the opposite direction. */
  look: NodeJS.Timeout | undefined;
}
