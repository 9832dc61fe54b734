/** Events by time, then by number: a binary heap. */
export class EventQueue {
  #times = new Float64Array(1024);
  #events = new Float64Array(1024);
  size = 0;

  /** The time of the next event; infinity if there is none. */
  get time(): number {
    return this.size === 0 ? Number.POSITIVE_INFINITY : this.#times[0]!;
  }

  /** The number of the next event. */
  get first(): number {
    return this.#events[0]!;
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

/** Events that come with times in order: they go as they came. */
export class EventLine {
  #times = new Float64Array(1024);
  #events = new Float64Array(1024);
  #next = 0;
  #end = 0;

  /** The time of the next event; infinity if there is none. */
  get time(): number {
    return this.#next === this.#end ? Number.POSITIVE_INFINITY : this.#times[this.#next]!;
  }

  /** The number of the next event. */
  get first(): number {
    return this.#events[this.#next]!;
  }

  push(time: number, event: number): void {
    if (this.#end === this.#times.length) this.#makeRoom();
    this.#times[this.#end] = time;
    this.#events[this.#end++] = event;
  }

  pop(): number {
    return this.#events[this.#next++]!;
  }

  /** Room at the end: that of events that have gone, if it is half of all, or else as much again. */
  #makeRoom(): void {
    if (this.#next < this.#end / 2) {
      this.#times = doubled(this.#times);
      this.#events = doubled(this.#events);
    }
    this.#times.copyWithin(0, this.#next, this.#end);
    this.#events.copyWithin(0, this.#next, this.#end);
    this.#end -= this.#next;
    this.#next = 0;
  }
}

function doubled(values: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(values.length * 2);
  larger.set(values);
  return larger;
}
