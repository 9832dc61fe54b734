/** What the chaos runner and the host processes of its ranks say to each other, and the tensors that they move. */

export const trainers = [0, 1];
export const engines = [2, 3];
export const ranks = [...trainers, ...engines];

/** Of the whole tensors: trainers hold halves of the rows, engines halves of the columns. */
export const shapes = [
  [64, 32],
  [128, 16],
  [6, 10],
] as const;

/** An element is `step * stepUnit + tensor * 10,000 + its index in the whole tensor`. */
export const stepUnit = 100_000;

export type Request = { readonly id: number } & (
  | { readonly act: "register"; readonly timeoutMs: number }
  | { readonly act: "call"; readonly step: number; readonly timeoutMs: number }
  | { readonly act: "end" }
);

export interface Outcome {
  readonly id: number;
  /** `none`, the code of a `TensorBusError`, `untyped …`, or `ended` where the process did. */
  readonly code: string;
  readonly message?: string;
  readonly ms: number;
  /** The steps that the rank's elements are of; -1 stands for an element of none. */
  readonly steps: readonly number[];
}
