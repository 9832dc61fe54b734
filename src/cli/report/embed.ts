import { type Columns, type Parts, pack, unpack } from "./pack.ts";
import type { ChannelColumns, RankColumns, Report, Summary } from "./report.ts";

/** All that a page carries: the report, and what it takes to plan again. */
export interface Embedded {
  readonly report: Report;
  /** The canonical bytes of the plan: tensors, layouts, options. */
  readonly plan: Uint8Array;
  /** The values of the spec, but for the tensors of its model, which the plan has; `undefined` without a spec. */
  readonly spec: SpecValues | undefined;
}

/** A spec as JSON has it. */
export type SpecValues = Readonly<Record<string, unknown>>;

/** The bytes that stand in the page, before they are compressed. */
export function packEmbedded({ report, plan, spec }: Embedded): Uint8Array<ArrayBuffer> {
  const columns = { plan, ...prefixed("ranks.", report.ranks), ...prefixed("channels.", report.channels) };
  return pack({ values: { summary: report.summary, spec }, columns });
}

export function unpackEmbedded(bytes: Uint8Array): Embedded {
  const { values, columns }: Parts = unpack(bytes);
  const { summary, spec } = values as { summary: Summary; spec?: SpecValues };
  return {
    report: {
      summary,
      ranks: unprefixed(columns, "ranks.") as unknown as RankColumns,
      channels: unprefixed(columns, "channels.") as unknown as ChannelColumns,
    },
    plan: columns["plan"] as Uint8Array,
    spec,
  };
}

function prefixed(prefix: string, columns: object): Columns {
  return Object.fromEntries(Object.entries(columns).map(([name, column]) => [prefix + name, column]));
}

function unprefixed(columns: Columns, prefix: string): Columns {
  const own = Object.entries(columns).filter(([name]) => name.startsWith(prefix));
  return Object.fromEntries(own.map(([name, column]) => [name.slice(prefix.length), column]));
}
