import { TensorBusError } from "../../errors.ts";
import { partsError } from "./errors.ts";
import type { LocalLayouts } from "./local.ts";
import type { Parameter, PartedSide, PartKind } from "./parted.ts";

/** What a proof looked at. */
export interface PartsProof {
  readonly tensors: number;
  readonly dropped: number;
  readonly parameters: number;
  readonly ranks: number;
  /** Boxes of parameters on ranks. */
  readonly pieces: number;
}

/**
 * Proves that a side's parts are whole: (a) their ranges tile every tensor that no rule drops, and layouts hand every range
 * out; (b) on each rank the slots of a parameter are 0 to n-1, with the same parts; (c) parts of a parameter agree in all other
 * extents; (d) together they are no longer than the parameter, and only its end is padding. Tensors and parameters that are
 * built alike are looked at once. `TB_PARTS` names the tensor or parameter, the rule and the rank.
 */
export function proveParts(layouts: LocalLayouts): PartsProof {
  const { side } = layouts;
  proveTensors(side);
  const counts = new Map<object, number>();
  let pieces = 0;
  for (const [index, parameter] of side.parameters.entries()) {
    const group = layouts.classOf(index);
    let count = counts.get(group);
    if (count === undefined) {
      count = proveParameter(layouts, index, parameter);
      counts.set(group, count);
    }
    pieces += count;
  }
  return {
    tensors: side.tensors.length,
    dropped: side.dropped.size,
    parameters: side.parameters.length,
    ranks: side.ranks.length,
    pieces,
  };
}

/** (b), (c) and (d) of one parameter, on each of its ranks. */
function proveParameter(layouts: LocalLayouts, index: number, parameter: Parameter): number {
  const { parts } = layouts.side;
  for (const part of parameter.parts) checkPadding(parameter, parts[part]!.kind);
  const only = onlyPart(parameter, parts);
  const counted = only === undefined ? undefined : countPieces(only);
  if (counted !== undefined && parameter.only === undefined) return counted;
  let pieces = 0;
  for (const rank of parameter.mesh.ranks) {
    if (!layouts.has(index, rank)) continue;
    try {
      pieces +=
        only === undefined
          ? layouts.local(index, rank).pieces.length
          : layouts.holding(only, rank).runs.reduce((product, runs) => product * runs.length, 1);
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code === "TB_PARTS") throw error;
      throw partsError(`parameter ${parameter.name} on rank ${rank}: ${error.message}`, {
        parameter: parameter.name,
        rank,
        ...error.details,
      });
    }
  }
  return pieces;
}

/**
 * The kind of a parameter's only part, if nothing is to be fitted: the parameter is what the part's layout gives each rank,
 * as nearly all parameters of trainers are.
 */
function onlyPart(
  { parts: [part, ...others], deal, extent, constant }: Parameter,
  parts: PartedSide["parts"],
): PartKind | undefined {
  if (part === undefined || others.length > 0) return undefined;
  if (deal !== undefined || extent !== undefined || constant !== undefined) return undefined;
  const { kind } = parts[part]!;
  return kind.order === 0 && kind.on === undefined ? kind : undefined;
}

/** On how many ranks a part lies, in one piece each; `undefined` if it may lie there in several. */
function countPieces({ layout: { mesh, placements }, length }: PartKind): number | undefined {
  const cut = new Set<number>();
  let count = length.includes(0) ? 0 : 1;
  for (const [meshDim, placement] of placements.entries()) {
    const size = mesh.shape[meshDim]!;
    if (placement.kind === "replicate") {
      count *= size;
      continue;
    }
    if (placement.kind !== "shard" || placement.sizes !== undefined || cut.has(placement.dim))
      return undefined;
    cut.add(placement.dim);
    const extent = length[placement.dim]!;
    count *= extent === 0 ? 0 : Math.ceil(extent / Math.ceil(extent / size));
  }
  return count;
}

