import { type DType, formatPlacement, type Placement } from "../../layout/index.ts";
import type { PairInput, SelectInput, TensorInput } from "../../plan/input/types.ts";
import { partsError, someNames } from "./errors.ts";
import type { Part, PartedSide, PartKind } from "./parted.ts";
import { type RangeLayout, restrict } from "./restrict.ts";
import { ownerOf } from "./slots.ts";

/** A tensor of a plan: a tensor of the model, or the range of it that lies in one parameter on each side. */
export interface PlannedPart {
  readonly name: string;
  /** The model's tensor, by its number, and the range of it. */
  readonly tensor: number;
  readonly start: readonly number[];
  readonly length: readonly number[];
  /** The parts of the two sides, by their numbers. */
  readonly source: number;
  readonly target: number;
}

/** What a planner takes, and what each of its tensors is. */
export interface JoinedSides {
  readonly pairs: Readonly<Record<string, PairInput>>;
  readonly tensors: readonly TensorInput[];
  readonly parts: readonly PlannedPart[];
}

/** Says a tensor's type on the target, `undefined` for that of its parameter. */
export type TargetType = (tensor: string) => DType | undefined;

/**
 * The planned tensors of two sides of one model: each range of a tensor that lies in one parameter of the source and one of the
 * target. A tensor that the target drops stays where it is; one that is missing only in the source is `TB_PARTS`.
 */
export function joinSides(
  source: PartedSide,
  target: PartedSide,
  targetType: TargetType = () => undefined,
): JoinedSides {
  const joiner = new Joiner(source, target, targetType);
  const from = partsByTensor(source);
  const to = partsByTensor(target);
  const missing: string[] = [];
  for (const [tensor, { name }] of target.tensors.entries()) {
    if (to[tensor]!.length === 0) continue;
    if (from[tensor]!.length === 0) missing.push(name);
    else joiner.add(tensor, from[tensor]!, to[tensor]!);
  }
  if (missing.length > 0) {
    throw partsError(
      `the source is without ${missing.length} tensors that the target has: ${someNames(missing)}`,
      {
        missing,
      },
    );
  }
  return joiner.joined();
}

function partsByTensor({ tensors, parts }: PartedSide): number[][] {
  const numbers: number[][] = tensors.map(() => []);
  for (const [number, { tensor }] of parts.entries()) numbers[tensor]!.push(number);
  return numbers;
}

class Joiner {
  readonly #sides: readonly [SideLayouts, SideLayouts];
  readonly #targetType: TargetType;
  readonly #pairs: Record<string, PairInput> = {};
  readonly #pairNames = new Map<number, string>();
  readonly #names = new Map<string, number>();
  readonly #tensors: TensorInput[] = [];
  readonly #parts: PlannedPart[] = [];

  constructor(source: PartedSide, target: PartedSide, targetType: TargetType) {
    this.#sides = [new SideLayouts(source), new SideLayouts(target)];
    this.#targetType = targetType;
  }

  add(tensor: number, from: readonly number[], to: readonly number[]): void {
    const [source, target] = this.#sides;
    // If the source has several copies, the first is read.
    const distinct = from.length === 1 ? from : firstOfEachRange(source.side, from);
    for (const wanted of to) {
      const { kind } = target.side.parts[wanted]!;
      for (const held of distinct) {
        const other = source.side.parts[held]!.kind;
        if (isSameRange(kind, other)) {
          this.#plan(tensor, held, wanted, kind.start, kind.length, to.length > 1);
          continue;
        }
        const start = kind.start.map((begin, dim) => Math.max(begin, other.start[dim]!));
        const length = start.map(
          (begin, dim) =>
            Math.min(kind.start[dim]! + kind.length[dim]!, other.start[dim]! + other.length[dim]!) - begin,
        );
        if (length.every((extent) => extent > 0)) this.#plan(tensor, held, wanted, start, length, true);
      }
    }
  }

