import type { Cells, RankAxis } from "./rank-axis.ts";

interface RankTicksProps {
  readonly axis: RankAxis;
  readonly cells: Cells;
  /** Says where the cells begin, and the size of each. */
  readonly start: number;
  readonly size: number;
  /** Says where the axis lies, across. */
  readonly at: number;
  readonly vertical?: boolean;
}

const tickRoom = { x: 44, y: 18 };

/** Ticks of ranks or hosts: as many as there is room for. */
export function RankTicks({ axis, cells, start, size, at, vertical = false }: RankTicksProps) {
  const every = niceStep(Math.ceil((vertical ? tickRoom.y : tickRoom.x) / size));
  const shown = cells.spans.map((span, cell) => ({ span, cell })).filter(({ cell }) => cell % every === 0);
  return (
    <g class="axis">
      {shown.map(({ span, cell }) => {
        const middle = start + (cell + 0.5) * size;
        const text = axis.tick(span, cells.isRanks);
        return vertical ? (
          <g key={cell}>
            <line x1={at - 5} x2={at} y1={middle} y2={middle} />
            <text x={at - 8} y={middle} dy="0.32em" text-anchor="end">
              {text}
            </text>
          </g>
        ) : (
          <g key={cell}>
            <line x1={middle} x2={middle} y1={at} y2={at + 5} />
            <text x={middle} y={at + 17} text-anchor="middle">
              {text}
            </text>
          </g>
        );
      })}
    </g>
  );
}

interface ValueTicksProps {
  readonly ticks: readonly number[];
  readonly left: number;
  readonly right: number;
  position(value: number): number;
  format(value: number): string;
}

/** Horizontal lines at round values, named on the left. */
export function ValueTicks({ ticks, left, right, position, format }: ValueTicksProps) {
  return (
    <g class="axis">
      {ticks.map((tick) => (
        <g key={tick}>
          <line class="grid" x1={left} x2={right} y1={position(tick)} y2={position(tick)} />
          <text x={left - 8} y={position(tick)} dy="0.32em" text-anchor="end">
            {format(tick)}
          </text>
        </g>
      ))}
    </g>
  );
}

/** 1, 2, 4, 5, 8, 10, 20 … so that ticks fall on numbers that people count in. */
function niceStep(least: number): number {
  for (let ten = 1; ; ten *= 10) {
    for (const step of [1, 2, 4, 5, 8]) if (step * ten >= least) return step * ten;
  }
}
