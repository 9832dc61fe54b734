import {
  bytesOf,
  checkCast,
  DeviceMesh,
  type DType,
  dtypeNumber,
  isPacked,
  itemSize,
  type Layout,
  type StridedShardReading,
} from "../../layout/index.ts";
import { checkKeys, fail, integerIn, NameLimits } from "./check.ts";
import { type NormalSide, normalSide, type SideLayout, sideLayout } from "./sides.ts";
import { type NormalTopology, normalTopology } from "./topology.ts";
import type { PairInput, PlanInput, PlanOptions, Strategy, TensorInput, TensorSideInput } from "./types.ts";

/** The most chunks that a plan lists unless it is told. */
export const defaultMaxChunks = 2 ** 22;

/** What tensors share: everything but the name and the index that a selection names. */
export interface TensorKind {
  readonly pair: number;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly targetDtype: DType;
  readonly source: NormalSide;
  readonly target: NormalSide;
  /** The pattern that it belongs to. */
  readonly pattern: number;
}

/** Tensors that share their geometry: layouts as they are after selection, shape and element types. */
export interface Pattern {
  readonly pair: number;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly targetDtype: DType;
  readonly source: NormalSide;
  readonly target: NormalSide;
  /** Index of the first tensor of the pattern, and how many there are. */
  readonly first: number;
  count: number;
}

interface NormalPair {
  readonly name: string;
  readonly source: SideLayout;
  readonly target: SideLayout;
}

/** A plan's input, checked and interned; everything that follows reads this. */
export interface NormalInput {
  readonly meshes: readonly DeviceMesh[];
  readonly pairs: readonly NormalPair[];
  readonly kinds: readonly TensorKind[];
  readonly patterns: readonly Pattern[];
  readonly names: readonly string[];
  /** For each tensor its kind, and the index that each side's selection names (0 without one). */
  readonly tensorKinds: Uint32Array;
  readonly sourceIndices: Float64Array;
  readonly targetIndices: Float64Array;
  readonly bucketBytes: number;
  readonly bucketsInFlight: number;
  readonly peersInFlight: number;
  readonly strategy: Strategy;
  readonly topology: NormalTopology | undefined;
  readonly maxChunks: number;
  /** One more than the largest rank. */
  readonly world: number;
}

const inputKeys = [
  "pairs",
  "tensors",
  "bucketBytes",
  "bucketsInFlight",
  "peersInFlight",
  "strategy",
  "topology",
  "maxChunks",
] as const;
const tensorKeys = new Set(["name", "pair", "shape", "dtype", "targetDtype", "source", "target"]);
const maxBytes = 2n ** 62n;

export function normalize(input: PlanInput): NormalInput {
  if (typeof input !== "object" || input === null)
    throw fail("TB_PLAN_INPUT", "the input must be an object", {});
  checkKeys(input, inputKeys, "input");
  const meshes: DeviceMesh[] = [];
  const pairs = normalPairs(input.pairs, meshes);
  const world = meshes.reduce(
    (most, mesh) => mesh.ranks.reduce((top, rank) => Math.max(top, rank + 1), most),
    0,
  );
  if (!Array.isArray(input.tensors)) throw fail("TB_PLAN_INPUT", "tensors must be an array", {});
  return {
    meshes,
    pairs,
    ...normalTensors(input.tensors, pairs),
    bucketBytes: integerIn(input.bucketBytes, "bucketBytes", 4096, 2 ** 30, 8 * 2 ** 20),
    ...normalOptions(input, world),
    maxChunks: integerIn(input.maxChunks, "maxChunks", 0, 2 ** 32 - 2, defaultMaxChunks),
    world,
  };
}

function normalOptions({ bucketsInFlight, peersInFlight, strategy, topology }: PlanOptions, world: number) {
  return {
    bucketsInFlight: integerIn(bucketsInFlight, "bucketsInFlight", 1, 65535, 2),
    peersInFlight: integerIn(peersInFlight, "peersInFlight", 1, 65535, 4),
    strategy: normalStrategy(strategy),
    topology: normalTopology(topology, world),
  };
}

