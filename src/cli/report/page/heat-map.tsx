import { useMemo, useRef, useState } from "preact/hooks";
import { formatBytes, formatCount, plural } from "../../ui/format.ts";
import { type ChannelColumns, type RankColumns, type Report, stageNames } from "../report.ts";
import { RankTicks } from "./axes.tsx";
import { formatTick } from "./byte-scale.ts";
import { Choice, ZoomOut } from "./controls.tsx";
import { defaultKind, heatColor, isDeep, type ScaleKind, strengthOf } from "./heat-color.ts";
import { HeatLegend } from "./heat-legend.tsx";
import { sumHeat } from "./heat-sums.ts";
import { styleOf, useWidth, useZoom } from "./hooks.ts";
import { type Box, Plot, type Point } from "./plot.tsx";
import { RankAxis, type Span } from "./rank-axis.ts";

interface Window {
  readonly rows: Span;
  readonly columns: Span;
}

interface Cell {
  readonly row: number;
  readonly column: number;
}

const margin = { left: 58, bottom: 44, right: 8 };
const tallest = 512;
/** The least and the most pixels of a cell. */
const least = 3;
const widest = { x: 132, y: 40 };

/** Bytes from each rank to each: by host if there are many, down to ranks as one looks closer. */
export function HeatMap({ report }: { readonly report: Report }) {
  if (report.channels.bytes.length === 0) return <p class="none">Nothing goes from one rank to another.</p>;
  return <HeatPlot report={report} />;
}

function HeatPlot({ report }: { readonly report: Report }) {
  const { channels, ranks, summary } = report;
  const holder = useRef<HTMLDivElement>(null);
  const width = useWidth(holder);
  const axes = useMemo(() => axesOf(ranks, channels, summary.hasHosts), [report]);
  const zoom = useZoom<Window>({ rows: axes.rows.whole, columns: axes.columns.whole });
  const [stage, setStage] = useState<number>();
  const [kind, setKind] = useState<ScaleKind>();
  const [cursor, setCursor] = useState<Cell>({ row: 0, column: 0 });

  const room = Math.max(120, width - margin.left - margin.right);
  const rows = useMemo(
    () => ({ axis: axes.rows, cells: axes.rows.cells(zoom.window.rows, Math.floor(tallest / least)) }),
    [axes, zoom.window],
  );
  const columns = useMemo(
    () => ({ axis: axes.columns, cells: axes.columns.cells(zoom.window.columns, Math.floor(room / least)) }),
    [axes, zoom.window, room],
  );
  const isWithin = useMemo(() => hostsOf(ranks, channels, summary.hasHosts), [report]);
  const sums = useMemo(
    () => sumHeat(channels, stage, isWithin, rows, columns),
    [channels, stage, isWithin, rows, columns],
  );
  const counts = { rows: rows.cells.spans.length, columns: columns.cells.spans.length };
  const size = {
    x: Math.min(widest.x, room / Math.max(1, counts.columns)),
    y: Math.min(widest.y, tallest / Math.max(1, counts.rows)),
  };
  const at: Cell = {
    row: Math.min(cursor.row, counts.rows - 1),
    column: Math.min(cursor.column, counts.columns - 1),
  };
  const bottom = counts.rows * size.y;
  const right = margin.left + counts.columns * size.x;
  const strength = strengthOf(kind ?? defaultKind(sums.least, sums.most), sums.least, sums.most);

  const draw = (context: CanvasRenderingContext2D): void => {
    const isDark = styleOf("--scheme") === "dark";
    const gap = Math.min(size.x, size.y) >= 7 ? 1 : 0;
    context.fillStyle = styleOf("--empty");
    context.fillRect(margin.left, 0, right - margin.left, bottom);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `11px ${styleOf("--font")}`;
    for (const [index, bytes] of sums.bytes.entries()) {
      if (bytes === 0) continue;
      const [row, column] = [Math.floor(index / sums.columns), index % sums.columns];
      // Whole pixels, so that neighbours meet.
      const [x, y] = [Math.round(margin.left + column * size.x), Math.round(row * size.y)];
      const w = Math.round(margin.left + (column + 1) * size.x) - x - gap;
      const h = Math.round((row + 1) * size.y) - y - gap;
      const color = heatColor(
        strength.of(bytes),
        isDark,
        sums.within[index]! * 2 > bytes ? "host" : "network",
      );
      context.fillStyle = color;
      context.fillRect(x, y, w, h);
      if (w < 60 || h < 16) continue;
      context.fillStyle = isDeep(color) ? "#fff" : "#111";
      context.fillText(formatBytes(bytes), x + w / 2, y + h / 2);
    }
  };

  const cellAt = ({ x, y }: Point): Cell | undefined => {
    const cell = { row: Math.floor(y / size.y), column: Math.floor((x - margin.left) / size.x) };
    const isInside =
      cell.row >= 0 && cell.row < counts.rows && cell.column >= 0 && cell.column < counts.columns;
    return isInside ? cell : undefined;
  };
  const zoomTo = (from: Cell, to: Cell): void => {
    const window = {
      rows: joined(rows.cells.spans[from.row]!, rows.cells.spans[to.row]!),
      columns: joined(columns.cells.spans[from.column]!, columns.cells.spans[to.column]!),
    };
    const isSame = isEqual(window.rows, zoom.window.rows) && isEqual(window.columns, zoom.window.columns);
    if (isSame || (lengthOf(window.rows) === 1 && lengthOf(window.columns) === 1)) return;
    setCursor({ row: 0, column: 0 });
    zoom.into(window);
  };
  const pick = (point: Point): void => {
    const cell = cellAt(point);
    if (cell === undefined) return;
    setCursor(cell);
    zoomTo(cell, cell);
  };
  const drag = ({ from, to }: Box): void => {
    const inside = { x: to.x - 0.01, y: to.y - 0.01 };
    const [first, last] = [cellAt(from), cellAt(inside)];
    if (first && last) zoomTo(first, last);
  };
  const key = (name: string, shift: boolean): boolean => {
    const step = shift ? 8 : 1;
    const move = (row: number, column: number): true => {
      const clamp = (value: number, count: number) => Math.max(0, Math.min(count - 1, value));
      setCursor({ row: clamp(at.row + row, counts.rows), column: clamp(at.column + column, counts.columns) });
      return true;
    };
    if (name === "ArrowLeft") return move(0, -step);
    if (name === "ArrowRight") return move(0, step);
    if (name === "ArrowUp") return move(-step, 0);
    if (name === "ArrowDown") return move(step, 0);
    if (name === "Enter" || name === "+") zoomTo(at, at);
    else if (name === "Escape" || name === "-" || name === "Backspace") zoom.out();
    else if (name === "Home") zoom.reset();
    else return false;
    return true;
  };

  const here = at.row * sums.columns + at.column;
  const stages = summary.stages.filter((one) => channels.stage.includes(one.stage));
  return (
    <>
      <div class="controls">
        <Choice
          label="stage"
          value={stage === undefined ? "all" : stageNames[stage]!}
          options={["all", ...stages.map((one) => stageNames[one.stage])]}
          onChange={(name) => setStage(name === "all" ? undefined : stageNames.indexOf(name as never))}
        />
        <Choice
          label="colours"
          value={strength.kind}
          options={["linear", "log"]}
          onChange={(name) => setKind(name as ScaleKind)}
        />
        <ZoomOut zoom={zoom} />
        <HeatLegend
          strength={strength}
          title="bytes a cell"
          format={formatTick}
          reaches={summary.hasHosts ? ["network", "host"] : ["network"]}
        />
      </div>
      <p class="details" id="heat-details" aria-live="polite">
        <strong>{rows.axis.label(rows.cells.spans[at.row]!)}</strong> to{" "}
        <strong>{columns.axis.label(columns.cells.spans[at.column]!)}</strong>:{" "}
        <span class="number" id="heat-bytes" data-bytes={sums.bytes[here]}>
          {formatBytes(sums.bytes[here]!)}
        </span>{" "}
        in {plural(sums.channels[here]!, "channel")}
        {sums.channels[here]! > 1 &&
          `, ${formatBytes(sums.bytes[here]! / sums.channels[here]!)} each on average`}
      </p>
      <div
        ref={holder}
        id="heat-map"
        data-cells={`${counts.rows} x ${counts.columns}`}
        data-first-row={rows.axis.label(rows.cells.spans[0]!)}
      >
        {width > 0 && (
          <Plot
            width={width}
            height={bottom + margin.bottom}
            label={`Heat map of bytes from ${formatCount(axes.rows.ranks.length)} ranks to ${formatCount(axes.columns.ranks.length)}. Arrows move, Enter looks closer, Escape goes back.`}
            describedBy="heat-details"
            inputs={[sums, size.x, size.y, strength.kind]}
            drag="both"
            area={{ from: { x: margin.left, y: 0 }, to: { x: right, y: bottom } }}
            draw={draw}
            onPoint={(point) => {
              const cell = cellAt(point);
              if (cell) setCursor(cell);
            }}
            onPick={pick}
            onDrag={drag}
            onKey={key}
          >
            <RankTicks {...rows} start={0} size={size.y} at={margin.left} vertical />
            <RankTicks {...columns} start={margin.left} size={size.x} at={bottom} />
            <text class="axis-title" x={margin.left} y={bottom + 38}>
              to {unitOf(columns.cells.isRanks, summary.hasHosts)}
            </text>
            <text
              class="axis-title"
              transform={`translate(11 ${Math.max(bottom / 2, 24)}) rotate(-90)`}
              text-anchor="middle"
            >
              from {unitOf(rows.cells.isRanks, summary.hasHosts)}
            </text>
            <rect
              class="cursor"
              x={margin.left + at.column * size.x - 0.5}
              y={at.row * size.y - 0.5}
              width={size.x}
              height={size.y}
            />
          </Plot>
        )}
      </div>
    </>
  );
}

