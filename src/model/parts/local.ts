import { type Holding, holdingAt, type Run } from "../../layout/holding.ts";
import type { DeviceMesh } from "../../layout/index.ts";
import { partsError } from "./errors.ts";
import { mergePieces } from "./merge.ts";
import { coordinatesOf } from "./mesh-coordinates.ts";
import type { Parameter, PartedSide, PartKind } from "./parted.ts";
import { firstSlot, localSlot, ownerOf, slotsOf } from "./slots.ts";

/** A box of a part: from `start` of its tensor, `at` a place of the parameter; `size` counts the parameter's axes. */
export interface LocalPiece {
  /** Which of the parameter's parts it belongs to, counted among them; the first of those of its tensor. */
  readonly ordinal: number;
  readonly source: number;
  readonly start: readonly number[];
  readonly length: readonly number[];
  readonly at: readonly number[];
  readonly size: readonly number[];
  /** For each axis of the parameter the tensor's; -1 for one of extent 1 that the tensor lacks. */
  readonly axes: readonly number[];
}

export interface Region {
  readonly at: readonly number[];
  readonly size: readonly number[];
}

/** A parameter as one rank has it. */
export interface LocalParameter {
  readonly shape: readonly number[];
  /** In the order of their places. */
  readonly pieces: readonly LocalPiece[];
  /** What no part fills: padding, and what only another coordinate holds. */
  readonly zero: readonly Region[];
  /** Says where each part begins that the rank holds, by its ordinal. */
  readonly origins: ReadonlyMap<number, readonly number[]>;
}

/** Parameters that are built alike of parts that lie alike: one of them stands for all. */
interface ParameterClass {
  readonly sample: Parameter;
  /** The kinds of its parts and their slots, in the order of `Parameter.parts`. */
  readonly kinds: readonly PartKind[];
  readonly slots: readonly number[];
  /** For each part the first of those that are ranges of the same tensor. */
  readonly sources: readonly number[];
  /** Parts by the coordinate that has their slot; those that every coordinate has. */
  readonly owned: ReadonlyMap<number, readonly number[]>;
  readonly shared: readonly number[];
  /** Dimensions of meshes along which coordinates hold different things. */
  readonly varying: readonly { readonly mesh: DeviceMesh; readonly dims: readonly number[] }[];
  readonly locals: Map<number, LocalParameter>;
  /** Those by the coordinates in `varying`: ranks that hold the same are computed once. */
  readonly alike: Map<string, LocalParameter>;
}

/** What of a parted side lies on which rank. Parameters of one class are computed once a rank. */
export class LocalLayouts {
  readonly side: PartedSide;
  readonly #classes: readonly ParameterClass[];
  readonly #classOf: Uint32Array;
  /** For each kind by the position in its mesh. */
  readonly #holdings = new Map<PartKind, (Holding | undefined)[]>();
  readonly #positions = new Map<DeviceMesh, Map<number, number>>();

