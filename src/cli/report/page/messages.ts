import type { ErrorCode } from "../../../errors.ts";
import type { SpecPath } from "../../../model/spec-places.ts";
import type { SpecValues } from "../embed.ts";
import type { Report } from "../report.ts";

/** What the page asks of its worker. */
export interface PlanRequest {
  readonly file: string;
  readonly spec: SpecValues;
  /** The canonical bytes of the page's own plan, which has the tensors. */
  readonly plan: Uint8Array;
  readonly verify: boolean;
}

export type PlanAnswer =
  | { readonly report: Report; readonly plan: Uint8Array; readonly spec: SpecValues }
  | { readonly failure: PlanFailure };

/** An error, and where in the spec it belongs. */
export interface PlanFailure {
  readonly code: ErrorCode | undefined;
  readonly message: string;
  readonly path: SpecPath;
}
