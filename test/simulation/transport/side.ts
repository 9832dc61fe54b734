/** What a transfer has to do with one peer, as the virtual transport keeps it. */
import { TensorBusError } from "../../../src/errors.ts";
import type { Link } from "../world/network.ts";
import type { Failure, Frame } from "./frames.ts";
import type { ChannelMoves } from "./program.ts";

export interface Channel extends ChannelMoves {
  /** The last round for which the target has granted it (send), or this rank has (receive). */
  granted: number;
  done: number;
  isFinished: boolean;
}

export interface Side {
  readonly rank: number;
  readonly channels: readonly Channel[];
  link: Link<Frame> | undefined;
  /** The peer's number of it. */
  remote: number | undefined;
  isAgreed: boolean;
  isGone: boolean;
  readonly isLinked: boolean;
  /** The last round that the peer has begun. */
  here: number;
  /** It is linked, and has not begun the round under way. */
  isAwaited: boolean;
}

export function channelOf(side: Side, name: string): Channel {
  return side.channels.find((channel) => channel.name === name)!;
}

export function channelsOf({ channels }: Side): string {
  return channels
    .map(({ name, bytes, buckets }) => `${name} ${bytes} ${buckets.length}`)
    .sort()
    .join();
}

export function isUnfinished({ channels, isAwaited }: Side): boolean {
  return isAwaited || channels.some(({ isFinished }) => !isFinished);
}

/** No other attempt would do. */
export function isRefusal(error: unknown): boolean {
  return error instanceof TensorBusError && error.code === "TB_PLAN_MISMATCH";
}

/** A deadline that passed is this rank's own; for others, it gave up. */
export function asFailure(error: unknown, own: number): Failure {
  const { code, message, details } = error as TensorBusError;
  const rank = typeof details["rank"] === "number" ? details["rank"] : own;
  return { code: code === "TB_TIMEOUT" ? "TB_CANCELLED" : code, rank, message };
}

export function errorOf({ code, message, rank }: Failure): TensorBusError {
  return new TensorBusError(code, message, { details: { rank } });
}
