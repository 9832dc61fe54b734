/** What sessions of the virtual transport say to each other: `docs/wire-protocol.md`, as objects. */
import type { ErrorCode } from "../../../src/errors.ts";

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
