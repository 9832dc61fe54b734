/** What the host processes of a cluster's ranks are told to do and say of it, and the tensors that they move. */

/** The ranks of both sides of the pair. */
export interface Sides {
  readonly trainers: readonly number[];
  readonly engines: readonly number[];
}

/** Four ranks: each trainer has something for each engine. */
export const usualSides: Sides = { trainers: [0, 1], engines: [2, 3] };

/** Of the whole tensors: trainers hold halves of the rows, engines halves of the columns. */
export const shapes = [
  [64, 32],
  [128, 16],
  [6, 10],
] as const;

/** An element is `step * stepUnit + tensor * 10,000 + its index in the whole tensor`. */
export const stepUnit = 100_000;

export type Request = { readonly id: number } & (
  | { readonly act: "register"; readonly timeoutMs: number; readonly commit?: "direct" | "staged" }
  /** One call of `transfer`, which names the step as its version unless told not to. */
  | {
      readonly act: "call";
      readonly step: number;
      readonly timeoutMs: number;
      readonly unversioned?: boolean;
    }
  /** Asks for the transfer signal until that fails. */
  | { readonly act: "poll" }
  | { readonly act: "close" }
  | { readonly act: "end" }
);

export interface Outcome {
  readonly id: number;
  /** `none`, the code of a `TensorBusError`, `untyped …`, or `ended` where the process did. */
  readonly code: string;
  readonly message?: string;
  /** `details.rank` and `details.round`. */
  readonly rank?: number;
  readonly round?: number;
  readonly ms: number;
  /** The steps that the rank's elements are of; -1 stands for an element of none. */
  readonly steps: readonly number[];
}