  joined(): JoinedSides {
    return { pairs: this.#pairs, tensors: this.#tensors, parts: this.#parts };
  }

  #plan(
    tensor: number,
    held: number,
    wanted: number,
    start: readonly number[],
    length: readonly number[],
    mayRepeat: boolean,
  ): void {
    const [source, target] = this.#sides;
    const from = source.layout(held, start, length);
    const to = target.layout(wanted, start, length);
    const { name, shape, dtype } = source.side.tensors[tensor]!;
    const parameter = target.side.parameters[target.side.parts[wanted]!.parameter]!;
    const planned = this.#nameOf(name, shape, start, length, mayRepeat);
    const sourceSelect = from.select;
    const targetSelect = to.select;
    this.#tensors.push({
      name: planned,
      pair: this.#pair(from, to),
      shape: length,
      dtype,
      targetDtype: this.#targetType(name) ?? parameter.dtype,
      ...(sourceSelect !== undefined && { source: { select: sourceSelect } }),
      ...(targetSelect !== undefined && { target: { select: targetSelect } }),
    });
    this.#parts.push({ name: planned, tensor, start, length, source: held, target: wanted });
  }

  /** The tensor's name, the range of it as a slice, and a number for a further copy. */
  #nameOf(
    name: string,
    shape: readonly number[],
    start: readonly number[],
    length: readonly number[],
    mayRepeat: boolean,
  ): string {
    const isWhole = length.every((extent, dim) => extent === shape[dim]);
    if (isWhole && !mayRepeat) return name;
    const ranges = start.map((begin, dim) =>
      length[dim] === shape[dim] ? ":" : `${begin}:${begin + length[dim]!}`,
    );
    const full = isWhole ? name : `${name}[${ranges.join(", ")}]`;
    const count = (this.#names.get(full) ?? 0) + 1;
    this.#names.set(full, count);
    return count === 1 ? full : `${full} (copy ${count})`;
  }

  #pair(from: NumberedLayout, to: NumberedLayout): string {
    const key = from.number * 2 ** 20 + to.number;
    let name = this.#pairNames.get(key);
    if (name !== undefined) return name;
    const text = `${describeLayout(from)} -> ${describeLayout(to)}`;
    name = text;
    for (let copy = 2; Object.hasOwn(this.#pairs, name); copy++) name = `${text} (${copy})`;
    this.#pairs[name] = { source: plainLayout(from), target: plainLayout(to) };
    this.#pairNames.set(key, name);
    return name;
  }
}

interface NumberedLayout extends RangeLayout {
  readonly number: number;
  readonly meshName: string;
}

/** The layouts of a side's parts and of ranges of them, each of which is one object however often it is asked for. */
class SideLayouts {
  readonly side: PartedSide;
  readonly #known = new Map<string, NumberedLayout>();
  /** The whole parts, by their kind and the coordinate that has them. */
  readonly #whole = new Map<PartKind, Map<number, NumberedLayout>>();
  readonly #numbers = new Map<string, number>();
  readonly #meshes = new Map<object, number>();

  constructor(side: PartedSide) {
    this.side = side;
  }

  /** The layout of a range that lies within a part. */
  layout(part: number, start: readonly number[], length: readonly number[]): NumberedLayout {
    const one = this.side.parts[part]!;
    const { kind } = one;
    const { dim, owner } = ownerIn(this.side, one);
    const select =
      owner < 0 || kind.layout.mesh.shape[dim] === 1
        ? undefined
        : { dim, index: owner, of: kind.layout.mesh.shape[dim]! };
    if (length !== kind.length) return this.#ranged(kind, select, start, length);
    let whole = this.#whole.get(kind);
    if (whole === undefined) {
      whole = new Map();
      this.#whole.set(kind, whole);
    }
    let known = whole.get(owner);
    if (known === undefined) {
      known = this.#ranged(kind, select, start, length);
      whole.set(owner, known);
    }
    return known;
  }

  #ranged(
    kind: PartKind,
    select: SelectInput | undefined,
    start: readonly number[],
    length: readonly number[],
  ): NumberedLayout {
    const isWhole = length.every((extent, dim) => extent === kind.length[dim]);
    const range = isWhole
      ? ""
      : `${kind.start.join()}|${kind.length.join()}|${start.join()}|${length.join()}`;
    const key = `${kind.layout.id}|${select?.dim ?? ""}|${select?.index ?? ""}|${range}`;
    let known = this.#known.get(key);
    if (known === undefined) {
      known = this.#number(kind, this.#restricted(kind, select, isWhole, start, length));
      this.#known.set(key, known);
    }
    return known;
  }

  #restricted(
    kind: PartKind,
    select: SelectInput | undefined,
    isWhole: boolean,
    start: readonly number[],
    length: readonly number[],
  ): RangeLayout {
    const { mesh, placements, stridedShard } = kind.layout;
    const layout: RangeLayout = { mesh, placements, stridedShard, select };
    if (isWhole) return layout;
    const offset = start.map((begin, dim) => begin - kind.start[dim]!);
    return restrict(layout, kind.length, offset, length);
  }

  /** Equal layouts have one number, whatever they select, so that they make one pair. */
  #number(kind: PartKind, layout: RangeLayout): NumberedLayout {
    const key = `${this.#meshNumber(layout)}|${JSON.stringify([layout.placements, layout.stridedShard])}`;
    let number = this.#numbers.get(key);
    if (number === undefined) {
      number = this.#numbers.size;
      this.#numbers.set(key, number);
    }
    return { ...layout, number, meshName: kind.layout.meshName };
  }

  #meshNumber({ mesh }: RangeLayout): string {
    let number = this.#meshes.get(mesh);
    if (number === undefined) {
      number = this.#meshes.size;
      for (const [other, known] of this.#meshes) {
        if (isSameMesh(other as RangeLayout["mesh"], mesh)) number = known;
      }
      this.#meshes.set(mesh, number);
    }
    return String(number);
  }
}

