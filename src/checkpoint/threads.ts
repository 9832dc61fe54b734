/**
 * The threads of a mover. Each opens the files for itself and works on the items that it is given, with calls that block only
 * it; the main thread hands out items, notes what is done, and shows progress.
 */
import { parentPort, Worker, workerData } from "node:worker_threads";
import { type ErrorCode, errorCodes, TensorBusError } from "../errors.ts";
import type { OpenedFile } from "./opened-file.ts";
import { closeFiles, openFiles } from "./output.ts";
import { Buffers, checkItem, type ItemChecksums, scatterItem } from "./scatter.ts";
import type { MovedTensor, WorkItem } from "./work.ts";

/** What all threads know of the work. */
export interface WorkFiles {
  readonly tensors: readonly MovedTensor[];
  readonly items: readonly WorkItem[];
  readonly sources: readonly string[];
  readonly targets: readonly string[];
}

/** An item to move, or one to compare with what it wrote. */
export type Order = { readonly item: number; readonly checksums?: ItemChecksums };

export interface Done {
  readonly item: number;
  readonly checksums: ItemChecksums;
  /** That were compared. */
  readonly bytes: number;
}

/** Does items, wherever it lives. */
export interface Hand {
  do(order: Order): Promise<Done>;
  close(): Promise<void>;
}

/** A hand in this thread: for tests, and where there is nothing to start a thread from. */
export function localHand(work: WorkFiles): Hand {
  const bench = new Bench(work);
  return {
    do: async (order) => bench.do(order),
    close: async () => bench.close(),
  };
}

/** A hand in a thread of its own: `script` runs `runHand` in it when its first argument is `command`. */
export function threadHand(work: WorkFiles, script: string, command: string): Hand {
  const worker = new Worker(script, { argv: [command], workerData: work, stdout: false, stderr: false });
  let waiting: { resolve: (done: Done) => void; reject: (error: unknown) => void } | undefined;
  /** Why the thread does nothing any more. */
  let end: { readonly error: unknown } | undefined;
  const fail = (error: unknown) => {
    waiting?.reject(error);
    waiting = undefined;
  };
  const finish = (error: unknown) => {
    end ??= { error };
    fail(end.error);
  };
  worker.on("message", (message: Done | Failure) => {
    if ("code" in message) return fail(errorOf(message));
    waiting?.resolve(message);
    waiting = undefined;
  });
  worker.on("error", finish);
  worker.on("exit", (code) =>
    finish(
      new TensorBusError("TB_SYSTEM", `a thread of the mover ended with ${code}`, { details: { code } }),
    ),
  );
  return {
    do: (order) =>
      new Promise((resolve, reject) => {
        if (end !== undefined) return reject(end.error);
        waiting = { resolve, reject };
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
  if (port === null) throw new TensorBusError("TB_SPEC", "this command is a thread of `tensorbus reshard`");
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
  return new Promise(() => {});
}

/** The files and buffers of one thread. */
class Bench {
  readonly #work: WorkFiles;
  readonly #sources: readonly OpenedFile[];
  readonly #targets: readonly OpenedFile[];
  readonly #buffers = new Buffers();

  constructor(work: WorkFiles) {
    this.#work = work;
    this.#sources = openFiles(work.sources, "r");
    try {
      this.#targets = openFiles(work.targets, "r+");
    } catch (error) {
      closeFiles(this.#sources);
      throw error;
    }
  }

  do({ item: number, checksums }: Order): Done {
    const item = this.#work.items[number]!;
    const tensor = this.#work.tensors[item.tensor]!;
    if (checksums === undefined) {
      const made = scatterItem(tensor, item, this.#sources, this.#targets, this.#buffers);
      return { item: number, checksums: made, bytes: 0 };
    }
    const bytes = checkItem(tensor, item, checksums, this.#targets, this.#buffers);
    return { item: number, checksums, bytes };
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
  return new TensorBusError(code in errorCodes ? code : "TB_SYSTEM", message, { details: { ...details } });
}
