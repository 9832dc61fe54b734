/** A part of an axis: positions from `start` up to `end`. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** How an axis is cut: the spans of its cells, and of what each of them is. */
export interface Cells {
  readonly spans: readonly Span[];
  readonly isRanks: boolean;
}

/**
 * Ranks along an axis, at finer and coarser levels: ranks, hosts (or blocks of eight if nobody knows hosts), then two of
 * them together, four, and so on.
 */
export class RankAxis {
  readonly ranks: Uint32Array;
  readonly #hosts: Uint32Array;
  readonly #hasHosts: boolean;
  /** For each level where its groups begin, and where the last one ends. */
  readonly #levels: readonly Uint32Array[];

  /** `ranks` ascending, with the host of each. */
  constructor(ranks: Uint32Array, hosts: Uint32Array, hasHosts: boolean) {
    this.ranks = ranks;
    this.#hosts = hosts;
    this.#hasHosts = hasHosts;
    const levels: Uint32Array[] = [Uint32Array.from({ length: ranks.length + 1 }, (_, index) => index)];
    if (hasHosts) levels.push(runsOf(hosts));
    else levels.push(everySecond(everySecond(everySecond(levels[0]!))));
    while (levels.at(-1)!.length > 2) levels.push(everySecond(levels.at(-1)!));
    this.#levels = levels.filter((level, index) => index === 0 || level.length < levels[index - 1]!.length);
  }

  get whole(): Span {
    return { start: 0, end: this.ranks.length };
  }

  /** The finest cells of a span of which there are at most `most`. A span that cuts a group is widened to all of it. */
  cells(span: Span, most: number): Cells {
    for (const [index, level] of this.#levels.entries()) {
      const spans = cut(level, span);
      if (spans.length > most && index < this.#levels.length - 1) continue;
      return { spans, isRanks: spans.every(({ start, end }) => end - start === 1) };
    }
    return { spans: [span], isRanks: false };
  }

  /** `rank 5`, `host 3 (ranks 24–31)`. */
  label({ start, end }: Span): string {
    const ranks = `${end - start === 1 ? "rank" : "ranks"} ${range(this.ranks, start, end)}`;
    if (!this.#hasHosts || !this.#isWholeHosts(start, end)) return ranks;
    const hosts = range(this.#hosts, start, end);
    return `${hosts.includes("–") ? "hosts" : "host"} ${hosts} (${ranks})`;
  }

  /** Like `label`, for a tick: only the first rank of it. */
  tick({ start, end }: Span, isRanks: boolean): string {
    if (isRanks || !this.#hasHosts || !this.#isWholeHosts(start, end)) return String(this.ranks[start]);
    return `h${this.#hosts[start]}`;
  }

  /** For each rank up to the largest the number of its cell; -1 for those that are in none. */
  numbers(spans: readonly Span[]): Int32Array {
    const numbers = new Int32Array((this.ranks.at(-1) ?? -1) + 1).fill(-1);
    for (const [number, { start, end }] of spans.entries()) {
      for (let at = start; at < end; at++) numbers[this.ranks[at]!] = number;
    }
    return numbers;
  }

  #isWholeHosts(start: number, end: number): boolean {
    const cuts = (at: number) => at > 0 && at < this.#hosts.length && this.#hosts[at] === this.#hosts[at - 1];
    return end - start > 1 && !cuts(start) && !cuts(end);
  }
}

function runsOf(hosts: Uint32Array): Uint32Array {
  const starts = [...hosts.keys()].filter((at) => at === 0 || hosts[at] !== hosts[at - 1]);
  return Uint32Array.from([...starts, hosts.length]);
}

function everySecond(level: Uint32Array): Uint32Array {
  const last = level.length - 1;
  return Uint32Array.from([...level.filter((_, at) => at % 2 === 0 && at < last), level[last]!]);
}

function cut(level: Uint32Array, { start, end }: Span): Span[] {
  const spans: Span[] = [];
  for (let at = 0; at + 1 < level.length; at++) {
    const [from, to] = [level[at]!, level[at + 1]!];
    if (to > start && from < end) spans.push({ start: from, end: to });
  }
  return spans;
}

function range(values: Uint32Array, start: number, end: number): string {
  const [first, last] = [values[start]!, values[end - 1]!];
  return first === last ? String(first) : `${first}–${last}`;
}
