/**
 * The table of channels: who sends to whom in which stage, and in which wave, for the whole world. A chunk is at home at
 * one rank: where it begins in stages 1 and 2, where it ends in stage 0; the other end is the peer.
 */
import { alloc, allocZero, mark, release } from "./arena";
import { foundChannels, foundPeers } from "./channel-set";
import { world } from "./model";
import { assignWaves } from "./waves";
import { addU32, NONE, setU32, STAGES, u32At } from "./words";

/**
 * The table, u32 words: channels of each stage, waves of each stage, then for each stage `world + 1` pointers
 * by home rank, then for each stage the peers, ascending, then for each stage the waves.
 */
const HEAD: u32 = 2 * STAGES;
let table: usize = 0;
let tableWords: u32 = 0;

/** Makes the table of what was found; `pointers` are `world + 1` for each stage, by home rank. */
export function buildTable(pointers: usize): void {
  let channels: u32 = 0;
  for (let stage: u32 = 0; stage < STAGES; stage++) channels += foundChannels(stage);
  tableWords = HEAD + STAGES * (world + 1) + 2 * channels;
  table = alloc((<usize>tableWords) << 2);
  memory.copy(table + (HEAD << 2), pointers, (<usize>world + 1) * 4 * STAGES);
  for (let stage: u32 = 0; stage < STAGES; stage++) setU32(table, stage, foundChannels(stage));
  for (let stage: u32 = 0; stage < STAGES; stage++) {
    sortRows(rowPointers(stage), foundPeers(stage), peersOf(stage));
    const count = foundChannels(stage);
    setU32(table, STAGES + stage, assignWaves(rowPointers(stage), peersOf(stage), count, wavesOf(stage)));
  }
}

function rowPointers(stage: u32): usize {
  return table + ((<usize>(HEAD + stage * (world + 1))) << 2);
}
function peersOf(stage: u32): usize {
  return table + ((<usize>(HEAD + STAGES * (world + 1) + slotBase(stage))) << 2);
}
function wavesOf(stage: u32): usize {
  // Peers of all stages come before the waves of all, so that each stage's lie equally far apart.
  return peersOf(stage) + ((<usize>slotBase(STAGES)) << 2);
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
  const homes = alloc((<usize>count) << 2);
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

/** How many ranks receive in stage 1, copies to themselves included, and how many of them are below a rank. */
export let receivers: u32 = 0;
export let receiversBefore: u32 = 0;

export function findReceivers(rank: u32): void {
  const before = mark();
  const marks = allocZero(world);
  const count = firstChannel(1, world);
  for (let at: u32 = 0; at < count; at++) store<u8>(marks + u32At(peersOf(1), at), 1);
  receivers = 0;
  receiversBefore = 0;
  for (let other: u32 = 0; other < world; other++) {
    if (load<u8>(marks + other) == 0) continue;
    receivers++;
    if (other < rank) receiversBefore++;
  }
  release(before);
}

/** The channel from a rank to a rank in a stage; it must be there. */
export function channelOf(stage: u32, from: u32, to: u32): u32 {
  return stage == 0 ? findChannel(stage, to, from) : findChannel(stage, from, to);
}
