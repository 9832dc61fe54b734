/**
 * In place of the AbortController of Node.js, whose events and weak references take a tenth of a schedule's time: the same for
 * all that modules of the product do with it. Listeners are told in the order in which they came.
 */
type Listener = () => void;

const withoutReason = new DOMException("This operation was aborted", "AbortError");

class SimulatedSignal {
  #isAborted = false;
  #reason: unknown;
  readonly #listeners = new Set<Listener>();

  static abort(reason: unknown = withoutReason): SimulatedSignal {
    const signal = new SimulatedSignal();
    signal.fire(reason);
    return signal;
  }

  static any(signals: Iterable<SimulatedSignal>): SimulatedSignal {
    const all = [...signals];
    const aborted = all.find((each) => each.aborted);
    if (aborted !== undefined) return SimulatedSignal.abort(aborted.reason);
    const signal = new SimulatedSignal();
    for (const each of all) each.#listeners.add(() => signal.fire(each.reason));
    return signal;
  }

  get aborted(): boolean {
    return this.#isAborted;
  }
  get reason(): unknown {
    return this.#reason;
  }

  addEventListener(_type: "abort", listener: Listener): void {
    this.#listeners.add(listener);
  }

  removeEventListener(_type: "abort", listener: Listener): void {
    this.#listeners.delete(listener);
  }

  throwIfAborted(): void {
    if (this.#isAborted) throw this.#reason;
  }

  /** What only its controller does. */
  fire(reason: unknown): void {
    if (this.#isAborted) return;
    this.#isAborted = true;
    this.#reason = reason;
    const listeners = [...this.#listeners];
    this.#listeners.clear();
    for (const listener of listeners) listener();
  }
}

class SimulatedController {
  readonly signal = new SimulatedSignal();

  abort(reason: unknown = withoutReason): void {
    this.signal.fire(reason);
  }
}

export { SimulatedController as AbortController, SimulatedSignal as AbortSignal };
