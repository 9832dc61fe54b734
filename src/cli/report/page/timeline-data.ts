import type { ChannelColumns } from "../report.ts";
import type { Cells, RankAxis } from "./rank-axis.ts";

/** A part of the time, in steps of the schedule. */
export interface TimeSpan {
  readonly start: number;
  readonly end: number;
}

export type Direction = "from" | "to";

/** How much goes on in each row and slot of time. */
interface Rates {
  readonly slots: number;
  /** Bytes a step and rank on average, row by row. */
  readonly values: Float64Array;
  readonly most: number;
}

/** Sums up what the ranks of each row send or receive in each of some equal slots of a time. */
export function sumRates(
  channels: ChannelColumns,
  direction: Direction,
  { axis, cells }: { readonly axis: RankAxis; readonly cells: Cells },
  time: TimeSpan,
  slots: number,
): Rates {
  const rowOf = axis.numbers(cells.spans);
  const values = new Float64Array(cells.spans.length * slots);
  // What whole slots have is noted where it begins and ends, so that long channels cost no more than short ones.
  const changes = new Float64Array(cells.spans.length * (slots + 1));
  const width = (time.end - time.start) / slots;
  for (let channel = 0; channel < channels.bytes.length; channel++) {
    const row = rowOf[channels[direction][channel]!] ?? -1;
    if (row < 0) continue;
    const [from, to] = [
      channels.start![channel]!,
      Math.max(channels.end![channel]!, channels.start![channel]! + 1),
    ];
    const [start, end] = [Math.max(from, time.start), Math.min(to, time.end)];
    if (start >= end) continue;
    const rate = channels.bytes[channel]! / (to - from);
    const first = Math.floor((start - time.start) / width);
    const last = Math.min(slots - 1, Math.floor((end - time.start) / width));
    const at = row * slots;
    if (first === last) {
      values[at + first]! += (rate * (end - start)) / width;
      continue;
    }
    values[at + first]! += rate * (first + 1 - (start - time.start) / width);
    values[at + last]! += rate * ((end - time.start) / width - last);
    changes[row * (slots + 1) + first + 1]! += rate;
    changes[row * (slots + 1) + last]! -= rate;
  }
  for (const [row, span] of cells.spans.entries()) {
    let running = 0;
    for (let slot = 0; slot < slots; slot++) {
      running += changes[row * (slots + 1) + slot]!;
      values[row * slots + slot] = (values[row * slots + slot]! + running) / (span.end - span.start);
    }
  }
  return { slots, values, most: values.reduce((a, b) => Math.max(a, b), 0) };
}

/** A channel in a row of its rank, beside others of the same time. */
export interface Bar {
  readonly channel: number;
  readonly row: number;
  readonly lane: number;
}

/** The channels of each row within a time, each in the first lane that is free. */
export function placeBars(
  channels: ChannelColumns,
  direction: Direction,
  { axis, cells }: { readonly axis: RankAxis; readonly cells: Cells },
  time: TimeSpan,
): { readonly bars: readonly Bar[]; readonly lanes: readonly number[] } {
  const rowOf = axis.numbers(cells.spans);
  const shown = [...channels.bytes.keys()].filter(
    (channel) =>
      (rowOf[channels[direction][channel]!] ?? -1) >= 0 &&
      channels.start![channel]! < time.end &&
      channels.end![channel]! >= time.start,
  );
  shown.sort((a, b) => channels.start![a]! - channels.start![b]! || a - b);
  const ends = cells.spans.map((): number[] => []);
  const bars = shown.map((channel): Bar => {
    const row = rowOf[channels[direction][channel]!]!;
    const free = ends[row]!.findIndex((end) => end <= channels.start![channel]!);
    const lane = free === -1 ? ends[row]!.length : free;
    ends[row]![lane] = channels.end![channel]!;
    return { channel, row, lane };
  });
  return { bars, lanes: ends.map(({ length }) => Math.max(1, length)) };
}
