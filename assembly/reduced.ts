/** The pieces of one box of a Partial source: reduced by an owner, then to the targets from there. */
import { pieces, placePiece } from "./cut";
import { DIRECT } from "./model";
import { listOwners, ownerOf, ownerRank, ownerRotation } from "./route";
import { COPY, emit, endPiece, nextPiece, REDUCE, SEND } from "./sink";
import {
  cell,
  groupCount,
  groupMember,
  groupOf,
  groupSize,
  nextPart,
  startParts,
  stripeMember,
} from "./stripe";
import { handOn, PIECE, stripeName } from "./striped";
import {
  foundReplica,
  pattern,
  source,
  sourceContribution,
  sourceOrigin,
  sourceRankAt,
  sourceReplica,
  target,
  targetRankAt,
  wantsTarget,
} from "./tensor";
import { NONE } from "./words";

/**
 * Contributions to pieces that `rank` owns, and the pieces to their targets; with `contributions` also those
 * that it makes to the pieces of others.
 */
export function reduceBox(rank: u32, origin: u32, targetAt: u32, contributions: bool): void {
  const holders: i64 = source.replicas * source.contributions;
  const replica = sourceReplica;
  const mine = replica * source.contributions + sourceContribution;
  listOwners(origin, targetAt);
  const start = ownerRotation(startParts(targetAt, holders));
  let number: i64 = 0;
  while (nextPart(holders)) {
    for (let piece: i64 = 0; piece < pieces; piece++) {
      const owner = ownerOf(start, number++);
      if (owner / source.contributions != replica) continue;
      if (owner != mine) {
        if (!contributions) continue;
        placePiece(piece);
        emit(0, REDUCE, rank, ownerRank(origin, owner), mine % source.contributions);
        continue;
      }
      placePiece(piece);
      nextPiece();
      for (let position: u32 = 0; position < source.contributions; position++) {
        emit(0, REDUCE, sourceRankAt(origin, replica, position), rank, position);
      }
      if (pattern.striping == DIRECT) sendToAll(rank, targetAt);
      else sendToGroups(rank, targetAt);
      endPiece();
    }
  }
}

function sendToAll(rank: u32, targetAt: u32): void {
  for (let replica: u32 = 0; replica < target.replicas; replica++) sendTo(rank, targetAt, replica, NONE);
}

function sendTo(rank: u32, targetAt: u32, replica: u32, stripe: u32): void {
  const to = targetRankAt(targetAt, replica);
  emit(1, to == rank ? COPY : SEND, rank, to, 0, stripe);
}

/** To every member of the owner's own group, to one member of each other. */
function sendToGroups(rank: u32, targetAt: u32): void {
  const own = ownersGroup(rank);
  for (let group: u32 = 0; group < groupCount(); group++) {
    if (group != own) {
      sendTo(rank, targetAt, stripeMember(group, cell), stripeName());
      continue;
    }
    for (let index: u32 = 0; index < groupSize(group); index++) {
      sendTo(rank, targetAt, groupMember(group, index), NONE);
    }
  }
}

/** The group that the owner of a piece is a member of, if any. */
function ownersGroup(rank: u32): u32 {
  return pattern.meeting && wantsTarget(rank) ? groupOf(foundReplica) : NONE;
}

/** Pieces that end at `rank` and begin elsewhere; and, of pieces handed on, what begins there. */
export function takeReduced(rank: u32, replica: u32, targetAt: u32, arrivals: bool): void {
  const holders: i64 = source.replicas * source.contributions;
  const origin = sourceOrigin();
  const isStriped = pattern.striping != DIRECT;
  listOwners(origin, targetAt);
  const start = ownerRotation(startParts(targetAt, holders));
  const group = isStriped ? groupOf(replica) : 0;
  let number: i64 = 0;
  while (nextPart(holders)) {
    const member = isStriped ? stripeMember(group, cell) : replica;
    for (let piece: i64 = 0; piece < pieces; piece++) {
      const from = ownerRank(origin, ownerOf(start, number++));
      const isDirect = !isStriped || (pattern.meeting && ownersGroup(from) == group);
      if (arrivals && from != rank && (isDirect || member == replica)) {
        placePiece(piece);
        emit(1, SEND, from, rank, 0, isDirect ? NONE : stripeName());
      }
      if (isDirect || !pattern.meeting) continue;
      placePiece(piece);
      handOn(rank, replica, targetAt, group, member, arrivals, PIECE);
    }
  }
}
