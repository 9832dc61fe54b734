/** What goes through each channel, summed up with the tally: by the numbers of channels through all stages. */
import { allocZero } from "./arena";
import { channelOf, slotBase, slotCount } from "./channel-table";
import { setI64 } from "./words";

/** For each channel, i64: chunks, buckets, bytes, bytes on the wire (padding included), bytes that are handed on. */
const LINK_WORDS: u32 = 5;
let links: usize = 0;

export function startLinks(): void {
  links = allocZero((<usize>slotCount() * LINK_WORDS) << 3);
}

export function linksAt(): usize {
  return links;
}

/** Notes the sums of the channel from a rank to a rank: each comes once, when its home ends. */
export function noteLink(
  stage: u32,
  from: u32,
  to: u32,
  chunks: i64,
  buckets: i64,
  bytes: i64,
  wire: i64,
  handedOn: i64,
): void {
  const slot = (slotBase(stage) + channelOf(stage, from, to)) * LINK_WORDS;
  setI64(links, slot, chunks);
  setI64(links, slot + 1, buckets);
  setI64(links, slot + 2, bytes);
  setI64(links, slot + 3, wire);
  setI64(links, slot + 4, handedOn);
}
