/**
 * Channels: who sends to whom in which stage, for the whole world, from one tensor of each class and place in
 * the rotation rather than from all tensors. A chunk is at home at one rank: where it begins in stage 1,
 * where it ends in stage 0; the other end is the peer.
 */
import { alloc, allocZero, grow, mark, OF_CHANNELS, release } from "./arena";
import { fail, TB_PLAN_TOO_LARGE } from "./error";
import {
  classCount,
  classFirst,
  classTensor,
  holdersMost,
  hosts,
  Mesh,
  patternAt,
  patternCount,
  reduces,
  Side,
  world,
} from "./model";
import { NONE, toChannels } from "./sink";
import { enter, enterSource, ordinal, pattern, source } from "./tensor";
import { walkSource } from "./walk";
import { assignWaves } from "./waves";
import { addU32, setU32, u32At } from "./words";

/**
 * The table, u32 words: channels of stage 0 and 1, waves of stage 0 and 1, then for each stage `world + 1`
 * pointers by home rank, then for each stage the peers, ascending, then for each stage the waves.
 */
const HEAD: u32 = 4;
/** More channels of a stage than this make no sense, and no table. */
const CHANNELS_MOST: u32 = 1 << 26;
let table: usize = 0;
let tableWords: u32 = 0;

const stamps: usize = memory.data(16, 8);
const peers: usize = memory.data(16, 8);
const capacities: usize = memory.data(16, 8);
const counts: usize = memory.data(16, 8);
let home: u32 = 0;

export function addChannel(stage: u32, from: u32, to: u32): void {
  const peer = stage == 0 ? from : to;
  const stamp = u32At(stamps, stage);
  if (u32At(stamp, peer) == home + 1) return;
  setU32(stamp, peer, home + 1);
  const count = u32At(counts, stage);
  if (count == u32At(capacities, stage)) {
    if (count >= CHANNELS_MOST) fail(TB_PLAN_TOO_LARGE, OF_CHANNELS, CHANNELS_MOST);
    setU32(peers, stage, <u32>grow(u32At(peers, stage), <usize>count << 2));
    setU32(capacities, stage, count << 1);
  }
  setU32(u32At(peers, stage), count, peer);
  setU32(counts, stage, count + 1);
}

/** Ranks that a side of any pattern knows; answers how many they are. */
function markRanks(marks: usize, asSource: bool): u32 {
  let count: u32 = 0;
  for (let index: u32 = 0; index < patternCount; index++) {
    const one = patternAt(index);
    const mesh = changetype<Mesh>(changetype<Side>(asSource ? one.source : one.target).mesh);
    for (let position: u32 = 0; position < mesh.size; position++) {
      const rank = u32At(mesh.ranks, position);
      if (load<u8>(marks + rank) != 0) continue;
      store<u8>(marks + rank, 1);
      count++;
    }
  }
  return count;
}

export function findChannels(): void {
  const sources = allocZero(world);
  const targets = allocZero(world);
  markRanks(sources, true);
  const targetCount = markRanks(targets, false);
  const residues = alloc(holdersMost);
  for (let stage: u32 = 0; stage < 2; stage++) {
    setU32(stamps, stage, <u32>allocZero(<usize>world << 2));
    setU32(peers, stage, <u32>alloc(1024 << 2));
    setU32(capacities, stage, 1024);
    setU32(counts, stage, 0);
  }
  const pointers = alloc((<usize>world + 1) << 3);
  toChannels();
  for (home = 0; home < world; home++) {
    const first = u32At(counts, 1);
    setU32(pointers, home, u32At(counts, 0));
    setU32(pointers, world + 1 + home, first);
    if (load<u8>(sources + home) == 0) continue;
    for (let index: u32 = 0; index < classCount; index++) {
      walkClass(index, residues);
      // Nobody is left to be found.
      if (!reduces && u32At(counts, 1) - first == targetCount) break;
    }
  }
  setU32(pointers, world, u32At(counts, 0));
  setU32(pointers, world * 2 + 1, u32At(counts, 1));
  buildTable(pointers);
}

/** Finds the channels that end or begin at `home` for the tensors of a class. */
function walkClass(index: u32, residues: usize): void {
  const first = classFirst(index);
  const end = classFirst(index + 1);
  enter(classTensor(first));
  if (!enterSource(home)) return;
  const holders = source.replicas * source.contributions;
  if (holders == 1) {
    walkSource(home, false);
    return;
  }
  // Where all holders of a box are candidates, tensors in one place of the rotation use the same channels.
  const regular = hosts == 0 && (!pattern.meeting || source.contributions == 1);
  let left = holders;
  memory.fill(residues, 0, holders);
  for (let at = first; at < end && left > 0; at++) {
    enter(classTensor(at));
    if (regular) {
      const residue = residues + <u32>(ordinal % holders);
      if (load<u8>(residue) != 0) continue;
      store<u8>(residue, 1);
      left--;
    }
    walkSource(home, false);
  }
}

