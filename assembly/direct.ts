/** The pieces of one box, if every target replica gets its own from a source. */
import { boxLengths } from "./box";
import { cutBox, pieces, placePiece } from "./cut";
import { bucketBytes, hosts } from "./model";
import { findHost, foundFirst, holderAt, indexOnHost, nearbyList } from "./nearby";
import { rotation, senderOf } from "./route";
import { COPY, emit, emitOnce, SEND } from "./sink";
import {
  holdsSource,
  hostOf,
  pattern,
  source,
  sourceOrigin,
  sourceReplica,
  target,
  targetOrigin,
  targetRankAt,
  wantsTarget,
} from "./tensor";

/** What of the box at hand begins at `rank`. */
export function sendBox(rank: u32, origin: u32): void {
  const senders: i64 = source.replicas;
  cutBox(pattern.ndim, boxLengths, pattern.cutItem, bucketBytes, senders);
  const targetAt = targetOrigin();
  if (hosts != 0 && senders > 1) {
    sendChosen(rank, origin, targetAt);
    return;
  }
  if (senders == 1) {
    for (let piece: i64 = 0; piece < pieces; piece++) {
      placePiece(piece);
      for (let replica: u32 = 0; replica < target.replicas; replica++) {
        const to = targetRankAt(targetAt, replica);
        emit(1, to == rank ? COPY : SEND, rank, to);
      }
      if (emitOnce) break;
    }
    return;
  }
  if (pattern.meeting) copyOwn(rank);
  // Every `senders`-th of the items (piece, replica) in order is this rank's.
  const items = pieces * target.replicas;
  const start = rotation(items, senders);
  let item = (<i64>sourceReplica - start + senders) % senders;
  let placed: i64 = -1;
  for (; item < items; item += senders) {
    const to = targetRankAt(targetAt, <u32>(item % target.replicas));
    if (pattern.meeting && holdsSource(to)) continue;
    const piece = item / target.replicas;
    if (piece != placed) placePiece(piece);
    placed = piece;
    emit(1, SEND, rank, to);
  }
}

/** If the rank wants what it holds: all pieces, from itself. */
function copyOwn(rank: u32): void {
  if (!wantsTarget(rank)) return;
  for (let piece: i64 = 0; piece < pieces; piece++) {
    placePiece(piece);
    emit(1, COPY, rank, rank);
    if (emitOnce) return;
  }
}

/**
 * With a topology the candidates differ from target to target: those on its host take turns, if there are any, else
 * all do. The pieces for one target come in order.
 */
function sendChosen(rank: u32, origin: u32, targetAt: u32): void {
  const items = pieces * target.replicas;
  const senders: i64 = source.replicas;
  if (pattern.meeting) copyOwn(rank);
  const nearby = nearbyList(source, origin);
  let item = (<i64>sourceReplica - rotation(items, senders) + senders) % senders;
  for (; item < items; item += senders) {
    const to = targetRankAt(targetAt, <u32>(item % target.replicas));
    if (findHost(nearby, hostOf(to)) == 0) sendPiece(rank, to, item / target.replicas);
  }
  const near: i64 = findHost(nearby, hostOf(rank));
  sendNear(
    rank,
    targetAt,
    near,
    (<i64>indexOnHost(nearby, sourceReplica) - rotation(items, near) + near) % near,
  );
}

/** Every `near`-th of the items for targets on the rank's host is this rank's, from item `first` on. */
function sendNear(rank: u32, targetAt: u32, near: i64, first: i64): void {
  const targets = nearbyList(target, targetAt);
  const host = hostOf(rank);
  const count = findHost(targets, host);
  if (<i64>target.replicas <= near * count) {
    for (let item = first; item < pieces * target.replicas; item += near) {
      const to = targetRankAt(targetAt, <u32>(item % target.replicas));
      if (hostOf(to) == host) sendPiece(rank, to, item / target.replicas);
    }
    return;
  }
  const begin = foundFirst;
  for (let place = begin; place < begin + count; place++) {
    const replica = holderAt(targets, place);
    for (let piece: i64 = 0; piece < pieces; piece++) {
      if ((piece * target.replicas + replica) % near != first) continue;
      sendPiece(rank, targetRankAt(targetAt, replica), piece);
    }
  }
}

function sendPiece(rank: u32, to: u32, piece: i64): void {
  if (pattern.meeting && holdsSource(to)) return;
  placePiece(piece);
  emit(1, SEND, rank, to);
}

/** What of the box at hand ends at `rank` and begins elsewhere. */
export function takeBox(rank: u32, replica: u32): void {
  cutBox(pattern.ndim, boxLengths, pattern.cutItem, bucketBytes, source.replicas);
  const origin = sourceOrigin();
  const items = pieces * target.replicas;
  for (let piece: i64 = 0; piece < pieces; piece++) {
    const from = senderOf(origin, piece * target.replicas + replica, items, rank);
    if (from == rank) continue;
    placePiece(piece);
    emit(1, SEND, from, rank);
  }
}
