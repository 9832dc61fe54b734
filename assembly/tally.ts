/**
 * Tally: sums over all chunks of the world, home by home, with no chunk kept. Buckets are cut here as
 * `order.ts` cuts them, with what is open for each peer as the only state; a test holds the two together.
 */
import { alloc, allocZero, grow } from "./arena";
import { noteLink, startLinks } from "./links";
import { bucketBytes, bucketsInFlight, DIRECT, Pattern, peersInFlight, tensorRun, world } from "./model";
import { i64At, NONE, setI64, setU32, u32At } from "./words";

/** For each rank eight i64: sent, received, copied, reduced, staging to send, to receive, pool, chunks. */
const RANK_WORDS: u32 = 8;
export let ranks: usize = 0;
/** For each stage and kind (copy, send, reduce) two i64: chunks, bytes. */
export const kinds: usize = memory.data(144, 8);
/** For each stage its buckets. */
export const buckets: usize = memory.data(24, 8);

/**
 * For each peer of the home, by stage: bytes in the open bucket, its run, buckets, the largest, oldest piece
 * read, chunks; bytes, bytes of all buckets, padding included, and bytes that the peer hands on.
 */
const PEER_BYTES: usize = 64;
const peers: usize = memory.data(16, 8);
const touched: usize = memory.data(16, 8);
const touchedCount: usize = memory.data(16, 8);
/** By rank and stage: buckets staged to be sent, and received; the largest. */
const sendStaged: usize = memory.data(16, 8);
const sendLargest: usize = memory.data(16, 8);
const takeStaged: usize = memory.data(16, 8);
const takeLargest: usize = memory.data(16, 8);

/** Pieces of the home: pool bytes up to the end of each, and the last piece of the bucket that brings it. */
let ends: usize = 0;
let bringer: usize = 0;
let lastOfBringer: usize = 0;
let bringers: u32 = 0;
let pieceCapacity: u32 = 0;
let pieceTotal: u32 = 0;
/** Oldest and newest piece that each bucket of the home reads. */
let spans: usize = 0;
let spanCount: u32 = 0;
let spanCapacity: u32 = 0;
let largestPiece: i64 = 0;

export function startTally(): void {
  ranks = allocZero((<usize>world * RANK_WORDS) << 3);
  memory.fill(kinds, 0, 144);
  memory.fill(buckets, 0, 24);
  startLinks();
  for (let stage: u32 = 0; stage < 3; stage++) {
    setU32(peers, stage, <u32>allocZero(<usize>world * PEER_BYTES));
    setU32(touched, stage, <u32>alloc((<usize>world) << 2));
    setU32(touchedCount, stage, 0);
    setU32(sendStaged, stage, <u32>allocZero((<usize>world) << 3));
    setU32(sendLargest, stage, <u32>allocZero((<usize>world) << 3));
    setU32(takeStaged, stage, <u32>allocZero((<usize>world) << 3));
    setU32(takeLargest, stage, <u32>allocZero((<usize>world) << 3));
  }
  pieceCapacity = 64;
  ends = alloc(64 << 3);
  bringer = alloc(64 << 2);
  lastOfBringer = alloc(64 << 2);
  spanCapacity = 64;
  spans = alloc(64 << 3);
}

export function startHome(): void {
  pieceTotal = 0;
  bringers = 0;
  largestPiece = 0;
  spanCount = 0;
}

function addTo(array: usize, index: u32, value: i64): void {
  setI64(array, index, i64At(array, index) + value);
}

/**
 * Takes a chunk of the home's. `piece` is the home's piece that the chunk brings a contribution to, or reads; or
 * `NONE`.
 */
export function tally(
  pattern: Pattern,
  tensor: u32,
  stage: u32,
  kind: u32,
  from: u32,
  to: u32,
  elements: i64,
  position: u32,
  piece: u32,
): void {
  const bytes = elements * pattern.stageItem(stage);
  addSums(stage, kind, from, to, bytes, 1);
  const isNew = fill(
    stage,
    stage == 0 ? from : to,
    bytes,
    stage == 0 ? tensorRun(tensor) : 0,
    stage == 1 && pattern.striping != DIRECT,
  );
  if (piece == NONE) return;
  if (stage == 0) {
    if (position == 0) addPiece(pattern, elements, isNew);
  } else {
    readPiece(to, piece);
  }
}

/** Adds `count` equal chunks to what is summed up by kind and by rank. */
export function addSums(stage: u32, kind: u32, from: u32, to: u32, bytes: i64, count: i64): void {
  const sum = bytes * count;
  addTo(kinds, (stage * 3 + kind) * 2, count);
  addTo(kinds, (stage * 3 + kind) * 2 + 1, sum);
  addTo(ranks, from * RANK_WORDS + 7, count);
  if (from == to) {
    if (stage == 1) addTo(ranks, from * RANK_WORDS + 2, sum);
  } else {
    addTo(ranks, from * RANK_WORDS, sum);
    addTo(ranks, to * RANK_WORDS + 1, sum);
    addTo(ranks, to * RANK_WORDS + 7, count);
  }
  if (stage == 0) addTo(ranks, to * RANK_WORDS + 3, sum);
}

