/**
 * The threads of a mover. Each opens the files for itself and works on the items that it is given, with calls that block only
 * it; the main thread hands out items, notes what is done, and shows progress.
 */
import { setImmediate } from "node:timers/promises";
import { parentPort, Worker, workerData } from "node:worker_threads";
import { type ErrorCode, isErrorCode, TensorBusError } from "../errors.ts";
import type { Cut } from "./cut.ts";
import type { MovedTensor } from "./kinds.ts";
import type { OpenedFile } from "./opened-file.ts";
import { closeFiles, openFiles } from "./output.ts";
import { Buffers, checkItem, type ItemChecksums, scatterItem, sumStretch } from "./scatter.ts";
import { Reader, Writer } from "./windows.ts";

/** What all threads know of the work. */
export interface WorkFiles {
  readonly sources: readonly string[];
  readonly targets: readonly string[];
}

/** An item to move, or one to compare with what it wrote; with what has to be known of its tensor. */
export interface ItemTask {
  readonly item: number;
  readonly tensor: MovedTensor;
  readonly cut: Cut;
  readonly checksums?: ItemChecksums;
}

/** Bytes of a target to sum up, as they are. */
export interface SumTask {
  readonly file: number;
  readonly at: number;
  readonly bytes: number;
}

/** Tasks that are handed out together: small ones cost as much to hand out as large ones. */
export type Order = readonly (ItemTask | SumTask)[];

export interface Done {
  /** The checksums of each task, in their order: for an item those of its parts, for a stretch its own. */
  readonly checksums: readonly ItemChecksums[];
  /** That were compared. */
  readonly bytes: number;
}

/** Does orders, wherever it lives: one after the other, and several may wait. */
export interface Hand {
  do(order: Order): Promise<Done>;
  close(): Promise<void>;
}

/** A hand in this thread, which has time for others between two orders. */
export function localHand(work: WorkFiles): Hand {
  const bench = new Bench(work);
  return {
    do: async (order) => {
      await setImmediate();
      return bench.do(order);
    },
    close: async () => bench.close(),
  };
}

/** A hand in a thread of its own: `script` runs `runHand` in it when its first argument is `command`. */
export function threadHand(work: WorkFiles, script: string, command: string): Hand {
  const worker = new Worker(script, {
    argv: [command],
    workerData: work,
    stdout: false,
    stderr: false,
    // What it is told of an order is small, and gone with the next.
    resourceLimits: { maxYoungGenerationSizeMb: 8 },
  });
  const waiting: { resolve: (done: Done) => void; reject: (error: unknown) => void }[] = [];
  /** Why the thread does nothing any more. */
  let end: { readonly error: unknown } | undefined;
  const finish = (error: unknown) => {
    end ??= { error };
    for (const { reject } of waiting.splice(0)) reject(end.error);
  };
  worker.on("message", (message: Done | Failure) => {
    const first = waiting.shift();
    if ("code" in message) first?.reject(errorOf(message));
    else first?.resolve(message);
  });
  worker.on("error", finish);
  // An answer that cannot be read would leave its order, and all behind it, waiting for ever.
  worker.on("messageerror", finish);
  worker.on("exit", (code) =>
    finish(
      new TensorBusError("TB_SYSTEM", `a thread of the mover ended with ${code}`, { details: { code } }),
    ),
  );
  return {
    do: (order) =>
      new Promise((resolve, reject) => {
        if (end !== undefined) return reject(end.error);
        waiting.push({ resolve, reject });
        worker.postMessage(order);
      }),
    close: async () => {
      await worker.terminate();
    },
  };
}

/** A thread's own part; settles once its mover has ended it. */
export function runHand(): Promise<void> {
  const port = parentPort;
  if (port === null)
    throw new TensorBusError(
      "TB_SPEC",
      "this script is started by `tensorbus reshard`; do not run it directly",
    );
  let bench: Bench | undefined;
  port.on("message", (order: Order) => {
    try {
      // Made by the first order, which hears why the files could not be opened.
      bench ??= new Bench(workerData as WorkFiles);
      port.postMessage(bench.do(order));
    } catch (error) {
      port.postMessage(failureOf(error));
    }
  });
  port.on("messageerror", (error) => port.postMessage(failureOf(error)));
  return new Promise(() => {});
}

/** The files and buffers of one thread. */
class Bench {
  readonly #sources: readonly OpenedFile[];
  readonly #targets: readonly OpenedFile[];
  readonly #reader: Reader;
  readonly #writer: Writer;
  readonly #buffers = new Buffers();

  constructor({ sources, targets }: WorkFiles) {
    this.#sources = openFiles(sources, "r");
    try {
      this.#targets = openFiles(targets, "r+");
    } catch (error) {
      closeFiles(this.#sources);
      throw error;
    }
    this.#reader = new Reader(this.#sources);
    this.#writer = new Writer(this.#targets);
  }

  do(order: Order): Done {
    let bytes = 0;
    this.#reader.forget();
    const checksums = order.map((task): ItemChecksums => {
      if ("file" in task) return [sumStretch(this.#targets[task.file]!, task, 0, this.#buffers)];
      const { tensor, cut, checksums: made } = task;
      if (made === undefined) return scatterItem(tensor, cut, this.#reader, this.#writer, this.#buffers);
      bytes += checkItem(tensor, cut, made, this.#targets, this.#buffers);
      return made;
    });
    this.#writer.flush();
    return { checksums, bytes };
  }

  close(): void {
    closeFiles([...this.#sources, ...this.#targets]);
  }
}

interface Failure {
  readonly code: ErrorCode;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

function failureOf(error: unknown): Failure {
  if (error instanceof TensorBusError)
    return { code: error.code, message: error.message, details: error.details };
  return { code: "TB_SYSTEM", message: error instanceof Error ? error.message : String(error), details: {} };
}

function errorOf({ code, message, details }: Failure): TensorBusError {
  return new TensorBusError(isErrorCode(code) ? code : "TB_SYSTEM", message, { details: { ...details } });
}