/** (a): the ranges of each tensor's parts are disjoint, and together the whole of it. */
function proveTensors({ tensors, parts, dropped }: PartedSide): void {
  // Most tensors lie whole in one parameter: nothing is made for them.
  const first = new Int32Array(tensors.length).fill(-1);
  const several = new Map<number, PartKind[]>();
  for (const [number, { tensor, kind }] of parts.entries()) {
    if (first[tensor] === -1) first[tensor] = number;
    else if (several.has(tensor)) several.get(tensor)!.push(kind);
    else several.set(tensor, [parts[first[tensor]!]!.kind, kind]);
  }
  const proven = new Set<string>();
  for (const [index, { name, shape }] of tensors.entries()) {
    if (first[index] === -1) {
      if (dropped.has(name)) continue;
      throw partsError(`no parameter holds tensor ${name}`, { tensor: name });
    }
    const one = parts[first[index]!]!.kind;
    const kinds = several.get(index);
    if (kinds === undefined && isWhole(one, shape)) continue;
    const key = `${shape.join()}|${(kinds ?? [one]).map(({ id }) => id).join()}`;
    if (proven.has(key)) continue;
    proveTiles(name, shape, kinds ?? [one]);
    proven.add(key);
  }
}

function isWhole({ start, length }: PartKind, shape: readonly number[]): boolean {
  if (length.length !== shape.length) return false;
  for (let dim = 0; dim < shape.length; dim++) {
    if (start[dim] !== 0 || length[dim] !== shape[dim]) return false;
  }
  return true;
}

function proveTiles(name: string, shape: readonly number[], kinds: readonly PartKind[]): void {
  const ranges = new Map<string, PartKind>();
  for (const kind of kinds) {
    const outside = shape.some((extent, dim) => kind.start[dim]! + kind.length[dim]! > extent);
    if (outside || kind.length.length !== shape.length) {
      throw partsError(
        `rule ${kind.ruleNumber + 1}: a range of tensor ${name} leaves its shape [${shape.join(", ")}]`,
        {
          tensor: name,
          rule: kind.ruleNumber,
        },
      );
    }
    // The same range twice is a copy, in another slot or on other ranks.
    ranges.set(`${kind.start.join()}|${kind.length.join()}`, kind);
  }
  const distinct = [...ranges.values()];
  for (const [index, one] of distinct.entries()) {
    for (const other of distinct.slice(index + 1)) {
      if (!overlaps(one, other)) continue;
      throw partsError(
        `rules ${one.ruleNumber + 1} and ${other.ruleNumber + 1} both take elements of tensor ${name}`,
        {
          tensor: name,
          rules: [one.ruleNumber, other.ruleNumber],
        },
      );
    }
  }
  const volume = (lengths: readonly number[]) =>
    lengths.reduce((product, length) => product * BigInt(length), 1n);
  const placed = distinct.reduce((sum, { length }) => sum + volume(length), 0n);
  if (placed !== volume(shape)) {
    throw partsError(`${placed} of ${volume(shape)} elements of tensor ${name} lie in a parameter`, {
      tensor: name,
      placed,
      elements: volume(shape),
    });
  }
}

function overlaps(one: PartKind, other: PartKind): boolean {
  return one.start.every(
    (start, dim) =>
      start < other.start[dim]! + other.length[dim]! && other.start[dim]! < start + one.length[dim]!,
  );
}

/** Padding is at the end: behind a rank that is not full all are empty. */
function checkPadding({ name, extent }: Parameter, { layout, axes, slotAxis, ruleNumber }: PartKind): void {
  const first = axes.find((axis) => axis !== slotAxis);
  if (extent === undefined || first === undefined) return;
  for (const placement of layout.placements) {
    if (placement.kind !== "shard" || placement.sizes === undefined || placement.dim !== first) continue;
    const partial = placement.sizes.findIndex((size) => size < extent);
    const after = placement.sizes.findIndex(
      (size, coordinate) => partial >= 0 && coordinate > partial && size > 0,
    );
    if (after < 0) continue;
    throw partsError(
      `parameter ${name} of ${extent} rows has ${placement.sizes[partial]} on coordinate ${partial}, and ${placement.sizes[after]} on ${after} behind it`,
      { parameter: name, rule: ruleNumber, sizes: placement.sizes, extent },
    );
  }
}