/** Puts a chunk into the open bucket of a peer, or into a new one; answers whether it is new. */
export function fill(stage: u32, peer: u32, bytes: i64, run: u32, isHandedOn: bool): bool {
  const state = <usize>u32At(peers, stage) + <usize>peer * PEER_BYTES;
  const filled = load<i64>(state);
  const count = load<u32>(state, 12);
  const start = (filled + 15) & ~15;
  const isNew = count == 0 || start + bytes > bucketBytes || load<u32>(state, 8) != run;
  const now = isNew ? bytes : start + bytes;
  if (count == 0) {
    const number = u32At(touchedCount, stage);
    setU32(u32At(touched, stage), number, peer);
    setU32(touchedCount, stage, number + 1);
  }
  store<i64>(state, load<i64>(state, 48) + now - (isNew ? 0 : filled), 48);
  store<i64>(state, load<i64>(state, 40) + bytes, 40);
  if (isHandedOn) store<i64>(state, load<i64>(state, 56) + bytes, 56);
  store<u32>(state, load<u32>(state, 28) + 1, 28);
  store<i64>(state, now);
  store<u32>(state, run, 8);
  if (isNew) {
    store<u32>(state, count + 1, 12);
    store<u32>(state, NONE, 24);
  }
  store<i64>(state, max(load<i64>(state, 16), now), 16);
  return isNew;
}

function addPiece(pattern: Pattern, elements: i64, isNew: bool): void {
  if (pieceTotal == pieceCapacity) {
    ends = grow(ends, (<usize>pieceCapacity) << 3);
    bringer = grow(bringer, (<usize>pieceCapacity) << 2);
    lastOfBringer = grow(lastOfBringer, (<usize>pieceCapacity) << 2);
    pieceCapacity <<= 1;
  }
  const bytes = pattern.poolBytes(elements);
  if (isNew) bringers++;
  setI64(ends, pieceTotal, bytes + (pieceTotal == 0 ? 0 : i64At(ends, pieceTotal - 1)));
  setU32(bringer, pieceTotal, bringers - 1);
  setU32(lastOfBringer, bringers - 1, pieceTotal);
  largestPiece = max(largestPiece, bytes);
  pieceTotal++;
}

function readPiece(peer: u32, piece: u32): void {
  const state = <usize>u32At(peers, 1) + <usize>peer * PEER_BYTES;
  const span = load<u32>(state, 24);
  if (span != NONE) {
    setU32(spans, span * 2 + 1, piece);
    return;
  }
  if (spanCount == spanCapacity) {
    spans = grow(spans, (<usize>spanCapacity) << 3);
    spanCapacity <<= 1;
  }
  setU32(spans, spanCount * 2, piece);
  setU32(spans, spanCount * 2 + 1, piece);
  store<u32>(state, spanCount++, 24);
}

/** Sums up what the home has left open. */
export function endHome(home: u32): void {
  for (let stage: u32 = 0; stage < 3; stage++) {
    for (let index: u32 = 0; index < u32At(touchedCount, stage); index++) {
      const peer = u32At(u32At(touched, stage), index);
      const state = <usize>u32At(peers, stage) + <usize>peer * PEER_BYTES;
      const count = load<u32>(state, 12);
      const largest = load<i64>(state, 16);
      const from = stage == 0 ? peer : home;
      const to = stage == 0 ? home : peer;
      noteLink(
        stage,
        from,
        to,
        load<u32>(state, 28),
        count,
        load<i64>(state, 40),
        load<i64>(state, 48),
        load<i64>(state, 56),
      );
      memory.fill(state, 0, PEER_BYTES);
      addTo(buckets, stage, count);
      if (peer == home) continue;
      addTo(u32At(sendStaged, stage), from, min(count, bucketsInFlight));
      addTo(u32At(takeStaged, stage), to, min(count, bucketsInFlight));
      raise(u32At(sendLargest, stage), from, largest);
      raise(u32At(takeLargest, stage), to, largest);
    }
    setU32(touchedCount, stage, 0);
  }
  setI64(ranks, home * RANK_WORDS + 6, pool());
}

function raise(array: usize, index: u32, value: i64): void {
  setI64(array, index, max(i64At(array, index), value));
}

/** As `poolBytes` of `pool.ts`, from spans. */
function pool(): i64 {
  if (pieceTotal == 0) return 0;
  let widest: i64 = 0;
  for (let span: u32 = 0; span < spanCount; span++) {
    const oldest = u32At(spans, span * 2);
    const last = u32At(lastOfBringer, u32At(bringer, u32At(spans, span * 2 + 1)));
    widest = max(widest, i64At(ends, last) - (oldest == 0 ? 0 : i64At(ends, oldest - 1)));
  }
  return min(i64At(ends, pieceTotal - 1), widest * bucketsInFlight + largestPiece);
}

export function endTally(): void {
  const most = <i64>peersInFlight * bucketsInFlight;
  for (let rank: u32 = 0; rank < world; rank++) {
    for (let stage: u32 = 0; stage < 3; stage++) {
      const send = min(most, i64At(u32At(sendStaged, stage), rank)) * i64At(u32At(sendLargest, stage), rank);
      const take = min(most, i64At(u32At(takeStaged, stage), rank)) * i64At(u32At(takeLargest, stage), rank);
      addTo(ranks, rank * RANK_WORDS + 4, send);
      addTo(ranks, rank * RANK_WORDS + 5, take);
    }
  }
}
