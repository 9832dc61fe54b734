import type { ChannelColumns } from "../report.ts";
import type { Cells, RankAxis } from "./rank-axis.ts";

/** Bytes and channels between the cells of two axes, row by row. */
interface HeatSums {
  readonly columns: number;
  readonly bytes: Float64Array;
  readonly channels: Uint32Array;
  /** Bytes that stay within a host. */
  readonly within: Float64Array;
  /** The most and the least bytes of a cell that has any. */
  readonly most: number;
  readonly least: number;
}

/** Sums up the channels of a stage, or of all of them. */
export function sumHeat(
  { stage, from, to, bytes }: ChannelColumns,
  wanted: number | undefined,
  isWithin: (channel: number) => boolean,
  rows: { readonly axis: RankAxis; readonly cells: Cells },
  columns: { readonly axis: RankAxis; readonly cells: Cells },
): HeatSums {
  const rowOf = rows.axis.numbers(rows.cells.spans);
  const columnOf = columns.axis.numbers(columns.cells.spans);
  const width = columns.cells.spans.length;
  const sums = new Float64Array(rows.cells.spans.length * width);
  const channels = new Uint32Array(sums.length);
  const within = new Float64Array(sums.length);
  for (let channel = 0; channel < bytes.length; channel++) {
    if (wanted !== undefined && stage[channel] !== wanted) continue;
    const [row, column] = [rowOf[from[channel]!] ?? -1, columnOf[to[channel]!] ?? -1];
    if (row < 0 || column < 0) continue;
    sums[row * width + column]! += bytes[channel]!;
    channels[row * width + column]!++;
    if (isWithin(channel)) within[row * width + column]! += bytes[channel]!;
  }
  const full = sums.filter((sum) => sum > 0);
  const most = full.reduce((a, b) => Math.max(a, b), 0);
  const least = full.reduce((a, b) => Math.min(a, b), most);
  return { columns: width, bytes: sums, channels, within, most, least };
}
