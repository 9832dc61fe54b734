/**
 * The pieces of one box where target replicas share it by stripes: from a source to one member of each group
 * (stage 1), and from there to the others (stage 2). A group with a member that holds the box itself is served
 * as a direct plan serves it. Whole cells are handed on; but where a rank can be on both sides, so that some
 * boxes of a cell may not be striped, every piece by itself.
 */
import { pieces, placePiece } from "./cut";
import { senderOf } from "./route";
import { COPY, emit, emitOnce, NONE, SEND } from "./sink";
import {
  cell,
  cellCount,
  enterStripes,
  groupCount,
  groupHolds,
  groupMember,
  groupOf,
  groupSize,
  markHolders,
  nextPart,
  placeCell,
  startParts,
  stripeMember,
} from "./stripe";
import { pattern, source, sourceOrigin, targetOrigin, targetRankAt } from "./tensor";

/** The stripe of a record (`sink.ts`) that is handed on by itself: its box names it. */
export const PIECE: u32 = 0xfffffffe;

/** Names what the piece at hand fills: its cell, or itself where pieces are handed on. */
// @ts-ignore: decorator
@inline
export function stripeName(): u32 {
  return pattern.meeting ? PIECE : <u32>cell;
}

/** What of the box at hand begins at `rank`, a source. */
export function sendStripes(rank: u32, origin: u32): void {
  const senders: i64 = source.replicas;
  const targetAt = targetOrigin();
  const total = startParts(targetAt, senders);
  const groups = groupCount();
  const items = total * groups;
  if (pattern.meeting) markHolders(origin);
  let number: i64 = 0;
  while (nextPart(senders)) {
    for (let piece: i64 = 0; piece < pieces; piece++) {
      placePiece(piece);
      for (let group: u32 = 0; group < groups; group++) {
        const item = (number + piece) * groups + group;
        if (pattern.meeting && groupHolds(group)) {
          sendToGroup(rank, origin, targetAt, group, item, items);
          continue;
        }
        const to = targetRankAt(targetAt, stripeMember(group, cell));
        if (senders > 1 && senderOf(origin, item, items, to) != rank) continue;
        emit(1, SEND, rank, to, 0, stripeName());
      }
      if (emitOnce && senders == 1) break;
    }
    number += pieces;
  }
}

/** To every member of a group: items count on from member to member. */
function sendToGroup(rank: u32, origin: u32, targetAt: u32, group: u32, item: i64, items: i64): void {
  for (let index: u32 = 0; index < groupSize(group); index++) {
    const to = targetRankAt(targetAt, groupMember(group, index));
    if (senderOf(origin, item + index, items, to) != rank) continue;
    emit(1, to == rank ? COPY : SEND, rank, to);
  }
}

/** What of the box at hand ends at `rank` and begins elsewhere, and, of pieces handed on, what begins there. */
export function takeStripes(rank: u32, replica: u32, targetAt: u32, arrivals: bool): void {
  const senders: i64 = source.replicas;
  const origin = sourceOrigin();
  const total = startParts(targetAt, senders);
  const groups = groupCount();
  const items = total * groups;
  const group = groupOf(replica);
  if (pattern.meeting) markHolders(origin);
  const isDirect = pattern.meeting && groupHolds(group);
  const index = isDirect ? indexIn(group, replica) : 0;
  let number: i64 = 0;
  while (nextPart(senders)) {
    const member = stripeMember(group, cell);
    for (let piece: i64 = 0; piece < pieces; piece++) {
      const item = (number + piece) * groups + group;
      if (arrivals && (isDirect || member == replica)) {
        const from = senderOf(origin, item + index, items, rank);
        if (from == rank) continue;
        placePiece(piece);
        emit(1, SEND, from, rank, 0, isDirect ? NONE : stripeName());
      }
      if (isDirect || !pattern.meeting) continue;
      placePiece(piece);
      handOn(rank, replica, targetAt, group, member, arrivals, PIECE);
    }
    number += pieces;
  }
}

function indexIn(group: u32, replica: u32): u32 {
  let index: u32 = 0;
  while (groupMember(group, index) != replica) index++;
  return index;
}

/** The piece at hand, from the member that received it to the others of its group. */
export function handOn(
  rank: u32,
  replica: u32,
  targetAt: u32,
  group: u32,
  member: u32,
  arrivals: bool,
  stripe: u32,
): void {
  if (member != replica) {
    if (arrivals) emit(2, SEND, targetRankAt(targetAt, member), rank, 0, stripe);
    return;
  }
  for (let index: u32 = 0; index < groupSize(group); index++) {
    const other = groupMember(group, index);
    if (other != replica) emit(2, SEND, rank, targetRankAt(targetAt, other), 0, stripe);
  }
}

/** All cells that `rank` hands on, and with `arrivals` those that are handed to it. */
export function fanCells(rank: u32, replica: u32, targetAt: u32, arrivals: bool): void {
  enterStripes(targetAt);
  const group = groupOf(replica);
  if (groupSize(group) == 1) return;
  for (let number: i64 = 0; number < cellCount(); number++) {
    const member = stripeMember(group, number);
    if (member != replica && !arrivals) continue;
    placeCell(number);
    handOn(rank, replica, targetAt, group, member, arrivals, <u32>number);
  }
}
