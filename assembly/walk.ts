/**
 * Walk: all chunks of one rank, tensor by tensor in the order of the input, boxes by their global starts,
 * pieces in order; the same order on both ends of every channel. Each chunk goes to the sink (`sink.ts`).
 */
import { boxLengths, boxSource, boxTarget } from "./box";
import { cutBox, pieces, placePiece } from "./cut";
import { bucketBytes, hosts, tensorCount } from "./model";
import {
  enterBox,
  listOwners,
  ownerOf,
  ownerRank,
  ownerRotation,
  rotation,
  senderOf,
} from "./route";
import { COPY, emit, emitOnce, endPiece, nextPiece, REDUCE, SEND } from "./sink";
import {
  enter,
  enterSource,
  enterTarget,
  holdsSource,
  overlapAt,
  pattern,
  source,
  sourceContribution,
  sourceGroups,
  sourceOrigin,
  sourceRankAt,
  sourceReplica,
  target,
  targetGroups,
  targetOrigin,
  targetRankAt,
  targetReplica,
} from "./tensor";
import { i64At, setI64, setU32, u32At } from "./words";

const at: usize = memory.data(32, 8);
const first: usize = memory.data(32, 8);
const end: usize = memory.data(32, 8);

/**
 * Chunks that begin at `rank` in stage 1, and those that end there in stage 0. With `contributions` also
 * those that begin there in stage 0 and end elsewhere.
 */
export function walkSource(rank: u32, contributions: bool): void {
  if (!enterSource(rank)) return;
  let boxes: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const pointers = overlapAt(dim).sourcePointers;
    const group = u32At(sourceGroups, dim);
    setU32(first, dim, u32At(pointers, group));
    setU32(at, dim, u32At(pointers, group));
    setU32(end, dim, u32At(pointers, group + 1));
    boxes *= u32At(pointers, group + 1) - u32At(pointers, group);
  }
  const origin = sourceOrigin();
  for (let box: i64 = 0; box < boxes; box++) {
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
      const overlap = overlapAt(dim);
      const segment = u32At(at, dim);
      setU32(targetGroups, dim, u32At(overlap.targetGroup, segment));
      placeBox(dim, segment);
    }
    enterBox(box, boxes);
    if (source.contributions > 1) reduceBox(rank, origin, contributions);
    else sendBox(rank, origin);
    step();
  }
}

/** Chunks that end at `rank` in stage 1 and begin elsewhere. */
export function walkTarget(rank: u32): void {
  if (!enterTarget(rank)) return;
  let count: i64 = 1;
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    const pointers = overlapAt(dim).targetPointers;
    const group = u32At(targetGroups, dim);
    setU32(first, dim, u32At(pointers, group));
    setU32(at, dim, u32At(pointers, group));
    setU32(end, dim, u32At(pointers, group + 1));
    count *= u32At(pointers, group + 1) - u32At(pointers, group);
  }
  const replica = targetReplica;
  const targetAt = targetOrigin();
  for (let number: i64 = 0; number < count; number++) {
    let box: i64 = 0;
    let boxes: i64 = 1;
    for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
      const overlap = overlapAt(dim);
      const segment = u32At(overlap.targetList, u32At(at, dim));
      const group = u32At(overlap.sourceGroup, segment);
      const begin = u32At(overlap.sourcePointers, group);
      const segments = u32At(overlap.sourcePointers, group + 1) - begin;
      setU32(sourceGroups, dim, group);
      placeBox(dim, segment);
      box = box * segments + (segment - begin);
      boxes *= segments;
    }
    enterBox(box, boxes);
    if (source.contributions > 1) takeReduced(rank, targetAt);
    else takeBox(rank, replica);
    step();
  }
}

function placeBox(dim: u32, segment: u32): void {
  const overlap = overlapAt(dim);
  setI64(boxLengths, dim, i64At(overlap.lengths, segment));
  setI64(boxSource, dim, i64At(overlap.sourceLocal, segment));
  setI64(boxTarget, dim, i64At(overlap.targetLocal, segment));
}

/** Moves `at` to the next box: the last dimension first. */
function step(): void {
  for (let dim = pattern.ndim; dim > 0; dim--) {
    const next = u32At(at, dim - 1) + 1;
    if (next < u32At(end, dim - 1)) {
      setU32(at, dim - 1, next);
      return;
    }
    setU32(at, dim - 1, u32At(first, dim - 1));
  }
}

function sendBox(rank: u32, origin: u32): void {
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
  const start = rotation(target.replicas, senders);
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
  for (let piece: i64 = 0; piece < pieces; piece++) {
    placePiece(piece);
    for (let replica: u32 = 0; replica < target.replicas; replica++) {
      const to = targetRankAt(targetAt, replica);
      if (senderOf(origin, piece, to, replica) == rank) emit(1, to == rank ? COPY : SEND, rank, to);
    }
  }
}

function takeBox(rank: u32, replica: u32): void {
  cutBox(pattern.ndim, boxLengths, pattern.cutItem, bucketBytes, source.replicas);
  const origin = sourceOrigin();
  for (let piece: i64 = 0; piece < pieces; piece++) {
    const from = senderOf(origin, piece, rank, replica);
    if (from == rank) continue;
    placePiece(piece);
    emit(1, SEND, from, rank);
  }
}

function reduceBox(rank: u32, origin: u32, contributions: bool): void {
  const holders: i64 = source.replicas * source.contributions;
  const mine = sourceReplica * source.contributions + sourceContribution;
  const replica = sourceReplica;
  const targetAt = targetOrigin();
  cutBox(pattern.ndim, boxLengths, pattern.cutItem, bucketBytes, holders);
  listOwners(origin, targetAt);
  const start = ownerRotation();
  for (let piece: i64 = 0; piece < pieces; piece++) {
    const owner = ownerOf(start, piece);
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
    for (let to: u32 = 0; to < target.replicas; to++) {
      const rankOfTarget = targetRankAt(targetAt, to);
      emit(1, rankOfTarget == rank ? COPY : SEND, rank, rankOfTarget);
    }
    endPiece();
  }
}

function takeReduced(rank: u32, targetAt: u32): void {
  const holders: i64 = source.replicas * source.contributions;
  cutBox(pattern.ndim, boxLengths, pattern.cutItem, bucketBytes, holders);
  const origin = sourceOrigin();
  listOwners(origin, targetAt);
  const start = ownerRotation();
  for (let piece: i64 = 0; piece < pieces; piece++) {
    const from = ownerRank(origin, ownerOf(start, piece));
    if (from == rank) continue;
    placePiece(piece);
    emit(1, SEND, from, rank);
  }
}

/** Everything that begins or ends at a rank. */
export function walkRank(rank: u32): void {
  for (let index: u32 = 0; index < tensorCount; index++) {
    enter(index);
    walkSource(rank, true);
    walkTarget(rank);
  }
}

/** What is at home at a rank: every chunk of the world is at home at exactly one. */
export function walkHome(rank: u32): void {
  for (let index: u32 = 0; index < tensorCount; index++) {
    enter(index);
    walkSource(rank, false);
  }
}
