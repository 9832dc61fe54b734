import { type ErrorCode, TensorBusError } from "../../errors.ts";
import type { TransportName } from "../ui/transport-option.ts";

/** What the supervisor tells a rank's process before anything else. */
export interface RankJob {
  readonly kind: "job";
  readonly rank: number;
  readonly world: number;
  readonly role: "source" | "target";
  /** The file that the supervisor wrote the plan's bytes to. */
  readonly planPath: string;
  readonly checkpoint: string;
  /** The target's file; it lies under a temporary name until the supervisor gives it this one. */
  readonly outPath: string | undefined;
  readonly storePort: number;
  readonly transport: TransportName;
  readonly verify: boolean;
  readonly timeoutMs: number;
}

/** `commit`: every rank has written and verified, and all files have their final names. `abort`: end at once. */
export type SupervisorMessage = RankJob | { readonly kind: "commit" } | { readonly kind: "abort" };

/** The steps of a rank, in order. A source has nothing to write or verify. */
export const phases = ["read", "move", "write", "verify"] as const;
export type Phase = (typeof phases)[number];

/** What a rank reports. `done` and `total` are bytes of the phase; `received` bytes and `seconds` are those of the round. */
export type RankMessage =
  | { readonly kind: "progress"; readonly phase: Phase; readonly done: number; readonly total: number }
  | {
      readonly kind: "moved";
      readonly received: number;
      readonly seconds: number;
      /** The transports to the peers that this rank deals with, each once. */
      readonly transports: readonly string[];
    }
  | { readonly kind: "ready"; readonly verifiedBytes: number; readonly temporaryPath?: string }
  | { readonly kind: "failed"; readonly failure: RankFailure }
  /** It was told that the transfer has failed: its process runs, whatever it waits for. */
  | { readonly kind: "ending" };

export interface RankFailure {
  readonly code: ErrorCode;
  readonly message: string;
  /** The rank where it began. */
  readonly rank: number;
}

/** What a rank tells of an error: its code, and the rank that the error names, else its own. */
export function failureOf(error: unknown, ownRank: number): RankFailure {
  if (error instanceof TensorBusError) {
    const { rank } = error.details;
    return { code: error.code, message: error.message, rank: typeof rank === "number" ? rank : ownRank };
  }
  return {
    code: "TB_SYSTEM",
    message: error instanceof Error ? error.message : String(error),
    rank: ownRank,
  };
}
