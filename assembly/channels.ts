/**
 * Channels: who sends to whom in which stage, for the whole world, from one tensor of each class and place in
 * the rotation rather than from all tensors. A chunk is at home at one rank: where it begins in stages
 * 1 and 2, where it ends in stage 0; the other end is the peer.
 */
import { alloc, allocZero, grow, mark, OF_CHANNELS, release } from "./arena";
import { fail, TB_PLAN_TOO_LARGE } from "./error";
import {
  classCount,
  classFirst,
  classTensor,
  DIRECT,
  fans,
  hosts,
  Mesh,
  patternAt,
  patternCount,
  reduces,
  Side,
  world,
} from "./model";
import { nextClass, startClasses } from "./homes";
import { NONE, toChannels } from "./sink";
import { stripePeriod } from "./stripe";
import { enter, enterSource, enterTarget, ordinal, pattern, source } from "./tensor";
import { walkFanout, walkSource } from "./walk";
import { assignWaves } from "./waves";
import { addU32, commonMultiple, setU32, u32At } from "./words";

/**
 * The table, u32 words: channels of each stage, waves of each stage, then for each stage `world + 1` pointers
 * by home rank, then for each stage the peers, ascending, then for each stage the waves.
 */
const STAGES: u32 = 3;
const HEAD: u32 = 2 * STAGES;
/** Longer periods than this are not looked for: all tensors of the class are. */
const PERIOD_MOST: u32 = 4096;
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

/** How many ranks the targets of all patterns know. */
function countTargets(): u32 {
  const marks = allocZero(world);
  let count: u32 = 0;
  for (let index: u32 = 0; index < patternCount; index++) {
    const one = patternAt(index);
    const mesh = changetype<Mesh>(changetype<Side>(one.target).mesh);
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
  const targetCount = countTargets();
  const periods = classPeriods();
  const places = alloc(PERIOD_MOST);
  const pointers = alloc((<usize>world + 1) * 4 * STAGES);
  for (let stage: u32 = 0; stage < STAGES; stage++) {
    setU32(stamps, stage, <u32>allocZero(<usize>world << 2));
    setU32(capacities, stage, 1024);
    setU32(counts, stage, 0);
    setU32(peers, stage, <u32>alloc(1024 << 2));
  }
  toChannels();
  for (home = 0; home < world; home++) {
    const first = u32At(counts, 1);
    for (let stage: u32 = 0; stage < STAGES; stage++) {
      setU32(pointers, stage * (world + 1) + home, u32At(counts, stage));
    }
    startClasses(home, true);
    for (let index = nextClass(); index >= 0; index = nextClass()) {
      walkClass(index, u32At(periods, index), places, true);
      // Nobody is left to be found.
      if (!reduces && u32At(counts, 1) - first == targetCount) break;
    }
    if (!fans) continue;
    startClasses(home, false);
    for (let index = nextClass(); index >= 0; index = nextClass()) {
      walkClass(index, u32At(periods, index), places, false);
    }
  }
  for (let stage: u32 = 0; stage < STAGES; stage++) {
    setU32(pointers, stage * (world + 1) + world, u32At(counts, stage));
  }
  buildTable(pointers);
}

/**
 * For each class after how many tensors the same channels come again, 0 if that is unknown: those in one place
 * of all rotations use the same.
 */
export function classPeriods(): usize {
  const periods = alloc(<usize>classCount << 2);
  for (let index: u32 = 0; index < classCount; index++) {
    enter(classTensor(classFirst(index)));
    const holders = source.replicas * source.contributions;
    // Which ranks are candidates differs from target to target where hosts, or ranks on both sides, matter.
    const isRegular = holders == 1 || (hosts == 0 && (!pattern.meeting || source.contributions == 1));
    const period = isRegular ? commonMultiple(holders, stripePeriod()) : 0;
    setU32(periods, index, period > <i64>PERIOD_MOST ? 0 : <u32>period);
  }
  return periods;
}

/** Finds the channels of a class that have their home at `home`, as a source or as a target. */
function walkClass(index: u32, period: u32, places: usize, asSource: bool): void {
  const first = classFirst(index);
  const end = classFirst(index + 1);
  enter(classTensor(first));
  if (asSource ? !enterSource(home) : pattern.striping == DIRECT || !enterTarget(home)) return;
  let left = period;
  if (period > 1) memory.fill(places, 0, period);
  for (let at = first; at < end && (period == 0 || left > 0); at++) {
    enter(classTensor(at));
    if (period > 1) {
      const place = places + <u32>(ordinal % period);
      if (load<u8>(place) != 0) continue;
      store<u8>(place, 1);
    }
    left--;
    if (asSource) walkSource(home, false);
    else walkFanout(home);
  }
}

function buildTable(pointers: usize): void {
  let channels: u32 = 0;
  for (let stage: u32 = 0; stage < STAGES; stage++) channels += u32At(counts, stage);
  tableWords = HEAD + STAGES * (world + 1) + 2 * channels;
  table = alloc(<usize>tableWords << 2);
  memory.copy(table + (HEAD << 2), pointers, (<usize>world + 1) * 4 * STAGES);
  for (let stage: u32 = 0; stage < STAGES; stage++) setU32(table, stage, u32At(counts, stage));
  for (let stage: u32 = 0; stage < STAGES; stage++) {
    sortRows(rowPointers(stage), u32At(peers, stage), peersOf(stage));
    const count = u32At(counts, stage);
    setU32(table, STAGES + stage, assignWaves(rowPointers(stage), peersOf(stage), count, wavesOf(stage)));
  }
}

function rowPointers(stage: u32): usize {
  return table + (<usize>(HEAD + stage * (world + 1)) << 2);
}
function peersOf(stage: u32): usize {
  return table + (<usize>(HEAD + STAGES * (world + 1) + slotBase(stage)) << 2);
}
function wavesOf(stage: u32): usize {
  // Peers of all stages come before the waves of all, so that each stage's lie equally far apart.
  return peersOf(stage) + (<usize>slotBase(STAGES) << 2);
}
/** Channels of the stages before one: what numbers channels through all stages. */
export function slotBase(stage: u32): u32 {
  let base: u32 = 0;
  for (let earlier: u32 = 0; earlier < stage; earlier++) base += u32At(table, earlier);
  return base;
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
  return u32At(table, STAGES + stage);
}

/** Channels of all stages. */
export function slotCount(): u32 {
  return slotBase(STAGES);
}
/** Channels of a stage that are at home at a rank are `firstChannel(rank)` up to `firstChannel(rank + 1)`. */
function firstChannel(stage: u32, rank: u32): u32 {
  return u32At(rowPointers(stage), rank);
}
/** The wave of a channel, counted over all stages. */
export function channelWave(stage: u32, channel: u32): u32 {
  let wave = u32At(wavesOf(stage), channel);
  for (let earlier: u32 = 0; earlier < stage; earlier++) wave += stageWaves(earlier);
  return wave;
}

/** Marks the homes of all channels whose peers are marked. */
export function markHomes(marked: usize, homes: usize): void {
  for (let stage: u32 = 0; stage < STAGES; stage++) {
    for (let rank: u32 = 0; rank < world; rank++) {
      const end = firstChannel(stage, rank + 1);
      for (let at = firstChannel(stage, rank); at < end && load<u8>(homes + rank) == 0; at++) {
        if (load<u8>(marked + u32At(peersOf(stage), at)) != 0) store<u8>(homes + rank, 1);
      }
    }
  }
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
