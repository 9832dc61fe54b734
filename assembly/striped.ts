/**
 * The pieces of one box that target replicas share by stripes: each goes from a source to one member of each group
 * (stage 1), and from there to the others (stage 2). A group with a member that holds the box itself is served
 * as a direct plan serves it. Whole cells are handed on. But if a rank can be on both sides, some boxes of a cell
 * may not be striped, and every piece is handed on by itself.
 */
import { firstSolution, modulo, solutionStep, startSolutions } from "./congruence";
import { pieces, placePiece } from "./cut";
import { HOST, hosts } from "./model";
import { findHost, foundEnd, foundFirst, holderAt, indexOnHost, nearbyList } from "./nearby";
import { rotation, senderOf } from "./route";
import { COPY, emit, emitOnce, SEND } from "./sink";
import {
  cell,
  cellCount,
  enterGroupHolders,
  enterStripes,
  groupCount,
  groupHolds,
  groupMember,
  groupOf,
  groupSize,
  indexInGroup,
  nextPart,
  placeCell,
  startParts,
  stripeMember,
} from "./stripe";
import {
  foundReplica,
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
  if (pattern.meeting) enterGroupHolders(targetAt);
  const isOwn = pattern.meeting && wantsTarget(rank);
  const replica = foundReplica;
  if (senders > 1) startTurns(rank, origin, targetAt, total * groups);
  let first: i64 = 0;
  while (nextPart(senders)) {
    const count = emitOnce && senders == 1 ? 1 : pieces;
    if (isOwn) copyPieces(rank, count);
    if (senders == 1) sendAll(rank, targetAt, count);
    else sendTurns(rank, targetAt, first, first + count * groups);
    if (hosts != 0 && senders > 1) sendNear(rank, targetAt, first, first + count * groups);
    if (senders > 1 && pattern.meeting) sendMissing(rank, targetAt, first, count);
    else if (isOwn) sendOthers(rank, targetAt, replica, count);
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
/** The replicas on the rank's own host are those of the list from a place up to another; and their group. */
let targetList: usize = 0;
let targetFirst: u32 = 0;
let targetEnd: u32 = 0;
let ownGroup: u32 = 0;

function startTurns(rank: u32, origin: u32, targetAt: u32, items: i64): void {
  const senders: i64 = source.replicas;
  turn = (<i64>sourceReplica - rotation(items, senders) + senders) % senders;
  if (hosts == 0) return;
  nearby = nearbyList(source, origin);
  near = findHost(nearby, hostOf(rank));
  nearTurn = (<i64>indexOnHost(nearby, sourceReplica) - rotation(items, near) + near) % near;
  targetList = nearbyList(target, targetAt);
  const isNear = findHost(targetList, hostOf(rank)) > 0;
  targetFirst = isNear ? foundFirst : 0;
  targetEnd = isNear ? foundEnd : 0;
  ownGroup = isNear ? groupOf(holderAt(targetList, targetFirst)) : NONE;
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
  if (pattern.striping == HOST) {
    sendNearGroup(rank, targetAt, first, end);
    return;
  }
  // One group of all: an item is a piece.
  for (; nearTurn < end; nearTurn += near) {
    if (pattern.meeting && groupHolds(0)) continue;
    const to = targetRankAt(targetAt, stripeMember(0, cell));
    if (hostOf(to) != hostOf(rank)) continue;
    placePiece(nearTurn - first);
    emit(1, SEND, rank, to, 0, stripeName());
  }
}

/** The same where all targets of the host are one group. */
function sendNearGroup(rank: u32, targetAt: u32, first: i64, end: i64): void {
  if (pattern.meeting && groupHolds(ownGroup)) return;
  const groups: i64 = groupCount();
  const count = (end - first) / groups;
  const to = targetRankAt(targetAt, stripeMember(ownGroup, cell));
  startSolutions(groups, near);
  let piece = firstSolution(modulo(nearTurn - first - ownGroup, near));
  if (piece < 0) return;
  for (; piece < count; piece += solutionStep) {
    placePiece(piece);
    emit(1, SEND, rank, to, 0, stripeName());
  }
}

/** To the others of the group of a lone source, which lack what it has. */
function sendOthers(rank: u32, targetAt: u32, replica: u32, count: i64): void {
  const group = groupOf(replica);
  for (let index: u32 = 0; index < groupSize(group); index++) {
    const to = groupMember(group, index);
    if (to == replica) continue;
    for (let piece: i64 = 0; piece < count; piece++) {
      placePiece(piece);
      emit(1, SEND, rank, targetRankAt(targetAt, to));
    }
  }
}

/**
 * To those members of a group that lack what another has, by all sources or those on the member's host: items count on from
 * member to member.
 */
function sendMissing(rank: u32, targetAt: u32, first: i64, count: i64): void {
  if (hosts != 0 && ownGroup != NONE && groupHolds(ownGroup)) {
    const isGroup = pattern.striping == HOST;
    const from = isGroup ? 0 : targetFirst;
    const end = isGroup ? groupSize(ownGroup) : targetEnd;
    sendLacking(rank, targetAt, ownGroup, !isGroup, from, end, near, nearTurn - first, count, true);
  }
  // A group of one host has a source there if a member holds the box.
  if ((hosts != 0 && pattern.striping == HOST) || !groupHolds(0)) return;
  sendLacking(rank, targetAt, 0, false, 0, groupSize(0), source.replicas, turn - first, count, false);
}

/**
 * The pieces of the part at hand for members of a group that are the rank's: of `turns` sources the one whose item
 * `turn` is takes that of each piece · groups + group + index that leaves the same. Members are those of the group from an
 * index to another, or of `targetList` from a place to another. By pieces or by members, whichever are fewer.
 */
function sendLacking(
  rank: u32,
  targetAt: u32,
  group: u32,
  areListed: bool,
  from: u32,
  end: u32,
  turns: i64,
  turn: i64,
  count: i64,
  areNear: bool,
): void {
  const groups: i64 = groupCount();
  const rest = modulo(turn - group, turns);
  const low: i64 = areListed ? holderAt(targetList, from) : from;
  const high: i64 = areListed ? holderAt(targetList, end - 1) + 1 : end;
  // Items of one group follow each other without a gap: few sources have one.
  if (groups == 1 && modulo(rest - low, turns) >= count + high - low - 1) return;
  if (count * ((high - low) / turns + 1) < <i64>(end - from)) {
    for (let piece: i64 = 0; piece < count; piece++) {
      let index = low + modulo(rest - piece * groups - low, turns);
      for (; index < high; index += turns) {
        const to = targetRankAt(targetAt, groupMember(group, <u32>index));
        if (lacks(rank, to, areNear)) sendPiece(rank, to, piece);
      }
    }
    return;
  }
  startSolutions(groups, turns);
  for (let at = from; at < end; at++) {
    const index = areListed ? holderAt(targetList, at) : at;
    let piece = firstSolution(modulo(rest - index, turns));
    if (piece < 0 || piece >= count) continue;
    const to = targetRankAt(targetAt, groupMember(group, index));
    if (!lacks(rank, to, areNear)) continue;
    for (; piece < count; piece += solutionStep) sendPiece(rank, to, piece);
  }
}

/** True if a target does not hold the box at hand, and is on the rank's host, or on one without any source of it. */
function lacks(rank: u32, to: u32, areNear: bool): bool {
  if (holdsSource(to)) return false;
  if (hosts == 0) return true;
  return areNear ? hostOf(to) == hostOf(rank) : findHost(nearby, hostOf(to)) == 0;
}

function sendPiece(rank: u32, to: u32, piece: i64): void {
  placePiece(piece);
  emit(1, SEND, rank, to);
}

/** What of the box at hand ends at `rank` and begins elsewhere, and, of pieces handed on, what begins there. */
export function takeStripes(rank: u32, replica: u32, targetAt: u32, arrivals: bool): void {
  const senders: i64 = source.replicas;
  const origin = sourceOrigin();
  const total = startParts(targetAt, senders);
  const groups = groupCount();
  const items = total * groups;
  const group = groupOf(replica);
  if (pattern.meeting) enterGroupHolders(targetAt);
  const isDirect = pattern.meeting && groupHolds(group);
  const index = isDirect ? indexInGroup(replica) : 0;
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