/** Options as a plan takes them, defaults filled in: for those who plan later, in a world that is not known yet. */
export function planDefaults(options: PlanOptions): ReturnType<typeof normalOptions> {
  return normalOptions(options, 0);
}

function normalStrategy(strategy: Strategy | undefined): Strategy {
  const wanted = strategy ?? "auto";
  if (!["auto", "direct", "striped"].includes(wanted)) {
    throw fail("TB_PLAN_INPUT", `unknown strategy ${JSON.stringify(wanted)}`, { strategy: wanted });
  }
  return wanted;
}

function normalPairs(pairs: Readonly<Record<string, PairInput>>, meshes: DeviceMesh[]): NormalPair[] {
  if (typeof pairs !== "object" || pairs === null) throw fail("TB_PLAN_INPUT", "pairs must be an object", {});
  // In the order of their names, so that the order of an object's keys does not change the plan.
  return Object.keys(pairs)
    .sort()
    .map((name) => {
      const pair = pairs[name]!;
      if (typeof pair !== "object" || pair === null) {
        throw fail("TB_PLAN_INPUT", `pair ${JSON.stringify(name)} must be an object`, { pair: name });
      }
      checkKeys(pair, ["source", "target"], `pairs.${name}`);
      return {
        name,
        source: normalLayout(pair.source, `pairs.${name}.source`, meshes, false),
        target: normalLayout(pair.target, `pairs.${name}.target`, meshes, true),
      };
    });
}

function normalLayout(layout: Layout, place: string, meshes: DeviceMesh[], isTarget: boolean): SideLayout {
  if (typeof layout !== "object" || layout === null) {
    throw fail("TB_PLAN_INPUT", `${place} needs a mesh and placements`, { place });
  }
  const mesh = asMesh(layout.mesh, place);
  let number = meshes.findIndex((known) => isSameMesh(known, mesh));
  if (number < 0) number = meshes.push(mesh) - 1;
  return sideLayout(layout, meshes[number]!, number, place, isTarget);
}

function isSameMesh(a: DeviceMesh, b: DeviceMesh): boolean {
  if (a === b) return true;
  if (a.shape.length !== b.shape.length || !a.shape.every((size, dim) => size === b.shape[dim])) return false;
  return a.ranks.every((rank, index) => rank === b.ranks[index]);
}

function asMesh(mesh: unknown, place: string): DeviceMesh {
  if (mesh instanceof DeviceMesh) return mesh;
  // A mesh of another copy of this package is as good.
  const other = mesh as { shape?: readonly number[]; ranks?: ArrayLike<number> } | null | undefined;
  if (
    typeof other === "object" &&
    other !== null &&
    Array.isArray(other.shape) &&
    other.ranks !== undefined
  ) {
    return new DeviceMesh(other.shape, { ranks: Array.from(other.ranks) });
  }
  throw fail("TB_MESH", `${place}.mesh must be a DeviceMesh`, { place });
}

