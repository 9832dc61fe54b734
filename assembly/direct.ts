/** The pieces of one box where every target replica gets its own from a source. */
import { boxLengths } from "./box";
import { cutBox, pieces, placePiece } from "./cut";
import { bucketBytes, hosts } from "./model";
import { rotation, senderOf } from "./route";
import { COPY, emit, emitOnce, SEND } from "./sink";
import {
  holdsSource,
  pattern,
  source,
  sourceOrigin,
  sourceReplica,
  target,
  targetOrigin,
  targetRankAt,
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
  if (pattern.meeting) copyOwn(rank, targetAt);
  // Of the items (piece, replica) in order, every `senders`-th is this rank's.
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

/** The rank wants what it holds: all pieces, from itself. */
function copyOwn(rank: u32, targetAt: u32): void {
  for (let replica: u32 = 0; replica < target.replicas; replica++) {
    if (targetRankAt(targetAt, replica) != rank) continue;
    for (let piece: i64 = 0; piece < pieces; piece++) {
      placePiece(piece);
      emit(1, COPY, rank, rank);
    }
  }
}

/** With a topology the candidates differ from target to target. */
function sendChosen(rank: u32, origin: u32, targetAt: u32): void {
  const items = pieces * target.replicas;
  for (let item: i64 = 0; item < items; item++) {
    const to = targetRankAt(targetAt, <u32>(item % target.replicas));
    if (senderOf(origin, item, items, to) != rank) continue;
    placePiece(item / target.replicas);
    emit(1, to == rank ? COPY : SEND, rank, to);
  }
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
