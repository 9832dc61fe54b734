/**
 * The pieces of one box that target replicas share by stripes: each goes from a source to one member of each group
 * (stage 1), and from there to the others (stage 2). A group with a member that holds the box itself is served
 * as a direct plan serves it. Whole cells are handed on. But if a rank can be on both sides, some boxes of a cell
 * may not be striped, and every piece is handed on by itself.
 */
import { pieces, placePiece } from "./cut";
import { HOST, hosts } from "./model";
import { findHost, foundFirst, holderAt, indexOnHost, nearbyList } from "./nearby";
import { rotation, senderOf } from "./route";
import { COPY, emit, emitOnce, SEND } from "./sink";
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
  missingCount,
  missingReplica,
  nextPart,
  placeCell,
  startParts,
  stripeMember,
} from "./stripe";
import {
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
import { NONE } from "./words";

/** The stripe of a record (`sink.ts`) that is handed on by itself: its box names it. */
export const PIECE: u32 = 0xfffffffe;

/** Names what the piece at hand fills: its cell, or itself if pieces are handed on. */
// @ts-ignore: decorator
@inline
export function stripeName(): u32 {
  return pattern.meeting ? PIECE : <u32>cell;
}

/** What of the box at hand begins at `rank`, a source. Items are (part, piece, group) in order. */
export function sendStripes(rank: u32, origin: u32): void {
  const senders: i64 = source.replicas;
  const targetAt = targetOrigin();
  const total = startParts(targetAt, senders);
  const groups: i64 = groupCount();
  if (pattern.meeting) markHolders(origin, targetAt);
  const isOwn = pattern.meeting && wantsTarget(rank);
  if (senders > 1) startTurns(rank, origin, targetAt, total * groups);
  let first: i64 = 0;
  while (nextPart(senders)) {
    const count = emitOnce && senders == 1 ? 1 : pieces;
    if (isOwn) copyPieces(rank, count);
    if (senders == 1) sendAll(rank, targetAt, count);
    else sendTurns(rank, targetAt, first, first + count * groups);
    if (hosts != 0 && senders > 1) sendNear(rank, targetAt, first, first + count * groups);
    if (pattern.meeting) sendMissing(rank, origin, targetAt, first, total * groups, count);
    first += pieces * groups;
  }
}

function copyPieces(rank: u32, count: i64): void {
  for (let piece: i64 = 0; piece < count; piece++) {
    placePiece(piece);
    emit(1, COPY, rank, rank);
  }
}

/** The next item that is the rank's by turns among all sources, and among those of its host; who these are. */
let turn: i64 = 0;
let nearTurn: i64 = 0;
let near: i64 = 0;
let nearby: usize = 0;
/** The group of the rank's own host, if groups are those of hosts. */
let ownGroup: u32 = 0;

function startTurns(rank: u32, origin: u32, targetAt: u32, items: i64): void {
  const senders: i64 = source.replicas;
  turn = (<i64>sourceReplica - rotation(items, senders) + senders) % senders;
  if (hosts == 0) return;
  nearby = nearbyList(source, origin);
  near = findHost(nearby, hostOf(rank));
  nearTurn = (<i64>indexOnHost(nearby, sourceReplica) - rotation(items, near) + near) % near;
  const targets = nearbyList(target, targetAt);
  ownGroup = findHost(targets, hostOf(rank)) > 0 ? groupOf(holderAt(targets, foundFirst)) : NONE;
}

/** All items of the part at hand: nobody else could send them. */
function sendAll(rank: u32, targetAt: u32, count: i64): void {
  const groups = groupCount();
  for (let piece: i64 = 0; piece < count; piece++) {
    placePiece(piece);
    for (let group: u32 = 0; group < groups; group++) {
      if (pattern.meeting && groupHolds(group)) continue;
      emit(1, SEND, rank, targetRankAt(targetAt, stripeMember(group, cell)), 0, stripeName());
    }
  }
}

/** Every `senders`-th of all items is this rank's, except those for hosts that have sources of their own. */
function sendTurns(rank: u32, targetAt: u32, first: i64, end: i64): void {
  const senders: i64 = source.replicas;
  const groups: i64 = groupCount();
  for (; turn < end; turn += senders) {
    const group = <u32>((turn - first) % groups);
    if (pattern.meeting && groupHolds(group)) continue;
    const to = targetRankAt(targetAt, stripeMember(group, cell));
    if (hosts != 0 && findHost(nearby, hostOf(to)) > 0) continue;
    placePiece((turn - first) / groups);
    emit(1, SEND, rank, to, 0, stripeName());
  }
}

/** Every `near`-th of the items for targets on the rank's host is this rank's. */
function sendNear(rank: u32, targetAt: u32, first: i64, end: i64): void {
  if (ownGroup == NONE) return;
  const groups: i64 = groupCount();
  const isOneGroup = pattern.striping == HOST && near < groups;
  // By the items of the only group on the host, or by turns, whichever are fewer.
  let item = isOneGroup ? first + ownGroup : nearTurn;
  for (; item < end; item += isOneGroup ? groups : near) {
    const group = <u32>((item - first) % groups);
    if (item % near != nearTurn % near || (pattern.meeting && groupHolds(group))) continue;
    const to = targetRankAt(targetAt, stripeMember(group, cell));
    if (hostOf(to) != hostOf(rank)) continue;
    placePiece((item - first) / groups);
    emit(1, SEND, rank, to, 0, stripeName());
  }
  if (!isOneGroup) nearTurn = item;
}

/** To those members of a group that lack what another has: items count on from member to member. */
function sendMissing(rank: u32, origin: u32, targetAt: u32, first: i64, items: i64, count: i64): void {
  for (let at: u32 = 0; at < missingCount(); at++) {
    const replica = missingReplica(at);
    const group = groupOf(replica);
    const to = targetRankAt(targetAt, replica);
    const index = indexIn(group, replica);
    for (let piece: i64 = 0; piece < count; piece++) {
      const item = first + piece * groupCount() + group + index;
      if (senderOf(origin, item, items, to) != rank) continue;
      placePiece(piece);
      emit(1, SEND, rank, to);
    }
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
  if (pattern.meeting) markHolders(origin, targetAt);
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
