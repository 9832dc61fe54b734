import type { Wiring } from "./jobs.ts";

/** Says whether a channel goes before another that stands by the same number. */
type IsBefore = (row: number, other: number) => boolean;

/** 1 for each end that is busy. */
type Flags = Readonly<Record<number, number>>;

/**
 * At each end of a link the channels that could send there, those that go first in front. What stands in front often waits for its
 * other end: a free end looks at channels up to the first that need not wait, and at none behind it. With all of them looked
 * at, a receiver of many small jobs took most of a schedule's time.
 */
export class Lines {
  readonly #lines: readonly Line[];
  readonly #outEnd: Int32Array;
  readonly #inEnd: Int32Array;
  readonly #isBefore: IsBefore;
  /** The number that each channel stands by. */
  readonly #numbers: Float64Array;

  constructor({ outEnd, inEnd, ends }: Wiring, isBefore: IsBefore) {
    this.#outEnd = outEnd;
    this.#inEnd = inEnd;
    this.#isBefore = isBefore;
    this.#numbers = new Float64Array(outEnd.length);
    this.#lines = Array.from({ length: ends }, () => new Line());
  }

  /** Has a channel stand at both of its ends, by a number: the lowest goes first. */
  enter(row: number, number: number): void {
    this.#numbers[row] = number;
    const [out, into] = [this.#outEnd[row]!, this.#inEnd[row]!];
    this.#insert(this.#lines[out]!, row, into);
    this.#insert(this.#lines[into]!, row, out);
  }

  /** Takes out of both lines the first channel at an end whose other end is free; -1 if there is none. */
  takeFirst(end: number, isBusy: Flags): number {
    const line = this.#lines[end]!;
    const { start, end: behind, others } = line;
    for (let at = start; at < behind; at++) {
      const other = others[at]!;
      if (isBusy[other] === 1) continue;
      const row = line.rows[at]!;
      line.remove(at);
      const far = this.#lines[other]!;
      far.remove(this.#placeIn(far, row));
      return row;
    }
    return -1;
  }

  #insert(line: Line, row: number, other: number): void {
    line.insert(this.#placeIn(line, row), row, other, this.#numbers[row]!);
  }

  /** The place of a channel in a line: the one where it stands, or would stand. */
  #placeIn({ start, end, rows, numbers }: Line, row: number): number {
    const number = this.#numbers[row]!;
    let low = start;
    let high = end;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const ahead = numbers[middle]! - number;
      if (ahead < 0 || (ahead === 0 && this.#isBefore(rows[middle]!, row))) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Channels in order, by columns: those from `start` up to `end`. Most come at the back, and go near the front. */
class Line {
  start = 0;
  end = 0;
  rows = new Uint32Array(0);
  /** The other end of each channel. */
  others = new Uint32Array(0);
  /** What each stands by. */
  numbers = new Float64Array(0);

  insert(at: number, row: number, other: number, number: number): void {
    const place = at - this.start;
    if (this.end === this.rows.length) this.#makeRoom();
    const { rows, others, numbers, end } = this;
    const into = this.start + place;
    for (let to = end; to > into; to--) {
      rows[to] = rows[to - 1]!;
      others[to] = others[to - 1]!;
      numbers[to] = numbers[to - 1]!;
    }
    rows[into] = row;
    others[into] = other;
    numbers[into] = number;
    this.end++;
  }

  /** Those on the shorter side of it move. */
  remove(at: number): void {
    const { rows, others, numbers, start, end } = this;
    if (at - start < end - at) {
      for (let to = at; to > start; to--) {
        rows[to] = rows[to - 1]!;
        others[to] = others[to - 1]!;
        numbers[to] = numbers[to - 1]!;
      }
      this.start++;
    } else {
      for (let to = at; to < end - 1; to++) {
        rows[to] = rows[to + 1]!;
        others[to] = others[to + 1]!;
        numbers[to] = numbers[to + 1]!;
      }
      this.end--;
    }
  }

  /** Room at the back: that of those that have gone, if it is half of all, or else as much again. */
  #makeRoom(): void {
    const { rows, others, numbers, start, end } = this;
    const size = end - start;
    if (2 * size <= rows.length && start > 0) {
      for (const column of [rows, others, numbers]) column.copyWithin(0, start, end);
    } else {
      const room = Math.max(8, 2 * rows.length);
      this.rows = new Uint32Array(room);
      this.others = new Uint32Array(room);
      this.numbers = new Float64Array(room);
      this.rows.set(rows.subarray(start, end));
      this.others.set(others.subarray(start, end));
      this.numbers.set(numbers.subarray(start, end));
    }
    this.start = 0;
    this.end = size;
  }
}
