import { useState } from "preact/hooks";
import { formatBytes, formatCount, formatDuration } from "../../ui/format.ts";
import type { Report, ReportPattern } from "../report.ts";
import { breakable } from "./breakable.tsx";

interface ColumnDefinition {
  readonly head: string;
  readonly numeric: boolean;
  readonly isName?: boolean;
  text(pattern: ReportPattern): string;
  /** What rows are sorted by. */
  key(pattern: ReportPattern): number | string;
}

/** Tensors that share shape, types and layouts; how they travel, and why. */
export function Patterns({ report }: { readonly report: Report }) {
  const { patterns } = report.summary;
  const hasCosts = patterns.some(({ costs }) => costs !== undefined);
  const columns = hasCosts ? [...general, cost] : general;
  const [sort, setSort] = useState({ column: "bytes", descending: true });
  const by = columns.find(({ head }) => head === sort.column) ?? general[0]!;
  const sorted = [...patterns].sort((a, b) => compare(by.key(a), by.key(b)) * (sort.descending ? -1 : 1));
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, so that keys must reach it
    <section class="scroll" tabIndex={0} aria-label="patterns, scrollable">
      <table>
        <thead>
          <tr>
            {columns.map(({ head, numeric }) => (
              <th
                key={head}
                class={numeric ? "numeric" : ""}
                aria-sort={head !== sort.column ? "none" : sort.descending ? "descending" : "ascending"}
              >
                <button
                  type="button"
                  onClick={() =>
                    setSort({ column: head, descending: head === sort.column ? !sort.descending : numeric })
                  }
                >
                  {head}
                  <span class="sort" aria-hidden="true">
                    {head === sort.column ? (sort.descending ? "▼" : "▲") : ""}
                  </span>
                </button>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {sorted.map((pattern, index) => (
            <tr key={index}>
              {columns.map(({ head, numeric, isName, text }) => (
                <td key={head} class={numeric ? "numeric" : "wraps"}>
                  {isName === true ? breakable(text(pattern)) : text(pattern)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

const general: readonly ColumnDefinition[] = [
  column("tensors", ({ tensors }) => tensors, formatCount),
  {
    ...words("for example", ({ example, within }) =>
      within === undefined ? example : `${example}, in ${within}`,
    ),
    isName: true,
  },
  {
    head: "shape",
    numeric: false,
    text: ({ shape }) => shape.join(" × ") || "scalar",
    key: ({ shape }) => shape.reduce((product, extent) => product * extent, 1),
  },
  words("type", ({ dtype, targetDtype }) => (dtype === targetDtype ? dtype : `${dtype} → ${targetDtype}`)),
  words("layouts", ({ source, target }) => `[${source.join(", ")}] → [${target.join(", ")}]`),
  column("bytes", ({ bytes }) => bytes, formatBytes),
  column("chunks", ({ chunks }) => chunks, formatCount),
  words("strategy", ({ strategy, groups, reason }) => {
    const way =
      strategy === "direct" ? strategy : `${strategy} ${groups === "host" ? "within hosts" : "over all"}`;
    return `${way}: ${reason}`;
  }),
];

/** What the cost model expects of each way. */
const cost: ColumnDefinition = {
  head: "cost of each way",
  numeric: false,
  key: ({ costs }) => Math.min(...Object.values(costs ?? { none: Number.POSITIVE_INFINITY })),
  text: ({ costs }) => {
    if (costs === undefined) return "–";
    const ways = [
      ["direct", costs.direct],
      ["over all", costs.all],
      ["within hosts", costs.host],
    ] as const;
    return ways
      .flatMap(([name, seconds]) => (seconds === undefined ? [] : [`${name} ${formatDuration(seconds)}`]))
      .join(", ");
  },
};

function column(
  head: string,
  key: (pattern: ReportPattern) => number,
  format: (value: number) => string,
): ColumnDefinition {
  return { head, numeric: true, key, text: (pattern) => format(key(pattern)) };
}

function words(head: string, text: (pattern: ReportPattern) => string): ColumnDefinition {
  return { head, numeric: false, text, key: text };
}

function compare(a: number | string, b: number | string): number {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en");
}
