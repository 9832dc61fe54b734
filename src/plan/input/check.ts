import { type ErrorCode, TensorBusError } from "../../errors.ts";

export function fail(code: ErrorCode, message: string, details: Record<string, unknown>): TensorBusError {
  return new TensorBusError(code, message, { details });
}

/** An integer within bounds, or the default if it is absent. */
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

const maxNameUnits = 4096;
const maxAllNamesUnits = 2 ** 27;

/**
 * Counts the names of a plan's tensors: each of at most 4,096 UTF-16 units, all together of at most 2^27. A saved name says
 * what it shares with the one before, so that a few bytes could stand for names of any length.
 */
export class NameLimits {
  #total = 0;

  /** One name more; an error of `code` if that is too long, or one too many. */
  take(length: number, code: ErrorCode): void {
    this.#total += length;
    if (length > maxNameUnits) {
      throw fail(code, `a tensor's name has ${length} characters; at most ${maxNameUnits} are allowed`, {
        length,
        maxNameUnits,
      });
    }
    if (this.#total > maxAllNamesUnits) {
      throw fail(code, `the tensors' names have more than ${maxAllNamesUnits} characters together`, {
        maxAllNamesUnits,
      });
    }
  }
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
