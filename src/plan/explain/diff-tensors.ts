import {
  bytesOf,
  type DeviceMesh,
  type DType,
  formatPlacement,
  type StridedShardReading,
} from "../../layout/index.ts";
import type { PlanInput, SelectInput } from "../input/types.ts";
import type { Plan } from "../plan.ts";
import type { PatternStats } from "../planner/stats.ts";

/** What a value is in the first plan and in the second. */
export interface Change<T> {
  readonly before: T;
  readonly after: T;
}

/** How a tensor lies on one side. */
export interface SideForm {
  readonly placements: readonly string[];
  readonly mesh: DeviceMesh;
  readonly stridedShard: StridedShardReading | undefined;
  readonly select: SelectInput | undefined;
}

/** The description of a tensor in a plan. */
export interface TensorForm {
  readonly pair: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly targetDtype: DType;
  readonly source: SideForm;
  readonly target: SideForm;
  readonly routing: Pick<PatternStats, "strategy" | "groups" | "reason">;
}

const sideFields = ["placements", "mesh", "stridedShard", "select"] as const;
const formFields = ["shape", "dtype", "targetDtype", "routing"] as const;
export type TensorField =
  | "pair"
  | (typeof formFields)[number]
  | `${"source" | "target"}.${(typeof sideFields)[number]}`;

/** Tensors that changed in the same fields from one pattern to another, or came, or went. */
export interface TensorGroup {
  readonly change: "added" | "removed" | "changed";
  readonly count: number;
  /** The name of the first of them, and what it is in either plan. */
  readonly example: string;
  readonly before: TensorForm | undefined;
  readonly after: TensorForm | undefined;
  readonly fields: readonly TensorField[];
  /** The bytes of their elements on the target, once for each rank that gets them. */
  readonly deliveredBytes: Change<bigint>;
}

export interface TensorChanges {
  /** The largest first. */
  readonly tensors: readonly TensorGroup[];
  readonly unchangedTensors: number;
  /** True if those that are in both plans stand in another order. */
  readonly reordered: boolean;
}

/** A plan and its tensors by name; if a name stands several times, by its turn too. */
interface Side {
  readonly plan: Plan;
  readonly input: PlanInput;
  readonly patterns: readonly PatternStats[];
  readonly places: ReadonlyMap<string, number>;
}

/** Compares the tensors of two plans by their names. */
export function diffTensors(before: Plan, after: Plan): TensorChanges {
  const [old, now] = [sideOf(before), sideOf(after)];
  const groups = new Groups(old, now);
  let unchangedTensors = 0;
  for (const [key, index] of old.places) {
    const other = now.places.get(key);
    if (!groups.add(index, other)) unchangedTensors++;
  }
  for (const [key, index] of now.places) if (!old.places.has(key)) groups.add(undefined, index);
  return { tensors: groups.sorted(), unchangedTensors, reordered: isReordered(old, now) };
}

function sideOf(plan: Plan): Side {
  const { input } = plan;
  const places = new Map<string, number>();
  for (const [index, { name }] of input.tensors.entries()) {
    let key = name;
    for (let turn = 1; places.has(key); turn++) key = `${name}\0${turn}`;
    places.set(key, index);
  }
  return { plan, input, patterns: plan.stats().patterns, places };
}

