/** What an agent tells those who watch it. Nothing is kept for late subscribers. */
import type { TensorBusError } from "../../errors.ts";
import type { ExecutionStats } from "../../exec/executor.ts";
import type { RoundReport } from "../../transport/transport.ts";
import type { BatchId } from "../queue/commands.ts";

/** One round of a batch on this rank. */
export interface RoundIdentity {
  readonly batch: BatchId;
  /** Names of the batch's pairs, sorted. */
  readonly pairs: readonly string[];
  /** Which registration of the id, from 1. */
  readonly number: number;
  /** The side that sends. */
  readonly from: string;
  readonly to: string;
  readonly round: number;
  readonly epoch: number;
}

export type AgentEvent =
  | { readonly kind: "pairMet"; readonly pair: string; readonly local: string; readonly remote: string }
  | {
      readonly kind: "pairFailed";
      readonly pair: string;
      readonly local: string;
      readonly error: TensorBusError;
    }
  | {
      readonly kind: "batchRegistered";
      readonly batch: BatchId;
      readonly pairs: readonly string[];
      readonly number: number;
      readonly tensors: number;
      /** By the name of a transport, the ranks whose buckets it takes, in either direction. */
      readonly transports: Readonly<Record<string, readonly number[]>>;
      /** Seconds of what it took: to meet, to plan, to prepare. */
      readonly seconds: { readonly meet: number; readonly plan: number; readonly prepare: number };
    }
  | {
      readonly kind: "batchEnded";
      readonly batch: BatchId;
      readonly pairs: readonly string[];
      readonly number: number;
      readonly reason: TensorBusError;
      /** Registrations of clients of this rank that are over by it, and are not the one that was closed. */
      readonly registrations: readonly { readonly client: bigint; readonly instance: bigint }[];
    }
  /** Every source rank has posted the round. */
  | ({ readonly kind: "signal" } & RoundIdentity)
  | ({ readonly kind: "roundStarted"; readonly predictedSeconds: number | undefined } & RoundIdentity)
  | ({
      readonly kind: "roundCompleted";
      readonly report: RoundReport;
      readonly predictedSeconds: number | undefined;
      /** Seconds of what it took: to move, to commit. */
      readonly seconds: { readonly move: number; readonly commit: number };
      /** Payload bytes that each peer sends to this rank, and gets from it, and the transport that takes them. */
      readonly peers: ExecutionStats["peers"];
    } & RoundIdentity)
  | ({ readonly kind: "roundFailed"; readonly error: TensorBusError; readonly torn: boolean } & RoundIdentity)
  /** A staged round that was in doubt is decided; `undefined` if it never will be known here. */
  | ({ readonly kind: "resolved"; readonly committed: boolean | undefined } & RoundIdentity)
  | { readonly kind: "clientEnded"; readonly pid: number; readonly batches: number }
  | { readonly kind: "storeLost"; readonly error: TensorBusError }
  | { readonly kind: "storeFound" }
  | { readonly kind: "peerLost" | "peerLeft"; readonly rank: number; readonly error: TensorBusError }
  | { readonly kind: "commandFailed"; readonly command: string; readonly error: TensorBusError }
  /** What belongs to no command: a queue that is stuck, garbage at the port, a record that nobody of us has signed. */
  | { readonly kind: "fault"; readonly error: TensorBusError };

/** How far a round is. */
export interface AgentProgress {
  readonly batch: BatchId;
  readonly from: string;
  readonly round: number;
  readonly bytesDone: bigint;
  readonly bytesTotal: bigint;
}