function normalTensors(tensors: readonly TensorInput[], pairs: readonly NormalPair[]) {
  const pairNumbers = new Map(pairs.map((pair, index) => [pair.name, index]));
  const kinds: TensorKind[] = [];
  const kindKeys = new Map<string, number>();
  // The first tensor of each form in which kinds are written, the kind that it is, and forms by a hash.
  const formKinds: number[] = [];
  const originals: TensorInput[] = [];
  const byHash = new Map<number, number[]>();
  const patterns: Pattern[] = [];
  const patternKeys = new Map<string, number>();
  const names: string[] = new Array(tensors.length);
  const limits = new NameLimits();
  const tensorKinds = new Uint32Array(tensors.length);
  const sourceIndices = new Float64Array(tensors.length);
  const targetIndices = new Float64Array(tensors.length);

  for (let index = 0; index < tensors.length; index++) {
    const tensor = tensors[index]!;
    const hash = formHash(tensor, index);
    const known = byHash.get(hash);
    let form = known?.find((candidate) => isSameForm(originals[candidate]!, tensor));
    if (form === undefined) {
      form = originals.push(tensor) - 1;
      formKinds.push(
        internKind(makeKind(tensor, index, pairs, pairNumbers, patterns, patternKeys), kinds, kindKeys),
      );
      if (known === undefined) byHash.set(hash, [form]);
      else known.push(form);
    }
    const kind = formKinds[form]!;
    limits.take(tensor.name.length, "TB_PLAN_INPUT");
    names[index] = tensor.name;
    tensorKinds[index] = kind;
    patterns[kinds[kind]!.pattern]!.count++;
    if (tensor.source?.select !== undefined)
      sourceIndices[index] = selectedIndex(tensor, tensor.source, index);
    if (tensor.target?.select !== undefined)
      targetIndices[index] = selectedIndex(tensor, tensor.target, index);
  }
  return { kinds, patterns, names, tensorKinds, sourceIndices, targetIndices };
}

/** Equal for tensors of one form. Checks of a tensor what its form does not hold: that it is an object with a name. */
function formHash(tensor: TensorInput, index: number): number {
  if (typeof tensor !== "object" || tensor === null) {
    throw fail("TB_PLAN_INPUT", `tensors[${index}] must be an object`, { tensor: index });
  }
  for (const key in tensor) {
    if (!tensorKeys.has(key)) {
      throw fail("TB_PLAN_INPUT", `tensors[${index}] has an unknown key ${JSON.stringify(key)}`, {
        tensor: index,
        key,
      });
    }
  }
  if (typeof tensor.name !== "string") {
    throw fail("TB_PLAN_INPUT", `tensors[${index}].name must be a string`, {
      tensor: index,
      name: tensor.name,
    });
  }
  if (!Array.isArray(tensor.shape)) {
    throw fail("TB_SHAPE", `${label(tensor, index)}: shape must be an array`, { tensor: tensor.name });
  }
  let hash = tensor.shape.length;
  for (const size of tensor.shape) hash = (Math.imul(hash, 31) + (size | 0)) | 0;
  return hash;
}

/** True if two tensors are written alike, but for names and selected indices. */
function isSameForm(one: TensorInput, other: TensorInput): boolean {
  if (one.pair !== other.pair || one.dtype !== other.dtype || one.targetDtype !== other.targetDtype)
    return false;
  if (one.shape.length !== other.shape.length) return false;
  for (let dim = 0; dim < one.shape.length; dim++) {
    if (one.shape[dim] !== other.shape[dim]) return false;
  }
  return isSameSide(one.source, other.source) && isSameSide(one.target, other.target);
}

/** True if two tensors ask the same of a side, whatever index they select. */
function isSameSide(one: TensorSideInput | undefined, other: TensorSideInput | undefined): boolean {
  if (one === other) return true;
  // What is malformed is no kind that is known: making one says so.
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return false;
  if (one.stridedShard !== other.stridedShard || !hasKeys(other, "select", "stridedShard")) return false;
  const [a, b] = [one.select, other.select];
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  return (
    a.dim === b.dim &&
    a.of === b.of &&
    isSameList(a.sizes, b.sizes) &&
    hasKeys(b, "dim", "index", "of", "sizes")
  );
}

function isSameList(one: readonly number[] | undefined, other: readonly number[] | undefined): boolean {
  if (one === other) return true;
  if (!Array.isArray(one) || !Array.isArray(other) || one.length !== other.length) return false;
  return one.every((value, index) => value === other[index]);
}

function hasKeys(object: object, ...known: readonly string[]): boolean {
  for (const key in object) {
    if (!known.includes(key)) return false;
  }
  return true;
}

function label(tensor: TensorInput, index: number): string {
  return `tensor ${index} (${JSON.stringify(tensor.name)})`;
}

