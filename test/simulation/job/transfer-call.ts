/** One rank's part in a transfer, and what its call says of it. */
import type { Call } from "../world/client.ts";
import type { Registration } from "./registration.ts";
import type { SideName } from "./scenario.ts";

export interface Violation {
  readonly rule: string;
  readonly what: string;
}

/** One rank's part in a transfer. */
export interface TransferCall {
  readonly stamp: number;
  readonly call: Call;
  readonly registration: Registration;
  /** Of the registration that stood when it was made. */
  readonly name: string;
  readonly from: SideName;
  readonly version: number | undefined;
  /** It is not known what an earlier round has come to, or will: memory may be its. */
  readonly hadDoubt: boolean;
  /** What the client's memory held when it called. */
  readonly before: Int32Array;
}

export function roundOf({ result, error }: Call): number | undefined {
  const round = (result as { round?: number } | undefined)?.round ?? error?.details["round"];
  return typeof round === "number" ? round : undefined;
}

export function overlaps(one: Call, other: Call): boolean {
  const end = (call: Call) => call.ended ?? Number.POSITIVE_INFINITY;
  return one.began < end(other) && other.began < end(one);
}

/** The agent has not said how it ended. */
export function isUnknown(code: string): boolean {
  return code === "TB_AGENT_LOST" || code === "TB_AGENT_UNRESPONSIVE";
}

/** True if memory holds the same at two moments. */
export function areSame(one: Int32Array, other: Int32Array): boolean {
  for (let index = 0; index < one.length; index++) if (one[index] !== other[index]) return false;
  return true;
}
