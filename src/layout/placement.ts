import { TensorBusError } from "../errors.ts";

/** The operators of `Partial`, by PyTorch's names, in the order of their numbers. */
export const partialOps = ["sum", "avg", "product", "max", "min"] as const;
export type PartialOp = (typeof partialOps)[number];

/**
 * Cuts tensor dimension `dim` among the ranks of a mesh dimension: as `torch.chunk` does, or as `sizes` says. Negative:
 * from the end.
 */
export interface ShardPlacement {
  readonly kind: "shard";
  readonly dim: number;
  /** What each coordinate of the mesh dimension gets, zero allowed; the sum is the extent that is cut. */
  readonly sizes?: readonly number[];
}
/**
 * PyTorch's `_StridedShard`: the dimension counts as cut into `splitFactor` pieces already, and each is cut again.
 * How it reads is the layout's `stridedShard`.
 */
interface StridedShardPlacement {
  readonly kind: "stridedShard";
  readonly dim: number;
  readonly splitFactor: number;
}
/** Every rank of the mesh dimension holds the same. */
interface ReplicatePlacement {
  readonly kind: "replicate";
}
/** Every rank of the mesh dimension holds a contribution; the value is their reduction. Sources only. */
interface PartialPlacement {
  readonly kind: "partial";
  readonly op: PartialOp;
}
export type Placement = ShardPlacement | StridedShardPlacement | ReplicatePlacement | PartialPlacement;

export interface ShardOptions {
  /** `ShardPlacement.sizes`; without them the cut is that of `torch.chunk`. */
  readonly sizes?: readonly number[];
}

export function Shard(dim: number, { sizes }: ShardOptions = {}): ShardPlacement {
  const checked = integer(dim, "dim");
  return sizes === undefined
    ? { kind: "shard", dim: checked }
    : { kind: "shard", dim: checked, sizes: shardSizes(sizes) };
}

/** A copy of sizes to cut by. `TB_PLACEMENT` unless they are whole numbers from 0 on whose sum is exact. */
export function shardSizes(sizes: readonly number[], place = "sizes"): readonly number[] {
  const no = (why: string) =>
    new TensorBusError("TB_PLACEMENT", `${place}: ${why}`, { details: { place, sizes } });
  if (!Array.isArray(sizes) || sizes.length === 0)
    throw no("sizes must be a list with one size for each coordinate");
  for (const size of sizes) {
    if (!Number.isSafeInteger(size) || size < 0)
      throw no(`a size must be a whole number of at least 0, not ${String(size)}`);
  }
  if (!Number.isSafeInteger(sumOf(sizes))) throw no("the sum of the sizes is more than 2^53");
  return Object.freeze([...sizes]);
}

export function sumOf(sizes: readonly number[]): number {
  return sizes.reduce((sum, size) => sum + size, 0);
}
export function StridedShard(dim: number, splitFactor: number): StridedShardPlacement {
  return { kind: "stridedShard", dim: integer(dim, "dim"), splitFactor: integer(splitFactor, "splitFactor") };
}
export function Replicate(): ReplicatePlacement {
  return { kind: "replicate" };
}
export function Partial(op: PartialOp = "sum"): PartialPlacement {
  if (!partialOps.includes(op)) {
    throw new TensorBusError("TB_PARTIAL_OP", `unknown Partial operator ${JSON.stringify(op)}`, {
      details: { op, known: partialOps },
    });
  }
  return { kind: "partial", op };
}

/**
 * Reads the short text form: `S(0)`, `S(0;3,3,2,2)` with sizes, `SS(0,2)`, `R`, `P(sum)`, and PyTorch's `Shard(dim=0)`,
 * `_StridedShard(dim=0, sf=2)`, `Replicate()`, `Partial(sum)`. `TB_PLACEMENT` if it is none of them.
 */
export function parsePlacement(text: string): Placement {
  const match = /^\s*(\w+)\s*(?:\(([^()]*)\))?\s*$/.exec(text);
  const [head = "", ...lists] = (match?.[2] ?? "").split(";");
  const args = head.split(",").map((arg) => arg.replace(/^\s*\w+\s*=/, "").trim());
  const sizes = lists[0]?.split(",").map((size) => size.trim());
  const hasArgs = match?.[2] !== undefined && match[2].trim() !== "";
  switch (match?.[1]) {
    case "R":
    case "Replicate":
      if (!hasArgs) return Replicate();
      break;
    case "S":
    case "Shard":
      if (args.length !== 1 || !isInteger(args[0]!) || lists.length > 1) break;
      if (sizes === undefined) return Shard(Number(args[0]));
      if (sizes.every(isInteger)) return Shard(Number(args[0]), { sizes: sizes.map(Number) });
      break;
    case "SS":
    case "StridedShard":
    case "_StridedShard":
      if (lists.length > 0) break;
      if (args.length === 2 && args.every(isInteger)) return StridedShard(Number(args[0]), Number(args[1]));
      break;
    case "P":
    case "Partial":
      if (!hasArgs) return Partial("sum");
      if (args.length === 1 && lists.length === 0) return Partial(args[0] as PartialOp);
      break;
  }
  throw new TensorBusError(
    "TB_PLACEMENT",
    `not a placement: ${JSON.stringify(text)}; there are R, S(dim), S(dim;sizes), SS(dim,splitFactor) and P(op)`,
    { details: { placement: text } },
  );
}

/** The short text form, the inverse of `parsePlacement`. */
export function formatPlacement(placement: Placement): string {
  switch (placement.kind) {
    case "shard":
      return placement.sizes === undefined
        ? `S(${placement.dim})`
        : `S(${placement.dim};${placement.sizes.join()})`;
    case "stridedShard":
      return `SS(${placement.dim},${placement.splitFactor})`;
    case "replicate":
      return "R";
    case "partial":
      return `P(${placement.op})`;
  }
}

function isInteger(text: string): boolean {
  return /^-?\d+$/.test(text) && Number.isSafeInteger(Number(text));
}

function integer(value: number, name: string): number {
  if (!Number.isSafeInteger(value)) {
    throw new TensorBusError("TB_PLACEMENT", `${name} must be an integer, got ${value}`, {
      details: { [name]: value },
    });
  }
  return value;
}
