import type { DeviceMesh, DType, Placement, StridedShardReading } from "../../layout/index.ts";

/** How things that stand in slots (experts) are dealt to the coordinates of a mesh dimension. */
export interface SlotRule {
  /** The number of a tensor's thing, `"{e}"`; or the dimension of the tensor that runs over the things. */
  readonly index?: "{e}";
  readonly axis?: number;
  /** How many things there are. */
  readonly of: number;
  /** Further slots, which hold the first things again. */
  readonly copies?: number;
  /** The mesh dimension over which slots are dealt; every coordinate has all of them unless given. */
  readonly dim?: number;
  /** `linear`: runs of slots, the first coordinates one more if they are uneven; `round_robin`: one by one. */
  readonly deal?: "linear" | "round_robin";
}

/** Says where the tensors of a template lie in the parameters of a side. Data: specs and presets say the same. */
export interface PartRule {
  /** A template of tensors' names; the first rule that matches takes a tensor. */
  readonly match: string;
  /** Later rules may take the tensor too: it lies in several parameters. */
  readonly also?: boolean;
  /** Only layers from the first number up to, not including, the second. */
  readonly layers?: readonly [number, number];
  /** The side does without these tensors; why. */
  readonly drop?: string;
  /** The parameter, a template; further names of it. */
  readonly into?: string;
  readonly aliases?: readonly string[];
  /** One of the side's meshes, and a placement of each of its dimensions. */
  readonly mesh?: string;
  readonly placements?: readonly Placement[];
  readonly stridedShard?: StridedShardReading;
  /** The place among the parts of a slot, which follow each other along the first dimension. */
  readonly order?: number;
  /** Only this range of one dimension of the tensor. */
  readonly slice?: { readonly dim: number; readonly start: number; readonly length: number };
  readonly slot?: SlotRule;
  /** For each axis of the parameter the axis of the tensor; the same unless given. */
  readonly axes?: readonly number[];
  /** How long a parameter is in that first dimension if it is longer than its parts: the rest is zero. */
  readonly extent?: number;
  /** Only this coordinate of a mesh dimension holds it; on others its place is zero. */
  readonly on?: { readonly dim: number; readonly coordinate: number };
  /**
   * `{e}` is one of `of` things that are cut over mesh dimension `dim` as a `Shard` cuts them: only the coordinate that owns it
   * has the parameter.
   */
  readonly select?: { readonly dim: number; readonly index: "{e}"; readonly of: number };
  /** Rows of the first dimension that must not be parted: a head. */
  readonly unit?: number;
  /** The type of the parameter, if it is not the tensor's. */
  readonly dtype?: DType;
  /** A parameter of one number without parts, beside each tensor that the template matches. */
  readonly constant?: number;
}

/** One side in parts: its ranks, its meshes by name, its rules. */
export interface SideRules {
  readonly ranks: readonly number[];
  readonly meshes: Readonly<Record<string, DeviceMesh>>;
  readonly parameters: readonly PartRule[];
}