function isReordered(old: Side, now: Side): boolean {
  let last = -1;
  for (const key of now.places.keys()) {
    const place = old.places.get(key);
    if (place === undefined) continue;
    if (place < last) return true;
    last = place;
  }
  return false;
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

class Groups {
  readonly #old: Side;
  readonly #now: Side;
  readonly #groups = new Map<string, Mutable<TensorGroup>>();
  readonly #meshes = new MeshComparison();

  constructor(old: Side, now: Side) {
    this.#old = old;
    this.#now = now;
  }

  /** Takes a tensor by its places in the two plans; false if it is the same in both. */
  add(old: number | undefined, now: number | undefined): boolean {
    const before = old === undefined ? undefined : formOf(this.#old, old);
    const after = now === undefined ? undefined : formOf(this.#now, now);
    const fields = before === undefined || after === undefined ? [] : this.#changedFields(before, after);
    if (before !== undefined && after !== undefined && fields.length === 0) return false;
    const change = before === undefined ? "added" : after === undefined ? "removed" : "changed";
    const patterns = [patternOf(this.#old, old), patternOf(this.#now, now)];
    const key = `${change} ${patterns.join()} ${fields.join()}`;
    const bytes = {
      before: old === undefined ? 0n : deliveredBytes(this.#old, old),
      after: now === undefined ? 0n : deliveredBytes(this.#now, now),
    };
    const group = this.#groups.get(key);
    if (group === undefined) {
      const { name } = old === undefined ? this.#now.input.tensors[now!]! : this.#old.input.tensors[old]!;
      this.#groups.set(key, {
        change,
        count: 1,
        example: name,
        before,
        after,
        fields,
        deliveredBytes: bytes,
      });
    } else {
      group.count++;
      group.deliveredBytes = {
        before: group.deliveredBytes.before + bytes.before,
        after: group.deliveredBytes.after + bytes.after,
      };
    }
    return true;
  }

  #changedFields(before: TensorForm, after: TensorForm): TensorField[] {
    const own = formFields.filter((field) => !isSame(before[field], after[field]));
    const sides = (["source", "target"] as const).flatMap((side) =>
      sideFields
        .filter((field) =>
          field === "mesh"
            ? !this.#meshes.isSame(before[side].mesh, after[side].mesh)
            : !isSame(before[side][field], after[side][field]),
        )
        .map((field): TensorField => `${side}.${field}`),
    );
    // The name of a pair says something only if all that it stands for is the same.
    const isRenamed = own.length === 0 && sides.length === 0 && before.pair !== after.pair;
    return isRenamed ? ["pair"] : [...own, ...sides];
  }

  sorted(): TensorGroup[] {
    const size = ({ deliveredBytes: { before, after } }: TensorGroup) => (before > after ? before : after);
    return [...this.#groups.values()].sort((a, b) => (size(a) === size(b) ? 0 : size(a) < size(b) ? 1 : -1));
  }
}

/** Plans share few meshes between many tensors: each two of them are compared once. */
class MeshComparison {
  readonly #known = new Map<DeviceMesh, Map<DeviceMesh, boolean>>();

  isSame(one: DeviceMesh, other: DeviceMesh): boolean {
    const known = this.#known.get(one) ?? new Map<DeviceMesh, boolean>();
    this.#known.set(one, known);
    let same = known.get(other);
    if (same === undefined) {
      same = isSame(one.shape, other.shape) && isSame([...one.ranks], [...other.ranks]);
      known.set(other, same);
    }
    return same;
  }
}

function formOf({ plan, input, patterns }: Side, index: number): TensorForm {
  const tensor = input.tensors[index]!;
  const { pair, shape, dtype, targetDtype = dtype } = tensor;
  const { strategy, groups, reason } = patterns[plan.patternOf(index)]!;
  const side = (name: "source" | "target"): SideForm => {
    const { mesh, placements, stridedShard } = input.pairs[pair]![name];
    return {
      placements: placements.map(formatPlacement),
      mesh,
      stridedShard: tensor[name]?.stridedShard ?? stridedShard,
      select: tensor[name]?.select,
    };
  };
  return {
    pair,
    shape,
    dtype,
    targetDtype,
    source: side("source"),
    target: side("target"),
    routing: { strategy, groups, reason },
  };
}

/** The bytes of a tensor on the target, once for each rank that gets them. */
function deliveredBytes({ input }: Side, index: number): bigint {
  const tensor = input.tensors[index]!;
  const { mesh, placements } = input.pairs[tensor.pair]!.target;
  const replicas = placements.reduce(
    (product, { kind }, dim) =>
      kind === "replicate" && dim !== tensor.target?.select?.dim ? product * mesh.shape[dim]! : product,
    1,
  );
  const elements = tensor.shape.reduce((product, extent) => product * BigInt(extent), BigInt(replicas));
  return bytesOf(tensor.targetDtype ?? tensor.dtype, elements);
}

function patternOf({ plan }: Side, index: number | undefined): number | undefined {
  return index === undefined ? undefined : plan.patternOf(index);
}

/** True if two plain values are the same, all that is in them included. */
export function isSame(one: unknown, other: unknown): boolean {
  if (one === other) return true;
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return false;
  const [keys, otherKeys] = [Object.keys(one), Object.keys(other)];
  return (
    keys.length === otherKeys.length &&
    keys.every((key) =>
      isSame((one as Record<string, unknown>)[key], (other as Record<string, unknown>)[key]),
    )
  );
}
