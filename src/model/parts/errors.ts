import { TensorBusError } from "../../errors.ts";

/** Parts that do not fit together: `TB_PARTS`, with the tensor or parameter, the rule and the rank in its details. */
export function partsError(message: string, details: Readonly<Record<string, unknown>>): TensorBusError {
  return new TensorBusError("TB_PARTS", message, { details });
}

export function someNames(names: readonly string[]): string {
  return names.length <= 3
    ? names.join(", ")
    : `${names.slice(0, 3).join(", ")} and ${names.length - 3} more`;
}
