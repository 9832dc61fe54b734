import { scaleLinear } from "d3-scale";
import { useMemo, useRef, useState } from "preact/hooks";
import { formatBytes, formatDuration } from "../../ui/format.ts";
import { type Report, type ReportSchedule, stageNames } from "../report.ts";
import { RankTicks } from "./axes.tsx";
import { formatTick } from "./byte-scale.ts";
import { Choice, ZoomOut } from "./controls.tsx";
import { heatColor, strengthOf } from "./heat-color.ts";
import { HeatLegend } from "./heat-legend.tsx";
import { styleOf, useWidth, useZoom } from "./hooks.ts";
import { type Box, Plot, type Point } from "./plot.tsx";
import { RankAxis, type Span } from "./rank-axis.ts";
import { type Bar, type Direction, placeBars, sumRates, type TimeSpan } from "./timeline-data.ts";

interface Window {
  readonly rows: Span;
  readonly time: TimeSpan;
}

const margin = { left: 58, right: 16, bottom: 44 };
const tallest = 440;
const leastRow = 3;
/** So many ranks show every channel; of more it is how fast they are. */
const mostBarRows = 24;
const slotWidth = 2;

/** When each channel is expected to run: every one if few ranks are in sight, else how fast their ranks or hosts are. */
export function Timeline({ report }: { readonly report: Report }) {
  const { schedule } = report.summary;
  if (schedule === undefined) {
    return <p class="none">The spec names no topology, so that nothing is known of how fast links are.</p>;
  }
  if (report.channels.bytes.length === 0) return <p class="none">Nothing goes from one rank to another.</p>;
  return <TimelinePlot report={report} schedule={schedule} />;
}

