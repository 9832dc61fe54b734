/** One rank's part in a transfer, and what its call says of it. */
import type { Call } from "../world/client.ts";
import type { Registration } from "./registration.ts";
import type { SideName } from "./scenario.ts";

/** A call has been posted by then, and everyone has heard of it. */
export const surelyPostedMs = 100;

/** What ends a call whatever became of its round: its deadline, or the end of its batch. */
export const endsAnyCall: ReadonlySet<string> = new Set([
  "TB_TIMEOUT",
  "TB_PEER_LOST",
  "TB_CLIENT_LOST",
  "TB_BATCH_UNKNOWN",
  "TB_AGENT_LOST",
  "TB_CLOSED",
]);

/** By rank, the error that its call ended with, or what else it was. */
export interface Outcomes {
  readonly committed: Map<number, unknown>;
  readonly aborted: Map<number, unknown>;
}

/** A registration on one agent. */
export interface Standing {
  readonly generation: bigint;
  ended: number;
}

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

/**
 * True for a call of the other direction that this one may have been told of: one that was under way, that had completed a round in which
 * some rank had not been yet, or that failed so shortly before that the log told of it later.
 */
export function isOpposed(
  { call, registration, name, from }: TransferCall,
  own: Pick<TransferCall, "call" | "name" | "from">,
  all: readonly TransferCall[],
): boolean {
  if (name !== own.name || from === own.from || call.began >= own.call.ended!) return false;
  if (overlaps(call, own.call)) return true;
  if (call.error !== undefined) return call.ended! + surelyPostedMs > own.call.began;
  const isDone = (rank: number) =>
    all.some(
      (other) =>
        other.name === name &&
        other.from === from &&
        other.call.client.rank === rank &&
        other.call.error === undefined &&
        roundOf(other.call) === roundOf(call) &&
        (other.call.ended ?? Number.POSITIVE_INFINITY) <= own.call.began,
    );
  return !registration.ranks.every(isDone);
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
