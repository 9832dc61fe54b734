import type { DeviceMesh, DType, Placement, StridedShardReading } from "../../layout/index.ts";
import type { ModelTensor } from "../tensor.ts";
import type { PartRule } from "./rule.ts";
import type { Deal } from "./slots.ts";

/** A mesh and placements, shared by all parts that have them. */
export interface PartLayout {
  readonly id: number;
  readonly meshName: string;
  readonly mesh: DeviceMesh;
  readonly placements: readonly Placement[];
  readonly stridedShard: StridedShardReading | undefined;
}

/** What parts that lie alike have in common, whatever their tensor: they share one object. */
export interface PartKind {
  readonly id: number;
  readonly rule: PartRule;
  /** The number of the rule, and the layout that it names for tensors of these dimensions. */
  readonly ruleNumber: number;
  readonly layout: PartLayout;
  readonly shape: readonly number[];
  /** The range of the tensor. */
  readonly start: readonly number[];
  readonly length: readonly number[];
  readonly order: number;
  /** The dimension of the tensor that runs over slots, -1 without. */
  readonly slotAxis: number;
  /** For each axis of the parameter the tensor's, a stacked axis of slots left out; -1 for one of extent 1. */
  readonly axes: readonly number[];
  /** The one coordinate of a mesh dimension that holds it if slots do not say. */
  readonly on: { readonly dim: number; readonly coordinate: number } | undefined;
  /** The one coordinate of a mesh dimension that has its parameter. */
  readonly only: { readonly dim: number; readonly coordinate: number } | undefined;
}

/** One tensor of the checkpoint, or a range of it, in one parameter. */
export interface Part {
  readonly tensor: number;
  readonly parameter: number;
  readonly kind: PartKind;
  /** The first of its slots, and the thing that the first is: 0 without slots. */
  readonly slot: number;
}

export interface Parameter {
  readonly name: string;
  readonly aliases: readonly string[];
  readonly dtype: DType;
  /** True if the type is that of the model, or fixed. */
  readonly fixedDtype: boolean;
  /** The mesh of its first part: its ranks have the parameter. */
  readonly mesh: DeviceMesh;
  readonly deal: Deal | undefined;
  /** The mesh dimension over which slots are dealt. */
  readonly dealDim: number | undefined;
  readonly extent: number | undefined;
  readonly constant: number | undefined;
  /** The one coordinate of a mesh dimension that has it. */
  readonly only: { readonly dim: number; readonly coordinate: number } | undefined;
  /** Its parts, as numbers. */
  readonly parts: number[];
}

/** A side whose rules were applied to the tensors of a model. */
export interface PartedSide {
  readonly ranks: readonly number[];
  readonly tensors: readonly ModelTensor[];
  readonly parts: readonly Part[];
  readonly parameters: readonly Parameter[];
  /** Tensors that the side does without, and why. */
  readonly dropped: ReadonlyMap<string, string>;
}