  constructor(side: PartedSide) {
    this.side = side;
    const classes: ParameterClass[] = [];
    const byKey = new Map<string, number>();
    this.#classOf = Uint32Array.from(side.parameters, (parameter) => {
      const key = classKey(side, parameter);
      let number = byKey.get(key);
      if (number === undefined) {
        number = classes.push(makeClass(side, parameter)) - 1;
        byKey.set(key, number);
      }
      return number;
    });
    this.#classes = classes;
  }

  get classes(): readonly ParameterClass[] {
    return this.#classes;
  }

  classOf(parameter: number): ParameterClass {
    return this.#classes[this.#classOf[parameter]!]!;
  }

  /** True if a rank has the parameter. */
  has(parameter: number, rank: number): boolean {
    const { mesh, only } = this.side.parameters[parameter]!;
    if (!this.#positionsOf(mesh).has(rank)) return false;
    return only === undefined || this.coordinate(mesh, rank, only.dim) === only.coordinate;
  }

  /** The parameter on a rank that has it. `TB_PARTS` if its parts do not fit together there. */
  local(parameter: number, rank: number): LocalParameter {
    return this.localOf(this.classOf(parameter), rank);
  }

  localOf(group: ParameterClass, rank: number): LocalParameter {
    let local = group.locals.get(rank);
    if (local === undefined) {
      const key = this.#coordinatesThatVary(group, rank);
      local = group.alike.get(key) ?? this.#build(group, rank);
      group.alike.set(key, local);
      group.locals.set(rank, local);
    }
    return local;
  }

  #coordinatesThatVary({ varying }: ParameterClass, rank: number): string {
    let key = "";
    for (const { mesh, dims } of varying) {
      const coordinate = coordinatesOf(mesh, this.#positionsOf(mesh).get(rank)!);
      for (const dim of dims) key += `${coordinate[dim]},`;
    }
    return key;
  }

  /** What a part's layout gives a rank of its range, `undefined` if the rank holds none by its coordinate. */
  holding(kind: PartKind, rank: number): Holding {
    const { mesh, placements, stridedShard } = kind.layout;
    const position = this.#positionsOf(mesh).get(rank)!;
    let held = this.#holdings.get(kind);
    if (held === undefined) {
      held = new Array<Holding | undefined>(mesh.size);
      this.#holdings.set(kind, held);
    }
    held[position] ??= holdingAt(
      mesh.shape,
      placements,
      kind.length,
      coordinatesOf(mesh, position),
      stridedShard,
    );
    return held[position];
  }

  coordinate(mesh: DeviceMesh, rank: number, dim: number): number {
    return coordinatesOf(mesh, this.#positionsOf(mesh).get(rank)!)[dim]!;
  }

  #positionsOf(mesh: DeviceMesh): Map<number, number> {
    let positions = this.#positions.get(mesh);
    if (positions === undefined) {
      positions = new Map(Array.from(mesh.ranks, (rank, position) => [rank, position]));
      this.#positions.set(mesh, positions);
    }
    return positions;
  }

  #build(group: ParameterClass, rank: number): LocalParameter {
    const { sample } = group;
    if (sample.constant !== undefined) return { shape: [], pieces: [], zero: [], origins: new Map() };
    const { deal, dealDim } = sample;
    const owner = dealDim === undefined ? 0 : this.coordinate(sample.mesh, rank, dealDim);
    const count = deal === undefined ? 1 : slotsOf(deal, owner);
    if (count === 0) throw fault(sample, rank, "has no slot there");
    const slots: Placed[][] = Array.from({ length: count }, () => []);
    for (const ordinal of [...(group.owned.get(owner) ?? []), ...group.shared]) {
      const placed = this.#placed(group, ordinal, rank, owner);
      for (let slot = placed.slot; slot < placed.slot + placed.slots; slot++) slots[slot]?.push(placed);
    }
    for (const [slot, parts] of slots.entries()) checkRoles(sample, rank, slot, parts);
    const [shape, filled] = shapeOf(sample, rank, slots);
    return {
      shape: deal === undefined ? shape : [count, ...shape],
      pieces: mergePieces(piecesOf(group, slots)),
      zero: zeroOf(slots, shape, filled, deal !== undefined),
      origins: originsOf(slots, deal !== undefined),
    };
  }

  #placed(group: ParameterClass, ordinal: number, rank: number, owner: number): Placed {
    const kind = group.kinds[ordinal]!;
    const { deal } = group.sample;
    const holding = this.holding(kind, rank);
    const [slot, slots] =
      deal === undefined
        ? [0, 1]
        : kind.slotAxis < 0 || deal.roundRobin
          ? [localSlot(deal, group.slots[ordinal]!), 1]
          : [Math.max(0, group.slots[ordinal]! - firstSlot(deal, owner)), holding.localShape[kind.slotAxis]!];
    const axes = kind.axes.filter((axis) => axis < 0 || axis !== kind.slotAxis);
    const present =
      kind.on === undefined || this.coordinate(kind.layout.mesh, rank, kind.on.dim) === kind.on.coordinate;
    return {
      ordinal,
      kind,
      holding,
      slot,
      slots,
      axes,
      shape: axes.map((axis) => (axis < 0 ? 1 : holding.localShape[axis]!)),
      present,
      offset: 0,
    };
  }
}

interface Placed {
  readonly ordinal: number;
  readonly kind: PartKind;
  readonly holding: Holding;
  /** Its first slot on the rank, and how many it has. */
  readonly slot: number;
  readonly slots: number;
  /** Axes and extents within a slot. */
  readonly axes: readonly number[];
  readonly shape: readonly number[];
  readonly present: boolean;
  /** The position of its beginning in its slot's first axis. */
  offset: number;
}

