import type { TensorBusError } from "../errors.ts";

export type SpecPath = readonly (string | number)[];

/** Says where the values of a spec stand, in a file or in a form: makes the errors that name the place. */
export interface SpecPlaces {
  /** `TB_SPEC` at a place. */
  error(
    path: SpecPath,
    what: string,
    details?: Readonly<Record<string, unknown>>,
    cause?: unknown,
  ): TensorBusError;
  /** What `make` returns; its errors become errors of this place. */
  at<T>(path: SpecPath, make: () => T): T;
}

/** `placements[1].target.select`. */
export function formatPath(path: SpecPath): string {
  return path
    .map((part, index) => (typeof part === "number" ? `[${part}]` : `${index > 0 ? "." : ""}${part}`))
    .join("");
}
