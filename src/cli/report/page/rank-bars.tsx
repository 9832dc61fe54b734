import { useMemo, useRef, useState } from "preact/hooks";
import { formatBytes } from "../../ui/format.ts";
import type { Report } from "../report.ts";
import { RankTicks, ValueTicks } from "./axes.tsx";
import { byteScale, formatTick } from "./byte-scale.ts";
import { ZoomOut } from "./controls.tsx";
import { styleOf, useWidth, useZoom, type Zoom } from "./hooks.ts";
import { Plot, type Point } from "./plot.tsx";
import { type Cells, RankAxis, type Span } from "./rank-axis.ts";
import { barsOf, type CellBars, type Quantity, staging, traffic } from "./rank-sums.ts";

const margin = { left: 76, right: 12, top: 12, bottom: 24 };
const height = 150;
const least = 5;

/** What each rank sends, receives and stages; by host if there are many, with the busiest rank of each marked. */
export function RankBars({ report }: { readonly report: Report }) {
  const { ranks, channels, summary } = report;
  const holder = useRef<HTMLDivElement>(null);
  const width = useWidth(holder);
  const axis = useMemo(() => new RankAxis(ranks.rank, ranks.host, summary.hasHosts), [report]);
  const zoom = useZoom<Span>(axis.whole);
  const [cursor, setCursor] = useState(0);
  const room = Math.max(120, width - margin.left - margin.right);
  const cells = useMemo(() => axis.cells(zoom.window, Math.floor(room / least)), [axis, zoom.window, room]);
  const quantities = useMemo(
    () => ({
      sent: traffic(ranks, channels, "from"),
      received: traffic(ranks, channels, "to"),
      staged: staging(ranks),
    }),
    [report],
  );
  const at = Math.min(cursor, cells.spans.length - 1);
  const shared = { width, axis, cells, zoom, cursor: at, setCursor, ranks: ranks.rank };
  const limitOf = (name: string) => summary.budgets.find((budget) => budget.name === name)?.bytes;
  const stages = [...quantities.sent.parts, ...quantities.received.parts];
  return (
    <>
      <div class="controls">
        <div class="legend">
          {stages
            .filter(({ name }, index) => stages.findIndex((part) => part.name === name) === index)
            .map(({ name, color }) => (
              <span key={name} class="key">
                <span class="swatch" style={{ background: `var(${color})` }} />
                {name}
              </span>
            ))}
          <span class="key">
            <span class="swatch" style={{ background: "var(--staged)" }} />
            staging memory
          </span>
          {!cells.isRanks && (
            <span class="key">
              <span class="whisker" />
              busiest rank of a group; bars are means
            </span>
          )}
          {["rankEgressBytes", "rankIngressBytes", "stagingBytes"].some(
            (name) => limitOf(name) !== undefined,
          ) && (
            <span class="key">
              <span class="limit" />
              budget
            </span>
          )}
        </div>
        <ZoomOut zoom={zoom} />
      </div>
      <div ref={holder} id="rank-bars" data-cells={cells.spans.length}>
        {width > 0 && (
          <>
            <BarRow {...shared} name="sent" quantity={quantities.sent} limit={limitOf("rankEgressBytes")} />
            <BarRow
              {...shared}
              name="received"
              quantity={quantities.received}
              limit={limitOf("rankIngressBytes")}
            />
            <BarRow {...shared} name="staged" quantity={quantities.staged} limit={limitOf("stagingBytes")} />
          </>
        )}
      </div>
    </>
  );
}

interface BarRowProps {
  readonly name: string;
  readonly quantity: Quantity;
  readonly limit: number | undefined;
  readonly width: number;
  readonly axis: RankAxis;
  readonly cells: Cells;
  readonly zoom: Zoom<Span>;
  readonly cursor: number;
  readonly ranks: Uint32Array;
  setCursor(cell: number): void;
}