function isSameMesh(a: RangeLayout["mesh"], b: RangeLayout["mesh"]): boolean {
  return a.shape.join() === b.shape.join() && a.ranks.every((rank, position) => rank === b.ranks[position]);
}

/** The mesh dimension of which one coordinate has a part, and that coordinate: -1 if all have it. */
function ownerIn(
  side: PartedSide,
  { kind, parameter, slot }: Part,
): { readonly dim: number; readonly owner: number } {
  const { deal, dealDim } = side.parameters[parameter]!;
  if (deal !== undefined && dealDim !== undefined && (kind.slotAxis < 0 || deal.roundRobin)) {
    return { dim: dealDim, owner: ownerOf(deal, slot) };
  }
  const named = kind.on ?? kind.only;
  return { dim: named?.dim ?? 0, owner: named?.coordinate ?? -1 };
}

function isSameRange(one: PartKind, other: PartKind): boolean {
  for (let dim = 0; dim < one.start.length; dim++) {
    if (one.start[dim] !== other.start[dim] || one.length[dim] !== other.length[dim]) return false;
  }
  return true;
}

function firstOfEachRange(side: PartedSide, parts: readonly number[]): number[] {
  const ranges = new Map<string, number>();
  for (const part of parts) {
    const { start, length } = side.parts[part]!.kind;
    const key = `${start.join()}|${length.join()}`;
    if (!ranges.has(key)) ranges.set(key, part);
  }
  return [...ranges.values()];
}

function plainLayout({ mesh, placements, stridedShard }: RangeLayout): PairInput["source"] {
  return { mesh, placements, ...(stridedShard !== undefined && { stridedShard }) };
}

/** The most sizes of a cut that are named. */
const mostSizes = 8;

function describeLayout({ meshName, placements }: NumberedLayout): string {
  return `${meshName}[${placements.map(shortPlacement).join(", ")}]`;
}

function shortPlacement(placement: Placement): string {
  if (placement.kind !== "shard" || placement.sizes === undefined || placement.sizes.length <= mostSizes) {
    return formatPlacement(placement);
  }
  return `S(${placement.dim};${placement.sizes.slice(0, mostSizes - 1).join()},…)`;
}
