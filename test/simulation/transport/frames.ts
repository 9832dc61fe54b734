/** What sessions of the virtual transport say to each other: `docs/wire-protocol.md`, as objects. */
import { type ErrorCode, TensorBusError } from "../../../src/errors.ts";

export interface Failure {
  readonly code: ErrorCode;
  readonly rank: number;
  readonly message: string;
}

export type Frame =
  | {
      readonly kind: "prepare";
      /** The sender's number of it. */
      readonly from: number;
      readonly key: string;
      /** What both ends must agree in. */
      readonly digest: string;
      readonly checksum: boolean;
      readonly channels: string;
    }
  | { readonly kind: "match"; readonly from: number; readonly to: number }
  | { readonly kind: "release"; readonly from: number; readonly forGood: boolean; readonly why: Failure }
  /** The sender has begun that round. */
  | { readonly kind: "here"; readonly to: number; readonly round: number }
  | { readonly kind: "grant"; readonly to: number; readonly round: number; readonly channel: string }
  | {
      readonly kind: "data";
      readonly to: number;
      readonly round: number;
      readonly channel: string;
      readonly bucket: number;
      readonly payload: readonly Uint8Array[];
    }
  | { readonly kind: "taken"; readonly to: number; readonly round: number; readonly channel: string }
  | { readonly kind: "here"; readonly to: number; readonly round: number }
  | { readonly kind: "abort"; readonly to: number; readonly round: number; readonly why: Failure };

/** A deadline that passed is this rank's own; for others, it gave up. */
export function asFailure(error: unknown, own: number): Failure {
  const { code, message, details } = error as TensorBusError;
  const rank = typeof details["rank"] === "number" ? details["rank"] : own;
  return { code: code === "TB_TIMEOUT" ? "TB_CANCELLED" : code, rank, message };
}

export function errorOf({ code, message, rank }: Failure): TensorBusError {
  return new TensorBusError(code, message, { details: { rank } });
}