function buildTable(pointers: usize): void {
  const count0 = u32At(counts, 0);
  const count1 = u32At(counts, 1);
  tableWords = HEAD + 2 * (world + 1) + 2 * (count0 + count1);
  table = alloc(<usize>tableWords << 2);
  setU32(table, 0, count0);
  setU32(table, 1, count1);
  memory.copy(table + (HEAD << 2), pointers, (<usize>world + 1) << 3);
  for (let stage: u32 = 0; stage < 2; stage++) {
    sortRows(rowPointers(stage), u32At(peers, stage), peersOf(stage));
    const count = u32At(counts, stage);
    setU32(table, 2 + stage, assignWaves(rowPointers(stage), peersOf(stage), count, wavesOf(stage)));
  }
}

function rowPointers(stage: u32): usize {
  return table + (<usize>(HEAD + stage * (world + 1)) << 2);
}
function peersOf(stage: u32): usize {
  return table + (<usize>(HEAD + 2 * (world + 1) + (stage == 0 ? 0 : u32At(table, 0))) << 2);
}
function wavesOf(stage: u32): usize {
  // Peers of both stages come before the waves of both, so that either stage's lie equally far apart.
  return peersOf(stage) + (<usize>(u32At(table, 0) + u32At(table, 1)) << 2);
}

/** Sorts every row by peer: turned over twice, rows come out ascending. */
function sortRows(pointers: usize, from: usize, to: usize): void {
  const before = mark();
  const count = u32At(pointers, world);
  const starts = allocZero((<usize>world + 1) << 2);
  const homes = alloc(<usize>count << 2);
  for (let at: u32 = 0; at < count; at++) addU32(starts, u32At(from, at) + 1, 1);
  for (let rank: u32 = 0; rank < world; rank++) addU32(starts, rank + 1, u32At(starts, rank));
  const fill = alloc((<usize>world + 1) << 2);
  memory.copy(fill, starts, (<usize>world + 1) << 2);
  for (let rank: u32 = 0; rank < world; rank++) {
    for (let at = u32At(pointers, rank); at < u32At(pointers, rank + 1); at++) {
      const peer = u32At(from, at);
      setU32(homes, u32At(fill, peer), rank);
      setU32(fill, peer, u32At(fill, peer) + 1);
    }
  }
  memory.copy(fill, pointers, (<usize>world + 1) << 2);
  for (let peer: u32 = 0; peer < world; peer++) {
    for (let at = u32At(starts, peer); at < u32At(starts, peer + 1); at++) {
      const rank = u32At(homes, at);
      setU32(to, u32At(fill, rank), peer);
      setU32(fill, rank, u32At(fill, rank) + 1);
    }
  }
  release(before);
}

/** Takes a table that was made before, so that it is not made again. */
export function useTable(at: usize): void {
  table = at;
}
export function tableAt(): usize {
  return table;
}
export function tableLength(): u32 {
  return tableWords;
}

export function stageWaves(stage: u32): u32 {
  return u32At(table, 2 + stage);
}

export function channelCount(stage: u32): u32 {
  return u32At(table, stage);
}
/** Channels of a stage that are at home at a rank are `firstChannel(rank)` up to `firstChannel(rank + 1)`. */
function firstChannel(stage: u32, rank: u32): u32 {
  return u32At(rowPointers(stage), rank);
}
/** The wave of a channel, counted over all stages. */
export function channelWave(stage: u32, channel: u32): u32 {
  return u32At(wavesOf(stage), channel) + (stage == 0 ? 0 : u32At(table, 2));
}

/** The channel of a stage between a home rank and a peer, `NONE` if there is none. */
export function findChannel(stage: u32, home: u32, peer: u32): u32 {
  const all = peersOf(stage);
  let low = firstChannel(stage, home);
  const end = firstChannel(stage, home + 1);
  let high = end;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (u32At(all, middle) < peer) low = middle + 1;
    else high = middle;
  }
  return low < end && u32At(all, low) == peer ? low : NONE;
}

/** The channel from a rank to a rank in a stage; it must be there. */
export function channelOf(stage: u32, from: u32, to: u32): u32 {
  return stage == 0 ? findChannel(stage, to, from) : findChannel(stage, from, to);
}
