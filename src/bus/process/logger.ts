/** The log of the bus: to standard error, so that no program's output is mixed with it. */

import { destination, type Logger, pino } from "pino";
import { visible } from "../../visible.ts";

/**
 * The module's logger. Its level is that of `TENSOR_BUS_LOG_LEVEL`, else `warn`. Secrets and the contents of tensors are
 * never logged.
 */
export let logger: Logger = pino(
  {
    name: "tensorbus",
    level: process.env["TENSOR_BUS_LOG_LEVEL"] || "warn",
    // JSON escapes what a terminal obeys, but not what changes the order of a line.
    hooks: { streamWrite: visible },
  },
  destination({ dest: 2, sync: true }),
);

/** Has everything logged through another pino logger from now on. */
export function setLogger(replacement: Logger): void {
  logger = replacement;
}
