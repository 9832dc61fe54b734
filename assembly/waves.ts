/**
 * Waves: every channel takes the lowest wave in which neither of its ranks has `peersInFlight` channels yet.
 * A rank of degree d has at most (d - 1) / peersInFlight full waves, so a stage takes at most 2 · ceil(d /
 * peersInFlight) - 1. Channels come by diagonals, each of them a matching, so that early waves are full and
 * no rank is asked by all at once.
 */
import { alloc, allocZero, grow, mark, release } from "./arena";
import { peersInFlight, world } from "./model";
import { addU32, setU32, u32At } from "./words";

/** Up to this degree the waves of a rank are a short list, above it a table. */
const SHORT: u32 = 16;

// @ts-ignore: decorator
@unmanaged
class Room {
  degree: u32;
  used: u32;
  /** Waves that were taken (short), or channels in each wave as u16 (table). */
  waves: usize;
  /** The table: bit w is set if wave w is full; the first word with a clear bit; words that there are. */
  full: usize;
  firstWord: u32;
  words: u32;
}

const ROOM_BYTES: usize = offsetof<Room>();

function roomAt(rooms: usize, index: u32): Room {
  return changetype<Room>(rooms + <usize>index * ROOM_BYTES);
}

function start(room: Room): void {
  if (room.degree <= peersInFlight) return;
  if (room.degree <= SHORT) {
    room.waves = alloc((<usize>room.degree) << 2);
    return;
  }
  room.words = 4;
  room.waves = allocZero(4 << 7);
  room.full = allocZero(4 << 3);
}

/** The lowest wave from `wave` up in which the rank has room. */
function nextFree(room: Room, wave: u32): u32 {
  // Too few channels to fill any wave.
  if (room.degree <= peersInFlight) return wave;
  if (room.degree <= SHORT) {
    while (isFullInList(room, wave)) wave++;
    return wave;
  }
  let word = wave >> 6;
  let mask = ~(<u64>0) << (wave & 63);
  if (word < room.firstWord) {
    word = room.firstWord;
    mask = ~(<u64>0);
  }
  for (; word < room.words; word++) {
    const free = ~wordAt(room.full, word) & mask;
    if (free != 0) return (word << 6) + <u32>ctz(free);
    mask = ~(<u64>0);
  }
  return max(word << 6, wave);
}

function wordAt(at: usize, word: u32): u64 {
  return load<u64>(at + ((<usize>word) << 3));
}

function isFullInList(room: Room, wave: u32): bool {
  let count: u32 = 0;
  for (let at: u32 = 0; at < room.used; at++) {
    if (u32At(room.waves, at) == wave) count++;
  }
  return count >= peersInFlight;
}

function take(room: Room, wave: u32): void {
  if (room.degree <= peersInFlight) return;
  if (room.degree <= SHORT) {
    setU32(room.waves, room.used++, wave);
    return;
  }
  while (wave >> 6 >= room.words) {
    const words = room.words;
    room.waves = grow(room.waves, (<usize>words) << 7);
    memory.fill(room.waves + ((<usize>words) << 7), 0, (<usize>words) << 7);
    room.full = grow(room.full, (<usize>words) << 3);
    memory.fill(room.full + ((<usize>words) << 3), 0, (<usize>words) << 3);
    room.words = words << 1;
  }
  const count = countAt(room.waves, wave) + 1;
  store<u16>(room.waves + ((<usize>wave) << 1), <u16>count);
  if (count < peersInFlight) return;
  const word = room.full + ((<usize>(wave >> 6)) << 3);
  store<u64>(word, load<u64>(word) | ((<u64>1) << (wave & 63)));
  while (room.firstWord < room.words && wordAt(room.full, room.firstWord) == ~(<u64>0)) room.firstWord++;
}

function countAt(at: usize, index: u32): u32 {
  return load<u16>(at + ((<usize>index) << 1));
}

/**
 * Writes the wave of each of `count` channels, given as rows of peers by home rank; answers how many waves
 * there are.
 */
export function assignWaves(pointers: usize, peers: usize, count: u32, waves: usize): u32 {
  if (count == 0) return 0;
  const before = mark();
  // Ranks are numbered anew among those that take part on either end.
  const peerIndex = allocZero((<usize>world) << 2);
  const degrees = allocZero((<usize>world) << 2);
  for (let at: u32 = 0; at < count; at++) addU32(degrees, u32At(peers, at), 1);
  let homeCount: u32 = 0;
  let peerCount: u32 = 0;
  for (let rank: u32 = 0; rank < world; rank++) {
    if (u32At(pointers, rank + 1) > u32At(pointers, rank)) homeCount++;
    if (u32At(degrees, rank) > 0) setU32(peerIndex, rank, peerCount++);
  }
  const homeRooms = allocZero(<usize>homeCount * ROOM_BYTES);
  const peerRooms = allocZero(<usize>peerCount * ROOM_BYTES);
  const homeOf = alloc((<usize>count) << 2);
  let home: u32 = 0;
  for (let rank: u32 = 0; rank < world; rank++) {
    if (u32At(degrees, rank) > 0) {
      const room = roomAt(peerRooms, u32At(peerIndex, rank));
      room.degree = u32At(degrees, rank);
      start(room);
    }
    const first = u32At(pointers, rank);
    const end = u32At(pointers, rank + 1);
    if (first == end) continue;
    const room = roomAt(homeRooms, home);
    room.degree = end - first;
    start(room);
    for (let at = first; at < end; at++) setU32(homeOf, at, home);
    home++;
  }

  const order = byDiagonal(peers, peerIndex, homeOf, count, max(homeCount, peerCount));
  let waveCount: u32 = 0;
  for (let place: u32 = 0; place < count; place++) {
    const channel = u32At(order, place);
    const one = roomAt(homeRooms, u32At(homeOf, channel));
    const other = roomAt(peerRooms, u32At(peerIndex, u32At(peers, channel)));
    let wave: u32 = 0;
    for (;;) {
      wave = nextFree(one, wave);
      const next = nextFree(other, wave);
      if (next == wave) break;
      wave = next;
    }
    take(one, wave);
    take(other, wave);
    setU32(waves, channel, wave);
    waveCount = max(waveCount, wave + 1);
  }
  release(before);
  return waveCount;
}

/** The channels sorted by (peer's number - home's number) modulo the larger side, then as they stand. */
function byDiagonal(peers: usize, peerIndex: usize, homeOf: usize, count: u32, modulus: u32): usize {
  const order = alloc((<usize>count) << 2);
  const diagonals = alloc((<usize>count) << 2);
  const starts = allocZero((<usize>modulus + 1) << 2);
  for (let at: u32 = 0; at < count; at++) {
    const diagonal = (u32At(peerIndex, u32At(peers, at)) + modulus - u32At(homeOf, at)) % modulus;
    setU32(diagonals, at, diagonal);
    setU32(starts, diagonal + 1, u32At(starts, diagonal + 1) + 1);
  }
  for (let at: u32 = 0; at < modulus; at++) setU32(starts, at + 1, u32At(starts, at + 1) + u32At(starts, at));
  for (let at: u32 = 0; at < count; at++) {
    const diagonal = u32At(diagonals, at);
    setU32(order, u32At(starts, diagonal), at);
    setU32(starts, diagonal, u32At(starts, diagonal) + 1);
  }
  return order;
}
