import { type ErrorCode, TensorBusError } from "../../errors.ts";

export function fail(code: ErrorCode, message: string, details: Record<string, unknown>): TensorBusError {
  return new TensorBusError(code, message, { details });
}

/** An integer within bounds, or the default where it is absent. */
export function integerIn(
  value: number | undefined,
  name: string,
  low: number,
  high: number,
  otherwise: number,
  code: ErrorCode = "TB_PLAN_INPUT",
): number {
  if (value === undefined) return otherwise;
  if (!Number.isSafeInteger(value) || value < low || value > high) {
    throw fail(code, `${name} must be an integer from ${low} to ${high}, got ${String(value)}`, {
      [name]: value,
    });
  }
  return value;
}

/** A key that means nothing is more often a typing mistake than a wish. */
export function checkKeys(object: object, known: readonly string[], place: string): void {
  for (const key of Object.keys(object)) {
    if (!known.includes(key)) {
      throw fail("TB_PLAN_INPUT", `${place} has an unknown key ${JSON.stringify(key)}`, {
        place,
        key,
        known,
      });
    }
  }
}