function selectedIndex(tensor: TensorInput, side: TensorSideInput, index: number): number {
  const select = side.select!;
  if (!Number.isSafeInteger(select.index) || select.index < 0 || select.index >= select.of) {
    throw fail(
      "TB_MESH",
      `${label(tensor, index)}: selected index ${select.index} is not in 0..${select.of - 1}`,
      {
        tensor: tensor.name,
        select,
      },
    );
  }
  return select.index;
}

function makeKind(
  tensor: TensorInput,
  index: number,
  pairs: readonly NormalPair[],
  pairNumbers: ReadonlyMap<string, number>,
  patterns: Pattern[],
  patternKeys: Map<string, number>,
): TensorKind {
  const place = label(tensor, index);
  const pair = pairNumbers.get(tensor.pair);
  if (pair === undefined) {
    throw fail("TB_PLAN_INPUT", `${place}: unknown pair ${JSON.stringify(tensor.pair)}`, {
      tensor: tensor.name,
      pair: tensor.pair,
      pairs: pairs.map(({ name }) => name),
    });
  }
  const dtype = tensor.dtype;
  const targetDtype = tensor.targetDtype ?? dtype;
  dtypeNumber(dtype);
  dtypeNumber(targetDtype);
  checkCast(dtype, targetDtype, place);
  const shape = checkShape(tensor, place, itemSize(dtype) > itemSize(targetDtype) ? dtype : targetDtype);
  const source = normalSide(
    pairs[pair]!.source,
    tensor.source,
    shape.length,
    dtype,
    `${place}, source`,
    tensor.name,
  );
  const target = normalSide(
    pairs[pair]!.target,
    tensor.target,
    shape.length,
    dtype,
    `${place}, target`,
    tensor.name,
  );
  const key = `${pair}|${shape.join()}|${dtype}|${targetDtype}|${source.key}|${target.key}`;
  let pattern = patternKeys.get(key);
  if (pattern === undefined) {
    pattern = patterns.push({ pair, shape, dtype, targetDtype, source, target, first: index, count: 0 }) - 1;
    patternKeys.set(key, pattern);
  }
  return { pair, shape, dtype, targetDtype, source, target, pattern };
}

/** The number of a kind: one, in however many forms it is written. */
function internKind(kind: TensorKind, kinds: TensorKind[], keys: Map<string, number>): number {
  const sides = [kind.source, kind.target].map(
    (side) => `${side.override ?? ""};${side.selectDim};${side.selectOf};${side.selectSizes?.join() ?? ""}`,
  );
  const key = `${kind.pair}|${kind.shape.join()}|${kind.dtype}|${kind.targetDtype}|${sides.join("|")}`;
  let number = keys.get(key);
  if (number === undefined) {
    number = kinds.push(kind) - 1;
    keys.set(key, number);
  }
  return number;
}

function checkShape(tensor: TensorInput, place: string, largest: DType): readonly number[] {
  const { shape, name } = tensor;
  if (shape.length > 8) {
    throw fail("TB_SHAPE", `${place}: a tensor has at most 8 dimensions, not ${shape.length}`, {
      tensor: name,
      shape,
    });
  }
  let elements = 1n;
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) {
      throw fail("TB_SHAPE", `${place}: a dimension cannot have the size ${size}`, { tensor: name, shape });
    }
    elements *= BigInt(size);
  }
  if (shape.length === 0 && isPacked(largest)) {
    throw fail("TB_SHAPE", `${place}: one element of ${largest} does not fill a whole byte`, {
      tensor: name,
      shape,
    });
  }
  const bytes = bytesOf(largest, elements);
  if (bytes > maxBytes) {
    throw fail("TB_SHAPE", `${place}: the tensor has more than 2^62 bytes`, { tensor: name, shape, bytes });
  }
  return [...shape];
}

/** How a tensor reads a strided shard, in numbers: 0 unnamed, 1 split, 2 order. */
export function readingNumber(reading: StridedShardReading | undefined): number {
  return reading === undefined ? 0 : reading === "split" ? 1 : 2;
}
