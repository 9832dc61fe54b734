/** Events by time, then by number: a binary heap. */
export class EventQueue {
  #times = new Float64Array(1024);
  #events = new Float64Array(1024);
  size = 0;

  /** The time of the next event. */
  get time(): number {
    return this.#times[0]!;
  }

  push(time: number, event: number): void {
    if (this.size === this.#times.length) {
      this.#times = doubled(this.#times);
      this.#events = doubled(this.#events);
    }
    let at = this.size++;
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (!this.#isAfter(above, time, event)) break;
      this.#move(above, at);
      at = above;
    }
    this.#times[at] = time;
    this.#events[at] = event;
  }

  pop(): number {
    const first = this.#events[0]!;
    const last = --this.size;
    const time = this.#times[last]!;
    const event = this.#events[last]!;
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= last) break;
      if (below + 1 < last && this.#isAfter(below, this.#times[below + 1]!, this.#events[below + 1]!))
        below++;
      if (this.#isAfter(below, time, event)) break;
      this.#move(below, at);
      at = below;
    }
    this.#times[at] = time;
    this.#events[at] = event;
    return first;
  }

  #isAfter(at: number, time: number, event: number): boolean {
    return this.#times[at]! > time || (this.#times[at] === time && this.#events[at]! > event);
  }

  #move(from: number, to: number): void {
    this.#times[to] = this.#times[from]!;
    this.#events[to] = this.#events[from]!;
  }
}

function doubled(values: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(values.length * 2);
  larger.set(values);
  return larger;
}
