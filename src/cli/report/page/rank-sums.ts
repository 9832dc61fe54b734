import { type ChannelColumns, type RankColumns, stageNames } from "../report.ts";
import type { Cells } from "./rank-axis.ts";

/** One quantity of all ranks, in parts that are stacked. */
export interface Quantity {
  /** For each part the values by position of the rank. */
  readonly parts: readonly { readonly name: string; readonly color: string; readonly values: Float64Array }[];
}

/** The bars of the cells of an axis. */
export interface CellBars {
  /** For each part the mean of the ranks of each cell. */
  readonly means: readonly Float64Array[];
  /** The mean of all parts together, and the rank that has most in each cell. */
  readonly mean: Float64Array;
  readonly most: Float64Array;
  readonly mostRank: Uint32Array;
}

/** What each rank sends and receives, by stage. */
export function traffic(ranks: RankColumns, channels: ChannelColumns, end: "from" | "to"): Quantity {
  const positions = new Int32Array((ranks.rank.at(-1) ?? -1) + 1);
  for (const [position, rank] of ranks.rank.entries()) positions[rank] = position;
  const values = stageNames.map(() => new Float64Array(ranks.rank.length));
  for (let channel = 0; channel < channels.bytes.length; channel++) {
    const position = positions[channels[end][channel]!]!;
    values[channels.stage[channel]!]![position]! += channels.bytes[channel]!;
  }
  const parts = stageNames.map((name, stage) => ({ name, color: `--${name}`, values: values[stage]! }));
  return { parts: parts.filter((part) => part.values.some((value) => value > 0)) };
}

export function staging(ranks: RankColumns): Quantity {
  return { parts: [{ name: "staged", color: "--staged", values: ranks.staged }] };
}

export function barsOf({ parts }: Quantity, ranks: Uint32Array, { spans }: Cells): CellBars {
  const means = parts.map(({ values }) =>
    Float64Array.from(spans, ({ start, end }) => sum(values.subarray(start, end)) / (end - start)),
  );
  const totalAt = (at: number) => parts.reduce((total, { values }) => total + values[at]!, 0);
  const busiest = spans.map(({ start, end }) => {
    let best = start;
    for (let at = start + 1; at < end; at++) if (totalAt(at) > totalAt(best)) best = at;
    return best;
  });
  return {
    means,
    mean: Float64Array.from(spans, (_, cell) => means.reduce((total, mean) => total + mean[cell]!, 0)),
    most: Float64Array.from(busiest, totalAt),
    mostRank: Uint32Array.from(busiest, (at) => ranks[at]!),
  };
}

function sum(values: Float64Array): number {
  return values.reduce((a, b) => a + b, 0);
}
