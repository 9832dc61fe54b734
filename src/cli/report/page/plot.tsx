import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { useScheme } from "./hooks.ts";

export interface Point {
  readonly x: number;
  readonly y: number;
}

export interface Box {
  readonly from: Point;
  readonly to: Point;
}

interface PlotProps {
  readonly width: number;
  readonly height: number;
  /** What it is, and how it is worked, for people who cannot see it. */
  readonly label: string;
  readonly describedBy: string;
  /** What the canvas depends on, besides size and colours. */
  readonly inputs: readonly unknown[];
  /** Axes and the cursor, in SVG above the canvas. */
  readonly children?: ComponentChildren;
  /** Which ways a drag selects. */
  readonly drag: "both" | "x";
  /** What may be dragged over. */
  readonly area: Box;
  draw(context: CanvasRenderingContext2D): void;
  onPoint(point: Point): void;
  onPick(point: Point): void;
  onDrag(box: Box): void;
  /** Answers whether the key means something here. */
  onKey(key: string, shift: boolean): boolean;
}

const dragStart = 5;

/** A canvas with SVG above it, which is pointed at, dragged over, and worked by keys. */
export function Plot(props: PlotProps) {
  const { width, height, area } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  const [box, setBox] = useState<Box>();
  const pressed = useRef<Point | undefined>(undefined);
  const scheme = useScheme();
  useLayoutEffect(() => {
    const scale = window.devicePixelRatio || 1;
    const element = canvas.current!;
    element.width = Math.round(width * scale);
    element.height = Math.round(height * scale);
    const context = element.getContext("2d")!;
    context.scale(scale, scale);
    props.draw(context);
  }, [width, height, scheme, ...props.inputs]);

  const size = { width: `${width}px`, height: `${height}px` };
  const pointOf = (event: PointerEvent): Point => {
    const bounds = canvas.current!.getBoundingClientRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  };
  const move = (event: PointerEvent): void => {
    const point = pointOf(event);
    const from = pressed.current;
    if (from !== undefined && distance(from, point) > dragStart) setBox(boxOf(from, point, props));
    else props.onPoint(point);
  };
  const release = (event: PointerEvent): void => {
    if (pressed.current === undefined) return;
    pressed.current = undefined;
    setBox(undefined);
    if (box === undefined) props.onPick(pointOf(event));
    else props.onDrag(box);
  };
  return (
    <div
      class="plot"
      style={size}
      // biome-ignore lint/a11y/noNoninteractiveTabindex: it is worked by keys, as its label says
      tabIndex={0}
      role="application"
      aria-label={props.label}
      aria-describedby={props.describedBy}
      onPointerMove={move}
      onPointerDown={(event) => {
        if (event.button !== 0) return;
        const point = pointOf(event);
        if (point.x < area.from.x || point.y < area.from.y) return;
        pressed.current = point;
        event.currentTarget.setPointerCapture(event.pointerId);
      }}
      onPointerUp={release}
      onPointerCancel={() => {
        pressed.current = undefined;
        setBox(undefined);
      }}
      onKeyDown={(event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (props.onKey(event.key, event.shiftKey)) event.preventDefault();
      }}
    >
      <canvas ref={canvas} style={size} />
      <svg width={width} height={height} aria-hidden="true">
        {props.children}
        {box && (
          <rect
            class="drag"
            x={box.from.x}
            y={box.from.y}
            width={box.to.x - box.from.x}
            height={box.to.y - box.from.y}
          />
        )}
      </svg>
    </div>
  );
}

function boxOf(a: Point, b: Point, { area, drag }: PlotProps): Box {
  const within = (low: number, value: number, high: number) => Math.max(low, Math.min(high, value));
  const xs = [a.x, b.x].map((x) => within(area.from.x, x, area.to.x)).sort((p, q) => p - q);
  const ys = [a.y, b.y].map((y) => within(area.from.y, y, area.to.y)).sort((p, q) => p - q);
  if (drag === "x") return { from: { x: xs[0]!, y: area.from.y }, to: { x: xs[1]!, y: area.to.y } };
  return { from: { x: xs[0]!, y: ys[0]! }, to: { x: xs[1]!, y: ys[1]! } };
}

function distance(a: Point, b: Point): number {
  return Math.hypot(a.x - b.x, a.y - b.y);
}
