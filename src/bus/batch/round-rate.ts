/** How long the next round of a direction will take on this rank, by how long those before took. */
import type { Execution } from "../../exec/executor.ts";
import type { RoundReport } from "../../transport/transport.ts";

/** What the last round counts for, beside all before it. */
const weight = 0.3;

export class RoundRate {
  readonly #execution: Execution;
  readonly #planned: number | undefined;
  #secondsPerByte: number | undefined;

  /** `planned`: the seconds that the plan promises, if it knows the links. */
  constructor(execution: Execution, planned: number | undefined) {
    this.#execution = execution;
    this.#planned = planned;
  }

  /** Seconds of the next round; `undefined` if nothing is known. */
  predict(): number | undefined {
    return this.#secondsPerByte === undefined ? this.#planned : this.#secondsPerByte * this.#bytes();
  }

  learn({ seconds }: RoundReport): void {
    const bytes = this.#bytes();
    if (bytes === 0) return;
    const last = this.#secondsPerByte ?? seconds / bytes;
    this.#secondsPerByte = (1 - weight) * last + (weight * seconds) / bytes;
  }

  #bytes(): number {
    const { bytesSent, bytesReceived, bytesCopied } = this.#execution.stats;
    return Math.max(Number(bytesSent), Number(bytesReceived), Number(bytesCopied));
  }
}
