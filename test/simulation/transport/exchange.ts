/** All that is between two ranks in what is prepared, as one of them sees it. */
import { TensorBusError } from "../../../src/errors.ts";
import type { Link } from "../world/network.ts";
import type { Frame } from "./frames.ts";
import type { ChannelMoves } from "./program.ts";

export interface Channel extends ChannelMoves {
  /** The last round for which the target has granted it. */
  granted: number;
  done: number;
  isFinished: boolean;
}

export interface Exchange {
  readonly rank: number;
  readonly channels: readonly Channel[];
  /** Neither completes a round that the other has not begun. */
  readonly isLinked: boolean;
  link: Link<Frame> | undefined;
  /** The peer's number of what is prepared. */
  remote: number | undefined;
  isAgreed: boolean;
  /** It is prepared there no more, or its rank is lost. */
  isGone: boolean;
  /** The last round that it is known to have begun. */
  here: number;
  /** It is linked, and has not begun the round under way. */
  isAwaited: boolean;
}

export function newChannel(moves: ChannelMoves): Channel {
  const { name, direction, peer, buckets, bytes } = moves;
  return { name, direction, peer, buckets, bytes, granted: 0, done: 0, isFinished: false };
}

export function channelOf({ channels }: Exchange, name: string): Channel {
  return channels.find((channel) => channel.name === name)!;
}

/** What both ends must say alike of the channels between them. */
export function describeChannels({ channels }: Exchange): string {
  return channels
    .map(({ name, bytes, buckets }) => `${name} ${bytes} ${buckets.length}`)
    .sort()
    .join();
}

export function isUnfinished({ channels, isAwaited }: Exchange): boolean {
  return isAwaited || channels.some(({ isFinished }) => !isFinished);
}

/** Bytes of all channels, by where they go. */
export function sumUp(channels: readonly Channel[]) {
  const sum = (which: string) =>
    channels.reduce((bytes, channel) => bytes + (channel.direction === which ? channel.bytes : 0n), 0n);
  return { bytesSent: sum("send"), bytesReceived: sum("receive"), bytesCopied: sum("local") };
}

export interface Awaited {
  readonly rank: number;
  readonly absent: boolean;
}

export function awaitedIn(exchanges: readonly Exchange[], round: number): Awaited[] {
  return exchanges.filter(isUnfinished).map(({ rank, here }) => ({ rank, absent: here < round }));
}

/** Names, of those who have not begun the round, the lowest, else the first that has not finished. */
export function lateError(own: number, round: number, awaited: readonly Awaited[]): TensorBusError {
  const absent = awaited.filter((each) => each.absent).map(({ rank }) => rank);
  const rank = absent.length > 0 ? Math.min(...absent) : (awaited[0]?.rank ?? own);
  const message = `rank ${own} waited too long in round ${round}, for rank ${rank} first of all`;
  const details = { rank, absent, waitsFor: awaited.map((each) => each.rank) };
  return new TensorBusError("TB_TIMEOUT", message, { details });
}
