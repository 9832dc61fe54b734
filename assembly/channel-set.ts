/** The channels that a walk finds, home by home: each peer of a home once. */
import { alloc, allocZero, grow, OF_CHANNELS } from "./arena";
import { fail, TB_PLAN_TOO_LARGE } from "./error";
import { world } from "./model";
import { setU32, STAGES, u32At } from "./words";

/** More channels of a stage than this make no sense, and no table. */
const CHANNELS_MOST: u32 = 1 << 26;

const stamps: usize = memory.data(16, 8);
const peers: usize = memory.data(16, 8);
const capacities: usize = memory.data(16, 8);
const counts: usize = memory.data(16, 8);
let home: u32 = 0;

export function startChannels(): void {
  for (let stage: u32 = 0; stage < STAGES; stage++) {
    setU32(stamps, stage, <u32>allocZero((<usize>world) << 2));
    setU32(capacities, stage, 1024);
    setU32(counts, stage, 0);
    setU32(peers, stage, <u32>alloc(1024 << 2));
  }
}

/** What is added from here on is at home at a rank. */
export function startChannelsOf(rank: u32): void {
  home = rank;
}

export function foundChannels(stage: u32): u32 {
  return u32At(counts, stage);
}
/** The peers of all channels of a stage, home by home. */
export function foundPeers(stage: u32): usize {
  return u32At(peers, stage);
}

export function addChannel(stage: u32, from: u32, to: u32): void {
  const peer = stage == 0 ? from : to;
  const stamp = u32At(stamps, stage);
  if (u32At(stamp, peer) == home + 1) return;
  setU32(stamp, peer, home + 1);
  const count = u32At(counts, stage);
  if (count == u32At(capacities, stage)) {
    if (count >= CHANNELS_MOST) fail(TB_PLAN_TOO_LARGE, OF_CHANNELS, CHANNELS_MOST);
    setU32(peers, stage, <u32>grow(u32At(peers, stage), (<usize>count) << 2));
    setU32(capacities, stage, count << 1);
  }
  setU32(u32At(peers, stage), count, peer);
  setU32(counts, stage, count + 1);
}