function TimelinePlot({ report, schedule }: { readonly report: Report; readonly schedule: ReportSchedule }) {
  const { channels, ranks, summary } = report;
  const holder = useRef<HTMLDivElement>(null);
  const width = useWidth(holder);
  const [direction, setDirection] = useState<Direction>("from");
  const axis = useMemo(() => axisOf(report, direction), [report, direction]);
  const whole = { rows: axis.whole, time: { start: 0, end: Math.ceil(schedule.makespan / schedule.step) } };
  const zoom = useZoom<Window>(whole);
  const [cursor, setCursor] = useState({ row: 0, time: 0 });

  const { rows: rowSpan, time } = zoom.window;
  const room = Math.max(120, width - margin.left - margin.right);
  const rows = useMemo(
    () => ({ axis, cells: axis.cells(rowSpan, Math.floor(tallest / leastRow)) }),
    [axis, rowSpan.start, rowSpan.end],
  );
  const count = rows.cells.spans.length;
  const isBars = rows.cells.isRanks && count <= mostBarRows;
  const rowHeight = Math.min(isBars ? 56 : 16, tallest / count);
  const bottom = rowHeight * count;
  const right = margin.left + room;
  const slots = Math.max(1, Math.floor(room / slotWidth));
  const rates = useMemo(
    () => sumRates(channels, direction, rows, time, slots),
    [channels, direction, rows, time.start, time.end, slots],
  );
  const placed = useMemo(
    () => (isBars ? placeBars(channels, direction, rows, time) : { bars: [], lanes: [] }),
    [channels, direction, rows, time.start, time.end, isBars],
  );
  const x = scaleLinear().domain([time.start, time.end]).range([margin.left, right]);
  const strength = strengthOf("linear", 0, rates.most / schedule.step);
  const row = Math.min(cursor.row, count - 1);
  const at = Math.max(time.start, Math.min(cursor.time, time.end));

  const boxOfBar = ({ channel, row: own, lane }: Bar) => {
    const height = (rowHeight - 3) / placed.lanes[own]!;
    const [from, to] = [x(channels.start![channel]!), x(channels.end![channel]!)];
    const left = Math.max(from, margin.left);
    return {
      x: left,
      y: own * rowHeight + 1.5 + lane * height,
      w: Math.max(1, Math.min(to, right) - left),
      h: height,
    };
  };
  const draw = (context: CanvasRenderingContext2D): void => {
    const isDark = styleOf("--scheme") === "dark";
    context.fillStyle = styleOf("--empty");
    context.fillRect(margin.left, 0, room, bottom);
    if (isBars) {
      const colors = stageNames.map((name) => styleOf(`--${name}`));
      for (const bar of placed.bars) {
        const { x: left, y, w, h } = boxOfBar(bar);
        context.fillStyle = colors[channels.stage[bar.channel]!]!;
        context.fillRect(left, y, w > 3 ? w - 0.75 : w, h > 3 ? h - 0.75 : h);
      }
    } else {
      for (const [index, rate] of rates.values.entries()) {
        if (rate === 0) continue;
        const [own, slot] = [Math.floor(index / slots), index % slots];
        const [top, next] = [Math.round(own * rowHeight), Math.round((own + 1) * rowHeight)];
        context.fillStyle = heatColor(strength.of(rate / schedule.step), isDark);
        context.fillRect(
          margin.left + (slot * room) / slots,
          top,
          room / slots + 0.5,
          next - top - (rowHeight >= 8 ? 1 : 0),
        );
      }
    }
    context.fillStyle = styleOf("--line");
    for (let line = 1; isBars && line < count; line++)
      context.fillRect(margin.left, line * rowHeight - 0.5, room, 1);
  };
  const barAt = (point: Point): Bar | undefined =>
    placed.bars.find((bar) => {
      const box = boxOfBar(bar);
      return point.x >= box.x && point.x <= box.x + box.w && point.y >= box.y && point.y <= box.y + box.h;
    });
  const [hovered, setHovered] = useState<Bar>();
  const rowAt = (y: number): number => Math.max(0, Math.min(count - 1, Math.floor(y / rowHeight)));
  const point = (here: Point): void => {
    setCursor({ row: rowAt(here.y), time: x.invert(here.x) });
    setHovered(barAt(here));
  };
  const zoomTo = (window: Window): void => {
    const span = Math.max(window.time.end - window.time.start, 16);
    setHovered(undefined);
    zoom.into({ rows: window.rows, time: { start: window.time.start, end: window.time.start + span } });
  };
  /** Around the cursor: its row, if that is several ranks, and half of the time. */
  const closer = (): void => {
    const half = (time.end - time.start) / 4;
    const start = Math.max(time.start, Math.min(at - half, time.end - 2 * half));
    const span = rows.cells.spans[row]!;
    const isGroup = span.end - span.start > 1;
    zoomTo({ rows: isGroup ? span : rowSpan, time: isGroup ? time : { start, end: start + 2 * half } });
  };
  const drag = ({ from, to }: Box): void =>
    zoomTo({
      rows: { start: rows.cells.spans[rowAt(from.y)]!.start, end: rows.cells.spans[rowAt(to.y - 0.01)]!.end },
      time: { start: x.invert(from.x), end: x.invert(to.x) },
    });
  const key = (name: string, shift: boolean): boolean => {
    const step = ((time.end - time.start) / 100) * (shift ? 10 : 1);
    const move = (down: number, later: number): true => {
      setHovered(undefined);
      setCursor({ row: Math.max(0, Math.min(count - 1, row + down)), time: at + later });
      return true;
    };
    if (name === "ArrowLeft") return move(0, -step);
    if (name === "ArrowRight") return move(0, step);
    if (name === "ArrowUp") return move(shift ? -8 : -1, 0);
    if (name === "ArrowDown") return move(shift ? 8 : 1, 0);
    if (name === "Enter" || name === "+") closer();
    else if (name === "Escape" || name === "-" || name === "Backspace") zoom.out();
    else if (name === "Home") zoom.reset();
    else return false;
    return true;
  };
  const seconds = (steps: number) => steps * schedule.step;
  const does = direction === "from" ? "sends" : "receives";
  const slot = Math.min(slots - 1, Math.floor(((at - time.start) / (time.end - time.start)) * slots));
  const bound = x(schedule.lowerBound / schedule.step);
  const timeScale = scaleLinear()
    .domain([seconds(time.start), seconds(time.end)])
    .range([margin.left, right]);
  return (
    <>
      <div class="controls">
        <Choice
          label="what ranks"
          value={direction === "from" ? "send" : "receive"}
          options={["send", "receive"]}
          onChange={(name) => {
            setDirection(name === "send" ? "from" : "to");
            setHovered(undefined);
            zoom.reset();
          }}
        />
        <ZoomOut zoom={zoom} />
        {isBars ? (
          <div class="legend">
            {summary.stages
              .filter(({ stage }) => channels.stage.includes(stage))
              .map(({ stage }) => (
                <span key={stage} class="key">
                  <span class="swatch" style={{ background: `var(--${stageNames[stage]})` }} />
                  {stageNames[stage]}
                </span>
              ))}
            <span>a bar is a channel</span>
          </div>
        ) : (
          <HeatLegend
            strength={strength}
            title="speed of a rank"
            format={(rate) => `${formatTick(rate)}/s`}
          />
        )}
        <span class="legend">
          <span class="limit" />
          no schedule ends before {formatDuration(schedule.lowerBound)}
        </span>
      </div>
      <p class="details" id="timeline-details" aria-live="polite">
        {hovered === undefined ? (
          <>
            <strong>{axis.label(rows.cells.spans[row]!)}</strong> at {formatTime(seconds(at))}: {does}{" "}
            <span class="number">
              {formatBytes(Math.round(rates.values[row * slots + slot]! / schedule.step))}/s
            </span>
            {!rows.cells.isRanks && " a rank on average"}
          </>
        ) : (
          <>
            <strong>rank {channels.from[hovered.channel]}</strong> to{" "}
            <strong>rank {channels.to[hovered.channel]}</strong>:{" "}
            {stageNames[channels.stage[hovered.channel]!]}, wave {channels.wave[hovered.channel]},{" "}
            {formatBytes(channels.bytes[hovered.channel]!)} from{" "}
            {formatTime(seconds(channels.start![hovered.channel]!))} to{" "}
            {formatDuration(seconds(channels.end![hovered.channel]!))}
          </>
        )}
      </p>
      <div ref={holder} id="timeline-plot" data-rows={count} data-bars={placed.bars.length}>
        {width > 0 && (
          <Plot
            width={width}
            height={bottom + margin.bottom}
            label={`Timeline of what ${ranks.rank.length} ranks ${direction === "from" ? "send" : "receive"}. Arrows move, Enter looks closer, Escape goes back.`}
            describedBy="timeline-details"
            inputs={[rates, placed, rowHeight, room]}
            drag="both"
            area={{ from: { x: margin.left, y: 0 }, to: { x: right, y: bottom } }}
            draw={draw}
            onPoint={point}
            onPick={(here) => {
              point(here);
              const span = rows.cells.spans[rowAt(here.y)]!;
              if (span.end - span.start > 1) zoomTo({ rows: span, time });
            }}
            onDrag={drag}
            onKey={key}
          >
            <RankTicks {...rows} start={0} size={rowHeight} at={margin.left} vertical />
            <g class="axis">
              {timeScale.ticks(Math.max(2, Math.floor(room / 120))).map((tick) => (
                <g key={tick}>
                  <line x1={timeScale(tick)} x2={timeScale(tick)} y1={bottom} y2={bottom + 5} />
                  <text x={timeScale(tick)} y={bottom + 17} text-anchor="middle">
                    {formatTime(tick)}
                  </text>
                </g>
              ))}
            </g>
            <text class="axis-title" x={margin.left} y={bottom + 38}>
              predicted time
            </text>
            {bound > margin.left && bound <= right && (
              <line class="limit-line" x1={bound} x2={bound} y1={0} y2={bottom} />
            )}
            <rect class="cursor" x={margin.left} y={row * rowHeight} width={room} height={rowHeight} />
            <line class="cursor" x1={x(at)} x2={x(at)} y1={0} y2={bottom} />
          </Plot>
        )}
      </div>
    </>
  );
}

/** The ranks that send, or that receive. */
function axisOf({ ranks, channels, summary }: Report, direction: Direction): RankAxis {
  const used = new Set(channels[direction]);
  const kept = [...ranks.rank.keys()].filter((position) => used.has(ranks.rank[position]!));
  const column = (values: Uint32Array) => Uint32Array.from(kept, (position) => values[position]!);
  return new RankAxis(column(ranks.rank), column(ranks.host), summary.hasHosts);
}

function formatTime(seconds: number): string {
  return seconds === 0 ? "0" : formatDuration(seconds);
}