function BarRow(props: BarRowProps) {
  const { name, quantity, limit, width, axis, cells, zoom, cursor, ranks, setCursor } = props;
  const bars = useMemo(() => barsOf(quantity, ranks, cells), [quantity, cells]);
  const count = cells.spans.length;
  const size = Math.min(64, (width - margin.left - margin.right) / Math.max(1, count));
  const bottom = height - margin.bottom;
  const right = margin.left + size * count;
  const scale = byteScale(Math.max(...bars.most, limit ?? 0), bottom, margin.top, 3);

  const cellAt = ({ x }: Point): number | undefined => {
    const cell = Math.floor((x - margin.left) / size);
    return cell >= 0 && cell < count ? cell : undefined;
  };
  const zoomTo = (from: number, to: number): void => {
    const window = { start: cells.spans[from]!.start, end: cells.spans[to]!.end };
    const isSame = window.start === zoom.window.start && window.end === zoom.window.end;
    if (isSame || window.end - window.start === 1) return;
    setCursor(0);
    zoom.into(window);
  };
  const key = (pressed: string, shift: boolean): boolean => {
    const step = shift ? 8 : 1;
    if (pressed === "ArrowLeft") setCursor(Math.max(0, cursor - step));
    else if (pressed === "ArrowRight") setCursor(Math.min(count - 1, cursor + step));
    else if (pressed === "Enter" || pressed === "+") zoomTo(cursor, cursor);
    else if (pressed === "Escape" || pressed === "-" || pressed === "Backspace") zoom.out();
    else if (pressed === "Home") zoom.reset();
    else return false;
    return true;
  };
  const draw = (context: CanvasRenderingContext2D): void => {
    const colors = quantity.parts.map(({ color }) => styleOf(color));
    const ink = styleOf("--ink");
    const gap = size >= 7 ? Math.max(1, size * 0.15) : size >= 4 ? 1 : 0;
    for (let cell = 0; cell < count; cell++) {
      const x = margin.left + cell * size;
      let base = 0;
      for (const [part, means] of bars.means.entries()) {
        const [low, high] = [scale.position(base), scale.position(base + means[cell]!)];
        context.fillStyle = colors[part]!;
        context.fillRect(x + gap / 2, high, size - gap, low - high);
        base += means[cell]!;
      }
      if (cells.isRanks || bars.most[cell] === 0) continue;
      const top = scale.position(bars.most[cell]!);
      context.fillStyle = ink;
      context.fillRect(x + gap / 2, top - 0.75, size - gap, 1.5);
    }
  };
  const detailsId = `bars-${name}`;
  return (
    <figure class="bars">
      <figcaption id={detailsId}>
        <strong>{name}</strong> {describe(bars, cursor, cells, axis)}
        {limit !== undefined && `; budget ${formatBytes(limit)} a rank`}
      </figcaption>
      <Plot
        width={width}
        height={height}
        label={`Bytes ${name}, by ${cells.isRanks ? "rank" : "group of ranks"}. Arrows move, Enter looks closer, Escape goes back.`}
        describedBy={detailsId}
        inputs={[bars, size, limit]}
        drag="x"
        area={{ from: { x: margin.left, y: 0 }, to: { x: right, y: bottom } }}
        draw={draw}
        onPoint={(point) => {
          const cell = cellAt(point);
          if (cell !== undefined) setCursor(cell);
        }}
        onPick={(point) => {
          const cell = cellAt(point);
          if (cell === undefined) return;
          setCursor(cell);
          zoomTo(cell, cell);
        }}
        onDrag={({ from, to }) => {
          const [first, last] = [cellAt(from), cellAt({ x: to.x - 0.01, y: 0 })];
          if (first !== undefined && last !== undefined) zoomTo(first, last);
        }}
        onKey={key}
      >
        <ValueTicks {...scale} left={margin.left} right={right} format={formatTick} />
        <RankTicks axis={axis} cells={cells} start={margin.left} size={size} at={bottom} />
        {limit !== undefined && (
          <line
            class="limit-line"
            x1={margin.left}
            x2={right}
            y1={scale.position(limit)}
            y2={scale.position(limit)}
          />
        )}
        <rect
          class="cursor"
          x={margin.left + cursor * size}
          y={margin.top}
          width={size}
          height={bottom - margin.top}
        />
      </Plot>
    </figure>
  );
}

function describe(bars: CellBars, cell: number, { spans, isRanks }: Cells, axis: RankAxis) {
  const label = axis.label(spans[cell]!);
  if (isRanks) return `${label}: ${formatBytes(bars.mean[cell]!)}`;
  return `${label}: ${formatBytes(bars.mean[cell]!)} on average, rank ${bars.mostRank[cell]} most, ${formatBytes(bars.most[cell]!)}`;
}
