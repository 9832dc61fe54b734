/**
 * The heap of this process, kept small: V8 lets it grow to four times what is in use before it looks for garbage, and the
 * memory of a move is promised whatever the number of tensors.
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** What the heap may grow by before its garbage is collected. */
const growthBytes = 128 * 2 ** 20;

export class Heap {
  readonly #collect: () => void;
  #least = 0;

  constructor() {
    setFlagsFromString("--expose-gc");
    this.#collect = runInNewContext("gc") as () => void;
  }

  /** Collects garbage if there may be much. */
  tidy(): void {
    if (process.memoryUsage().heapUsed < this.#least + growthBytes) return;
    this.#collect();
    this.#least = process.memoryUsage().heapUsed;
  }
}
