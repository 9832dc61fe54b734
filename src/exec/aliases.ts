/**
 * Target memory must not overlap other memory of the batch: what one tensor receives would change what another still
 * has to send, or two would write the same bytes. The only exception is memory on which nothing is really written.
 */
import { endOf, gcd, overlaps, overlapsItself, type StridedBytes } from "./strided.ts";

/** One side of one local tensor of the batch. */
export interface BatchView {
  readonly tensor: number;
  readonly kind: "source" | "target";
  readonly bytes: StridedBytes;
  /** The bytes that a round really writes there; asked for only if the view overlaps another. */
  readonly writes: () => readonly StridedBytes[];
}

interface Alias {
  readonly target: BatchView;
  /** The same view if a target overlaps itself. */
  readonly other: BatchView;
}

/**
 * The first target that overlaps another view in bytes that are written, or itself. Exact to the element; near-linear
 * in the views, also if many of them interleave (columns of one matrix).
 */
export function findAlias(views: readonly BatchView[]): Alias | undefined {
  for (const view of views) {
    if (view.kind === "target" && overlapsItself(view.bytes)) return { target: view, other: view };
  }
  for (const cluster of clusters(views)) {
    for (const [a, b] of candidates(cluster)) {
      if (!overlaps(a.bytes, b.bytes)) continue;
      if (isWritten(a, b)) return { target: a, other: b };
      if (isWritten(b, a)) return { target: b, other: a };
    }
  }
  return undefined;
}

function isWritten(target: BatchView, other: BatchView): boolean {
  return target.kind === "target" && target.writes().some((written) => overlaps(written, other.bytes));
}

/** Views whose extents hang together, if there are several and one of them is a target. */
function* clusters(views: readonly BatchView[]): Generator<BatchView[]> {
  const sorted = [...views].sort((a, b) => a.bytes.start - b.bytes.start);
  let cluster: BatchView[] = [];
  let end = Number.NEGATIVE_INFINITY;
  for (const view of sorted) {
    if (view.bytes.start >= end) {
      if (isWorthwhile(cluster)) yield cluster;
      cluster = [];
    }
    cluster.push(view);
    end = Math.max(end, endOf(view.bytes));
  }
  if (isWorthwhile(cluster)) yield cluster;
}

function isWorthwhile(cluster: readonly BatchView[]): boolean {
  return cluster.length > 1 && cluster.some(({ kind }) => kind === "target");
}

interface Interval {
  readonly view: BatchView;
  readonly start: number;
  readonly end: number;
}

/**
 * Pairs with a target that may overlap. Extents are folded at the period that the views of the cluster share, so that
 * views that interleave without touching make no pair.
 */
function* candidates(cluster: readonly BatchView[]): Generator<readonly [BatchView, BatchView]> {
  const period = sharedPeriod(cluster);
  const intervals = cluster.flatMap((view) => fold(view, period)).sort((a, b) => a.start - b.start);
  let sources: Interval[] = [];
  let targets: Interval[] = [];
  for (const interval of intervals) {
    const { view, start } = interval;
    targets = targets.filter(({ end }) => end > start);
    for (const open of targets) if (open.view !== view) yield [open.view, view];
    if (view.kind === "source") {
      sources.push(interval);
      continue;
    }
    sources = sources.filter(({ end }) => end > start);
    for (const open of sources) yield [view, open.view];
    targets.push(interval);
  }
}

/**
 * The common divisor of all outermost strides, or 0 (not folded) if nothing repeats or folding would only crowd the
 * intervals.
 */
function sharedPeriod(cluster: readonly BatchView[]): number {
  const period = cluster.reduce((common, { bytes }) => gcd(common, bytes.loops[0]?.stride ?? 0), 0);
  if (period === 0) return 0;
  const first = cluster[0]!.bytes.start;
  const whole = cluster.reduce((end, { bytes }) => Math.max(end, endOf(bytes)), first) - first;
  const crowding = (at: number, range: number) =>
    cluster.flatMap((view) => fold(view, at)).reduce((sum, { start, end }) => sum + end - start, 0) / range;
  return crowding(period, period) < crowding(0, whole) ? period : 0;
}

/** Says where a view lies within the period: loops that are multiples of it vanish. One that wraps around is two intervals. */
function fold(view: BatchView, period: number): Interval[] {
  const { start, loops, run } = view.bytes;
  if (period === 0) return [{ view, start, end: endOf(view.bytes) }];
  const bytes = loops
    .filter(({ stride }) => stride % period !== 0)
    .reduce((sum, { count, stride }) => sum + (count - 1) * stride, run);
  if (bytes >= period) return [{ view, start: 0, end: period }];
  const from = start % period;
  if (from + bytes <= period) return [{ view, start: from, end: from + bytes }];
  return [
    { view, start: from, end: period },
    { view, start: 0, end: from + bytes - period },
  ];
}