function classKey(side: PartedSide, parameter: Parameter): string {
  const { parts, extent, constant, deal } = parameter;
  let key = `${extent ?? ""};${constant ?? ""};${deal?.count ?? ""}`;
  for (const part of parts) key += `|${side.parts[part]!.kind.id},${side.parts[part]!.slot}`;
  if (parts.some((part) => isRange(side.parts[part]!.kind))) key += `;${sourcesOf(side, parameter).join()}`;
  // A constant has no parts that say on which mesh it lies.
  return parts.length > 0 ? key : `${key}|${parameter.mesh.ranks.join()}`;
}

function isRange({ start, length, shape }: PartKind): boolean {
  return shape.some((extent, dim) => start[dim] !== 0 || length[dim] !== extent);
}

function sourcesOf(side: PartedSide, { parts }: Parameter): number[] {
  const first = new Map<number, number>();
  return parts.map((part, ordinal) => {
    const { tensor, kind } = side.parts[part]!;
    if (!isRange(kind)) return ordinal;
    const known = first.get(tensor);
    if (known === undefined) first.set(tensor, ordinal);
    return known ?? ordinal;
  });
}

function makeClass(side: PartedSide, sample: Parameter): ParameterClass {
  const kinds = sample.parts.map((part) => side.parts[part]!.kind);
  const slots = sample.parts.map((part) => side.parts[part]!.slot);
  const owned = new Map<number, number[]>();
  const shared: number[] = [];
  const { deal, dealDim } = sample;
  kinds.forEach((kind, ordinal) => {
    if (deal === undefined || dealDim === undefined || (kind.slotAxis >= 0 && !deal.roundRobin)) {
      shared.push(ordinal);
      return;
    }
    const owner = ownerOf(deal, slots[ordinal]!);
    const list = owned.get(owner);
    if (list === undefined) owned.set(owner, [ordinal]);
    else list.push(ordinal);
  });
  return {
    sample,
    kinds,
    slots,
    sources: sourcesOf(side, sample),
    owned,
    shared,
    varying: varyingDims(sample, kinds),
    locals: new Map(),
    alike: new Map(),
  };
}

function varyingDims({ mesh, dealDim }: Parameter, kinds: readonly PartKind[]): ParameterClass["varying"] {
  const found = new Map<DeviceMesh, Set<number>>();
  const add = (of: DeviceMesh, dim: number) => {
    const dims = found.get(of) ?? new Set();
    found.set(of, dims.add(dim));
  };
  if (dealDim !== undefined) add(mesh, dealDim);
  for (const { layout, on } of new Set(kinds)) {
    if (on !== undefined) add(layout.mesh, on.dim);
    layout.placements.forEach(({ kind }, dim) => {
      if (kind !== "replicate") add(layout.mesh, dim);
    });
  }
  return Array.from(found, ([of, dims]) => ({ mesh: of, dims: [...dims] }));
}

/** Each slot has the same parts, in the order 0, 1, 2, …, each once. */
function checkRoles(parameter: Parameter, rank: number, slot: number, parts: Placed[]): void {
  parts.sort((a, b) => a.kind.order - b.kind.order);
  const where = parameter.deal === undefined ? "" : ` in slot ${slot}`;
  parts.forEach(({ kind }, index) => {
    if (kind.order === index) return;
    const twice = index > 0 && parts[index - 1]!.kind.order === kind.order;
    throw fault(
      parameter,
      rank,
      twice ? `has two parts of order ${kind.order}${where}` : `has no part of order ${index}${where}`,
      {
        rule: kind.ruleNumber,
        slot,
      },
    );
  });
  if (parts.length === 0) throw fault(parameter, rank, `has no part${where}`, { slot });
}