/** True if a channel stays within a host; none does if the spec names no hosts. */
function hostsOf(
  { rank, host }: RankColumns,
  { from, to }: ChannelColumns,
  hasHosts: boolean,
): (channel: number) => boolean {
  if (!hasHosts) return () => false;
  const hostOf = new Map([...rank].map((each, at) => [each, host[at]]));
  return (channel) => hostOf.get(from[channel]!) === hostOf.get(to[channel]!);
}

/** Rows are the ranks that send anything, columns those that receive. */
function axesOf(ranks: RankColumns, { from, to }: ChannelColumns, hasHosts: boolean) {
  const axis = (used: ReadonlySet<number>) => {
    const kept = [...ranks.rank.keys()].filter((at) => used.has(ranks.rank[at]!));
    const column = (values: Uint32Array) => Uint32Array.from(kept, (at) => values[at]!);
    return new RankAxis(column(ranks.rank), column(ranks.host), hasHosts);
  };
  return { rows: axis(new Set(from)), columns: axis(new Set(to)) };
}

function unitOf(isRanks: boolean, hasHosts: boolean): string {
  return isRanks ? "rank" : hasHosts ? "host (h)" : "ranks, by their first";
}

function joined(a: Span, b: Span): Span {
  return { start: Math.min(a.start, b.start), end: Math.max(a.end, b.end) };
}

function lengthOf({ start, end }: Span): number {
  return end - start;
}

function isEqual(a: Span, b: Span): boolean {
  return a.start === b.start && a.end === b.end;
}
