import type { Writable } from "node:stream";
import { visible } from "../../visible.ts";
import { type Colors, createColors, resolveColors } from "./colors.ts";

/** What a command writes to: a terminal or not. */
export interface OutputStream extends Writable {
  readonly isTTY?: boolean;
  readonly columns?: number;
}

/** The reader went away (`| head`): nothing is wrong, and nothing more is to be written. */
export class OutputClosed extends Error {}

/** One output stream, with its colours, back-pressure, and a quiet end when its reader goes away. */
export class Output {
  readonly stream: OutputStream;
  readonly colors: Colors;
  #failure: Error | undefined;

  constructor(stream: OutputStream, environment: NodeJS.ProcessEnv) {
    this.stream = stream;
    this.colors = createColors(this.isTerminal && !environment["NO_COLOR"] && environment["TERM"] !== "dumb");
    stream.on("error", (error: NodeJS.ErrnoException) => {
      this.#failure ??= error.code === "EPIPE" ? new OutputClosed() : error;
    });
  }

  get isTerminal(): boolean {
    return this.stream.isTTY === true;
  }

  /** Columns of the terminal; undefined if it is none. */
  get columns(): number | undefined {
    return this.isTerminal ? this.stream.columns : undefined;
  }

  /** What tables and fields are to fit into: the terminal, or the 80 columns that a log shows. */
  get width(): number {
    return Math.max(this.columns ?? 80, 40);
  }

  /** Writes a text; the promise ends when the stream takes more. `OutputClosed` once the reader is gone. */
  async write(text: string): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.stream.write(this.render(text))) return;
    await this.#settled();
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** The text as it is written: our colours, and nothing else that a terminal would obey. */
  render(text: string): string {
    return resolveColors(text, visible);
  }

  /** Until the stream takes more, or ends. */
  #settled(): Promise<void> {
    const events = ["drain", "close", "error"];
    return new Promise((resolve) => {
      const done = (): void => {
        for (const event of events) this.stream.off(event, done);
        resolve();
      };
      for (const event of events) this.stream.on(event, done);
    });
  }

  async line(text = ""): Promise<void> {
    await this.write(`${text}\n`);
  }
}
