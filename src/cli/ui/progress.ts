import { SingleBar } from "cli-progress";
import { formatBytes, formatCount, formatDuration } from "./format.ts";
import type { Output } from "./output.ts";

interface ProgressOptions {
  readonly label: string;
  /** What is counted up to; 0 is complete at once. */
  readonly total: number;
  readonly unit: "bytes" | "items";
  /** Lines if there is no terminal, one for each such part of the total; default 10. */
  readonly lines?: number;
  /** The bar goes away once it is stopped. */
  readonly transient?: boolean;
}

/** A rate over less than this says nothing. */
const meaningfulSeconds = 0.1;

/** How far something is: a bar on a terminal, elsewhere a line at every part. */
export interface Progress {
  /** What is done so far, of the total. Never goes back. */
  update(done: number): void;
  /** Ends it, with what was done. */
  stop(): void;
}

/** Shows the progress on an output, which is stderr if stdout carries results. */
export function startProgress(output: Output, options: ProgressOptions): Progress {
  return output.isTerminal ? startBar(output, options) : startLines(output, options);
}

function startBar(output: Output, { label, total, unit, transient = false }: ProgressOptions): Progress {
  const started = performance.now();
  const bar = new SingleBar({
    stream: output.stream as NodeJS.WritableStream,
    format: (settings, { progress, value }) => {
      const width = settings.barsize ?? 30;
      const full = Math.round(progress * width);
      const drawn = output.colors.cyan("█".repeat(full)) + output.colors.dim("░".repeat(width - full));
      return output.render(`  ${label} ${drawn} ${describe(value, total, unit, started)}`);
    },
    barsize: 30,
    hideCursor: true,
    clearOnComplete: transient,
    fps: 10,
    linewrap: false,
  });
  bar.start(total, 0);
  return {
    update: (done) => bar.update(done),
    stop: () => bar.stop(),
  };
}

function startLines(output: Output, { label, total, unit, lines = 10 }: ProgressOptions): Progress {
  const started = performance.now();
  let parts = 0;
  let shown = false;
  const show = (done: number): void => {
    shown = true;
    output.stream.write(output.render(`  ${label} ${describe(done, total, unit, started)}\n`));
  };
  return {
    update(done) {
      const reached = total === 0 ? lines : Math.floor((done / total) * lines);
      if (reached <= parts) return;
      parts = reached;
      show(done);
    },
    stop() {
      if (!shown && total === 0) show(0);
    },
  };
}

/** ` 40%  1.20 GiB of 3.00 GiB  800 MiB/s  1.54 s`. */
function describe(done: number, total: number, unit: ProgressOptions["unit"], started: number): string {
  const seconds = (performance.now() - started) / 1000;
  const format = unit === "bytes" ? formatBytes : formatCount;
  const percent = total === 0 ? 100 : Math.floor((done / total) * 100);
  const rate =
    unit === "bytes" && seconds >= meaningfulSeconds ? `  ${formatBytes(Math.round(done / seconds))}/s` : "";
  return `${String(percent).padStart(3)}%  ${format(done)} of ${format(total)}${rate}  ${formatDuration(seconds)}`;
}
