import { TensorBusError } from "../../../src/errors.ts";

/** Something that reads what others wrote. */
export interface Target {
  /** Inputs that are in order, made by the code itself; those that were found to be telling are files of `corpus/`. */
  seeds(): Promise<readonly Uint8Array[]> | readonly Uint8Array[];
  /** Throws if the input did anything but be taken, or be refused by a typed error. */
  run(input: Buffer): Promise<void> | void;
  /** Gives back what it holds. */
  close?(): Promise<void>;
}

/** Runs it; a typed error of ours is a refusal, and in order. */
export async function refusing(run: () => unknown): Promise<void> {
  try {
    await run();
  } catch (error) {
    if (!(error instanceof TensorBusError)) throw error;
  }
}

/** What does not end in its time hangs. */
export async function inTime<T>(milliseconds: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} takes more than ${milliseconds} ms`)), milliseconds);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