/** The shape within a slot, and how far each slot is filled: extents agree, and parts fit. */
function shapeOf(parameter: Parameter, rank: number, slots: readonly Placed[][]): [number[], number] {
  const first = slots[0]!;
  let filled = 0;
  for (const [slot, parts] of slots.entries()) {
    if (parts.length !== first.length) {
      throw fault(parameter, rank, `has ${parts.length} parts in slot ${slot}, ${first.length} in slot 0`, {
        slot,
      });
    }
    let offset = 0;
    for (const [index, part] of parts.entries()) {
      const expected = first[index]!.shape;
      if (
        part.shape.length !== first[0]!.shape.length ||
        part.shape.some((extent, axis) => axis > 0 && extent !== first[0]!.shape[axis])
      ) {
        throw fault(
          parameter,
          rank,
          `has parts of shapes [${first[0]!.shape.join(", ")}] and [${part.shape.join(", ")}], which do not stand one behind the other`,
          { rule: part.kind.ruleNumber, slot },
        );
      }
      if (expected[0] !== part.shape[0]) {
        throw fault(parameter, rank, `has parts of different length in slots 0 and ${slot}`, {
          rule: part.kind.ruleNumber,
          slot,
        });
      }
      part.offset = offset;
      offset += part.shape[0] ?? 0;
    }
    filled = offset;
  }
  const { extent } = parameter;
  if (extent !== undefined && filled > extent) {
    throw fault(parameter, rank, `has ${extent} rows, and its parts have ${filled}`, { extent, filled });
  }
  const inner = first[0]!.shape;
  if (inner.length === 0) {
    if (first.length > 1)
      throw fault(parameter, rank, "has several parts, and as a scalar no dimension to join them along");
    return [[], 0];
  }
  return [[extent ?? filled, ...inner.slice(1)], filled];
}

function piecesOf({ sample, sources }: ParameterClass, slots: readonly Placed[][]): LocalPiece[] {
  const pieces: LocalPiece[] = [];
  const seen = new Set<Placed>();
  for (const parts of slots) {
    for (const part of parts) {
      if (!part.present || seen.has(part)) continue;
      seen.add(part);
      pieces.push(...boxes(part, sources[part.ordinal]!, sample.deal !== undefined));
    }
  }
  return pieces;
}

/** The boxes of a part: one, unless its layout gives a rank several runs of a dimension. */
function boxes(
  { ordinal, kind, holding, slot, axes, offset }: Placed,
  source: number,
  stacked: boolean,
): LocalPiece[] {
  let found: { start: number[]; length: number[]; local: number[] }[] = [
    { start: [], length: [], local: [] },
  ];
  holding.runs.forEach((runs: readonly Run[], dim) => {
    found = found.flatMap(({ start, length, local }) => {
      let position = 0;
      return runs.map((run) => {
        const one = {
          start: [...start, kind.start[dim]! + run.start],
          length: [...length, run.length],
          local: [...local, position],
        };
        position += run.length;
        return one;
      });
    });
  });
  const { slotAxis } = kind;
  return found.map(({ start, length, local }) => ({
    ordinal,
    source,
    start,
    length,
    at: [
      ...(stacked ? [slot + (slotAxis < 0 ? 0 : local[slotAxis]!)] : []),
      ...axes.map((axis, index) => (axis < 0 ? 0 : local[axis]!) + (index === 0 ? offset : 0)),
    ],
    size: [
      ...(stacked ? [slotAxis < 0 ? 1 : length[slotAxis]!] : []),
      ...axes.map((axis) => (axis < 0 ? 1 : length[axis]!)),
    ],
    axes: [...(stacked ? [slotAxis] : []), ...axes],
  }));
}

function originsOf(slots: readonly Placed[][], stacked: boolean): Map<number, readonly number[]> {
  const origins = new Map<number, readonly number[]>();
  for (const { ordinal, slot, axes, offset, present } of slots.flat()) {
    if (!present) continue;
    origins.set(ordinal, [...(stacked ? [slot] : []), ...axes.map((_, index) => (index === 0 ? offset : 0))]);
  }
  return origins;
}

/** What no part fills: behind the last one, and where only another coordinate has a part. */
function zeroOf(
  slots: readonly Placed[][],
  shape: readonly number[],
  filled: number,
  stacked: boolean,
): Region[] {
  const ranges: [number, number][] = [];
  for (const part of slots[0]!) {
    if (!part.present) ranges.push([part.offset, part.offset + (part.shape[0] ?? 1)]);
  }
  if (shape.length > 0 && shape[0]! > filled) ranges.push([filled, shape[0]!]);
  return ranges
    .filter(([begin, end]) => end > begin)
    .map(([begin, end]) => ({
      at: [...(stacked ? [0] : []), ...shape.map((_, axis) => (axis === 0 ? begin : 0))],
      size: [
        ...(stacked ? [slots.length] : []),
        ...shape.map((extent, axis) => (axis === 0 ? end - begin : extent)),
      ],
    }));
}

function fault(
  parameter: Parameter,
  rank: number,
  what: string,
  details: Readonly<Record<string, unknown>> = {},
): Error {
  return partsError(`parameter ${parameter.name} on rank ${rank} ${what}`, {
    parameter: parameter.name,
    rank,
    ...details,
  });
}
