import type { DType } from "../../layout/index.ts";
import { contiguousStrides } from "../../layout/strides.ts";
import type { JoinedSides, PlannedPart } from "./join.ts";
import type { LocalLayouts } from "./local.ts";
import type { PartedSide } from "./parted.ts";

/** A planned tensor's local part as a view of a parameter's memory: nothing is copied to receive into it. */
export interface PartView {
  /** The planned tensor: its index in the plan's input, and its name. */
  readonly index: number;
  readonly tensor: string;
  /** The parameter, its type and its shape on this rank: contiguous and row-major. */
  readonly parameter: string;
  readonly dtype: DType;
  readonly parameterShape: readonly number[];
  /** The local tensor, in the order of the checkpoint's dimensions; offset and strides in elements of the parameter. */
  readonly shape: readonly number[];
  readonly offset: number;
  readonly strides: readonly number[];
}

/** The views of all planned tensors of which a rank of one side holds something. */
export function* partViews(
  joined: JoinedSides,
  layouts: LocalLayouts,
  sideName: "source" | "target",
  rank: number,
): Generator<PartView> {
  const ordinals = ordinalsOf(layouts.side);
  for (const [index, planned] of joined.parts.entries()) {
    const view = viewOf(layouts, ordinals, planned, planned[sideName], rank);
    if (view !== undefined) yield { index, tensor: planned.name, ...view };
  }
}

/** The view of one planned tensor, by its index; `undefined` if the rank holds nothing of it. */
export function partView(
  joined: JoinedSides,
  layouts: LocalLayouts,
  sideName: "source" | "target",
  index: number,
  rank: number,
): PartView | undefined {
  const planned = joined.parts[index]!;
  const view = viewOf(layouts, ordinalsOf(layouts.side), planned, planned[sideName], rank);
  return view === undefined ? undefined : { index, tensor: planned.name, ...view };
}

/** Which part of its parameter each part is. */
function ordinalsOf({ parts, parameters }: PartedSide): Uint32Array {
  const ordinals = new Uint32Array(parts.length);
  for (const parameter of parameters) {
    for (const [ordinal, part] of parameter.parts.entries()) ordinals[part] = ordinal;
  }
  return ordinals;
}

function viewOf(
  layouts: LocalLayouts,
  ordinals: Uint32Array,
  { start, length }: PlannedPart,
  number: number,
  rank: number,
): Omit<PartView, "index" | "tensor"> | undefined {
  const { parts, parameters } = layouts.side;
  const part = parts[number]!;
  if (!layouts.has(part.parameter, rank)) return undefined;
  const local = layouts.local(part.parameter, rank);
  const origin = local.origins.get(ordinals[number]!);
  if (origin === undefined) return undefined;
  const { kind } = part;
  const held = layouts.holding(kind, rank).runs.map((runs, dim) => {
    // Counted from the part's own range on: what comes before the wanted one, and how much of that is there.
    const from = start[dim]! - kind.start[dim]!;
    const below = (end: number): number =>
      runs.reduce((sum, run) => sum + Math.max(0, Math.min(run.start + run.length, end) - run.start), 0);
    return { before: below(from), count: below(from + length[dim]!) - below(from) };
  });
  if (held.some(({ count }) => count === 0)) return undefined;
  const strides = contiguousStrides(local.shape);
  const axes =
    part.kind.slotAxis < 0
      ? kind.axes
      : [kind.slotAxis, ...kind.axes.filter((axis) => axis !== kind.slotAxis)];
  const stacked = local.shape.length - axes.length;
  const strideOf = held.map((_, dim) => strides[axes.indexOf(dim) + stacked]!);
  const base = origin.reduce((sum, at, axis) => sum + at * strides[axis]!, 0);
  const { name, dtype } = parameters[part.parameter]!;
  return {
    parameter: name,
    dtype,
    parameterShape: local.shape,
    shape: held.map(({ count }) => count),
    offset: held.reduce((sum, { before }, dim) => sum + before * strideOf[dim]!, base),
    strides: strideOf,
  };
}
