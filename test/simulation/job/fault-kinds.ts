/** What kinds of faults leave to be known. */
import type { FaultKind } from "./scenario.ts";

/** Faults after which everyone can be told at once that a batch has ended. */
export const tellsEnds: ReadonlySet<FaultKind> = new Set([
  "kill agent",
  "kill host",
  "kill client",
  "abort",
  "clean up",
]);

/** Faults after which nobody is silent. */
export const saysAll: ReadonlySet<FaultKind> = new Set(["abort", "abort ahead", "call twice", "clean up"]);

/** Faults that end calls alone. */
export const endsCalls: ReadonlySet<FaultKind> = new Set(["abort", "abort ahead", "call twice"]);
