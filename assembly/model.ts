/**
 * The image of a plan as the host lays it into memory (`src/plan/image.ts` writes it), and what is made of it
 * once: meshes with their inverse, patterns with their axes, overlaps and offset tables.
 */
import { alloc, allocZero } from "./arena";
import { amid, Axis, layOut, misfit, misfitLength, ORDER, sameRuns, SPLIT } from "./axis";
import { fail, TB_DTYPE, TB_PLACEMENT, TB_STRIDED_SHARD } from "./error";
import { Overlap, sweep } from "./overlap";
import { Mesh, Side } from "./side";
import { i32At, i64At, setI64, setU32, u32At } from "./words";

// Kinds of placements; 0 is Replicate.
const SHARD: i64 = 1;
const STRIDED: i64 = 2;
const PARTIAL: i64 = 3;
const SIZED: i64 = 4;

export { Mesh, Side };

/** Every replica gets its own from a source (0), all replicas are one group of stripes (1), or those of one host are (2). */
export const DIRECT: u32 = 0;
export const HOST: u32 = 2;

// Image header, u32 words.
const WORLD = 0;
const MESHES = 1;
const PATTERNS = 2;
const TENSORS = 3;
const BUCKET_BYTES = 4;
const BUCKETS_IN_FLIGHT = 5;
const PEERS_IN_FLIGHT = 6;
const CLASSES = 7;
const MESH_AT = 8;
const HOSTS_AT = 9;
const PATTERN_AT = 10;
const TENSOR_AT = 11;
const CLASS_AT = 12;
const CLASS_TENSORS_AT = 13;
const ORDER_AT = 14;

// Pattern record, i64 words.
const PATTERN_WORDS = 88;
const SHAPE_AT = 12;
const SIDE_AT = 20;
const SIDE_WORDS = 33;

// @ts-ignore: decorator
@unmanaged
export class Pattern {
  index: u32;
  ndim: u32;
  sourceDtype: u32;
  targetDtype: u32;
  sourceItem: i64;
  targetItem: i64;
  wireItem: i64;
  /** The larger of the wire items of the stages that share the cut. */
  cutItem: i64;
  operator: u32;
  divisor: i64;
  /** Elements of a packed type that fill whole bytes: the last dimension is planned in units of them; else 1. */
  unit: i64;
  /** Elements of the type as which a unit is moved. */
  movedPerUnit: i64;
  shape: usize;
  source: usize;
  target: usize;
  overlaps: usize;
  /** True if a rank can be on both sides. */
  meeting: bool;
  /** How target replicas share what they want: `DIRECT`, `HOST`, or 1 for all; and the stripes (`stripe.ts`). */
  striping: u32;
  stripes: usize;

  /** Bytes of an element on the wire. */
  @inline
  stageItem(stage: u32): i64 {
    return stage == 0 ? this.sourceItem : stage == 1 ? this.wireItem : this.targetItem;
  }

  /** What a reduced piece takes in the pool: 16- and 8-bit floats accumulate in float32. */
  poolBytes(elements: i64): i64 {
    const isSmallFloat = this.sourceDtype >= 2 && this.sourceDtype <= 5;
    return (elements * (isSmallFloat ? 4 : this.sourceItem) + 63) & ~63;
  }
}

export let world: u32 = 0;
export let tensorCount: u32 = 0;
export let patternCount: u32 = 0;
export let classCount: u32 = 0;
export let bucketBytes: i64 = 0;
export let bucketsInFlight: u32 = 0;
export let peersInFlight: u32 = 0;
/** The host of every rank, 0 without a topology. */
export let hosts: usize = 0;
/** Most dimensions of a tensor. */
export let dimsMost: u32 = 0;
/** True if an index in some tensor needs more than 32 bits. */
export let wide: bool = false;
/** True if a pattern has a reduce stage; the second, if one has a fanout stage. */
export let reduces: bool = false;
export let fans: bool = false;

/** How many kinds of sides there are (`Side.kind`). */
export let sideKindCount: u32 = 0;
let sideKinds: usize = 0;
let image: usize = 0;
let meshCount: u32 = 0;
let meshes: usize = 0;
let patterns: usize = 0;
let tensors: usize = 0;
/** Tensors in the order in which they are walked; 0: in their own. */
let walkOrder: usize = 0;
let classes: usize = 0;
let classTensors: usize = 0;
let axisList: usize = 0;
let overlapList: usize = 0;
/** For each pair of meshes: 0 unknown, 1 apart, 2 sharing a rank. */
let meetings: usize = 0;

const TENSOR_BYTES: usize = 24;

export function loadImage(at: usize): void {
  image = at;
  world = u32At(image, WORLD);
  meshCount = u32At(image, MESHES);
  patternCount = u32At(image, PATTERNS);
  tensorCount = u32At(image, TENSORS);
  classCount = u32At(image, CLASSES);
  bucketBytes = u32At(image, BUCKET_BYTES);
  bucketsInFlight = u32At(image, BUCKETS_IN_FLIGHT);
  peersInFlight = u32At(image, PEERS_IN_FLIGHT);
  hosts = u32At(image, HOSTS_AT) == 0 ? 0 : image + u32At(image, HOSTS_AT);
  tensors = image + u32At(image, TENSOR_AT);
  walkOrder = u32At(image, ORDER_AT) == 0 ? 0 : image + u32At(image, ORDER_AT);
  classes = image + u32At(image, CLASS_AT);
  classTensors = image + u32At(image, CLASS_TENSORS_AT);
  axisList = 0;
  overlapList = 0;
  sideKindCount = 0;
  dimsMost = 0;
  wide = false;
  reduces = false;
  fans = false;
  loadMeshes(image + u32At(image, MESH_AT));
  meetings = allocZero(meshCount * meshCount);
  patterns = alloc((<usize>patternCount) << 2);
  sideKinds = alloc((<usize>patternCount) << 3);
  for (let index: u32 = 0; index < patternCount; index++) {
    const record = image + u32At(image, PATTERN_AT) + <usize>index * PATTERN_WORDS * 8;
    setU32(patterns, index, <u32>loadPattern(record, index));
  }
}

function loadMeshes(at: usize): void {
  meshes = alloc((<usize>meshCount) << 2);
  for (let index: u32 = 0; index < meshCount; index++) {
    const mesh = changetype<Mesh>(alloc(offsetof<Mesh>()));
    mesh.ndim = load<u32>(at);
    mesh.size = load<u32>(at, 4);
    mesh.shape = at + 8;
    mesh.ranks = at + 40;
    at += 40 + ((<usize>mesh.size * 4 + 7) & ~7);
    mesh.strides = alloc(32);
    let stride: u32 = 1;
    for (let dim = mesh.ndim; dim > 0; dim--) {
      setU32(mesh.strides, dim - 1, stride);
      stride *= u32At(mesh.shape, dim - 1);
    }
    mesh.indexOf = alloc((<usize>world) << 2);
    memory.fill(mesh.indexOf, 0xff, (<usize>world) << 2);
    for (let position: u32 = 0; position < mesh.size; position++) {
      setU32(mesh.indexOf, u32At(mesh.ranks, position), position);
    }
    setU32(meshes, index, <u32>changetype<usize>(mesh));
  }
}

function loadPattern(record: usize, index: u32): usize {
  const pattern = changetype<Pattern>(alloc(offsetof<Pattern>()));
  const sourceMesh = <u32>i64At(record, 0);
  const targetMesh = <u32>i64At(record, 1);
  pattern.index = index;
  pattern.ndim = <u32>i64At(record, 2);
  pattern.sourceDtype = <u32>i64At(record, 3);
  pattern.targetDtype = <u32>i64At(record, 4);
  pattern.sourceItem = i64At(record, 5);
  pattern.targetItem = i64At(record, 6);
  pattern.wireItem = min(pattern.sourceItem, pattern.targetItem);
  pattern.striping = <u32>i64At(record, 7);
  pattern.stripes = 0;
  pattern.operator = <u32>i64At(record, 8);
  pattern.divisor = i64At(record, 9);
  pattern.unit = i64At(record, 10);
  pattern.movedPerUnit = i64At(record, 11);
  pattern.shape = record + SHAPE_AT * 8;
  pattern.source = loadSide(pattern, record + SIDE_AT * 8, sourceMesh, 0);
  pattern.target = loadSide(pattern, record + (SIDE_AT + SIDE_WORDS) * 8, targetMesh, 1);
  pattern.meeting = meet(sourceMesh, targetMesh);
  const source = changetype<Side>(pattern.source);
  const target = changetype<Side>(pattern.target);
  pattern.cutItem = source.contributions > 1 ? pattern.sourceItem : pattern.wireItem;
  if (source.contributions > 1) reduces = true;
  if (pattern.striping != DIRECT) fans = true;
  dimsMost = max(dimsMost, pattern.ndim);
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    if (i64At(pattern.shape, dim) > <i64>u32.MAX_VALUE) wide = true;
  }
  pattern.overlaps = alloc((<usize>pattern.ndim) << 2);
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    setU32(pattern.overlaps, dim, <u32>findOverlap(u32At(source.axes, dim), u32At(target.axes, dim)));
  }
  return changetype<usize>(pattern);
}

function meet(a: u32, b: u32): bool {
  const at = meetings + a * meshCount + b;
  if (load<u8>(at) == 0) {
    const one = changetype<Mesh>(u32At(meshes, a));
    const other = changetype<Mesh>(u32At(meshes, b));
    let shared: u8 = 1;
    for (let position: u32 = 0; position < one.size && shared == 1; position++) {
      if (i32At(other.indexOf, u32At(one.ranks, position)) >= 0) shared = 2;
    }
    store<u8>(at, shared);
  }
  return load<u8>(at) == 2;
}

function loadSide(pattern: Pattern, words: usize, mesh: u32, which: i32): usize {
  const side = changetype<Side>(alloc(offsetof<Side>()));
  side.mesh = u32At(meshes, mesh);
  const ndim = changetype<Mesh>(side.mesh).ndim;
  side.shape = alloc(32);
  side.shards = alloc(32);
  side.weights = alloc(32);
  for (let dim: u32 = 0; dim < ndim; dim++) {
    setU32(side.shape, dim, <u32>i64At(words, 1 + dim));
    const kind = i64At(words, 9 + dim);
    const cuts = kind == SHARD || kind == STRIDED || kind == SIZED;
    setU32(side.shards, dim, <u32>(cuts ? <i32>i64At(words, 17 + dim) : kind == PARTIAL ? -2 : -1));
  }
  for (let dim = ndim; dim > 0; dim--) {
    let weight: u32 = 1;
    for (let later = dim; later < ndim; later++) {
      if (u32At(side.shards, later) == u32At(side.shards, dim - 1)) weight *= u32At(side.shape, later);
    }
    setU32(side.weights, dim - 1, weight);
  }
  side.axes = alloc((<usize>pattern.ndim) << 2);
  side.groupOffsets = alloc((<usize>pattern.ndim) << 2);
  for (let dim: u32 = 0; dim < pattern.ndim; dim++) {
    setU32(side.axes, dim, <u32>findAxis(pattern, side, words, <i32>dim, ndim, which));
    setU32(side.groupOffsets, dim, <u32>offsetsOf(side, <i32>dim));
  }
  side.replicas = countOf(side, -1);
  side.replicaOffsets = offsetsOf(side, -1);
  side.contributions = countOf(side, -2);
  side.contributionOffsets = offsetsOf(side, -2);
  number(side);
  return changetype<usize>(side);
}

/** Sets the numbers of what a side has in common with others. */
function number(side: Side): void {
  side.kind = sideKindCount;
  side.subMesh = sideKindCount;
  for (let at: u32 = 0; at < sideKindCount; at++) {
    const known = changetype<Side>(u32At(sideKinds, at));
    if (!isOnSame(known, side)) continue;
    side.subMesh = known.subMesh;
    if (!replicatesAlike(known, side)) continue;
    side.kind = at;
    return;
  }
  setU32(sideKinds, sideKindCount++, <u32>changetype<usize>(side));
}

function isOnSame(one: Side, other: Side): bool {
  if (one.mesh != other.mesh) return false;
  return memory.compare(one.shape, other.shape, (<usize>changetype<Mesh>(one.mesh).ndim) << 2) == 0;
}

function replicatesAlike(one: Side, other: Side): bool {
  for (let dim: u32 = 0; dim < changetype<Mesh>(one.mesh).ndim; dim++) {
    if (min(i32At(one.shards, dim), 0) != min(i32At(other.shards, dim), 0)) return false;
  }
  return true;
}

function countOf(side: Side, shards: i32): u32 {
  let count: u32 = 1;
  for (let dim: u32 = 0; dim < changetype<Mesh>(side.mesh).ndim; dim++) {
    if (i32At(side.shards, dim) == shards) count *= u32At(side.shape, dim);
  }
  return count;
}

/** Offsets of all coordinates on the mesh dimensions that shard one tensor dimension, row-major. */
function offsetsOf(side: Side, shards: i32): usize {
  const mesh = changetype<Mesh>(side.mesh);
  const count = countOf(side, shards);
  const offsets = alloc((<usize>count) << 2);
  setU32(offsets, 0, 0);
  let filled: u32 = 1;
  for (let dim: u32 = 0; dim < mesh.ndim; dim++) {
    if (i32At(side.shards, dim) != shards) continue;
    const size = u32At(side.shape, dim);
    const stride = u32At(mesh.strides, dim);
    // From the last entry down, so that what is still to be read is not overwritten.
    for (let entry = filled; entry > 0; entry--) {
      const base = u32At(offsets, entry - 1);
      for (let step = size; step > 0; step--) {
        setU32(offsets, (entry - 1) * size + step - 1, base + (step - 1) * stride);
      }
    }
    filled *= size;
  }
  return offsets;
}

function findAxis(pattern: Pattern, side: Side, words: usize, dim: i32, ndim: u32, which: i32): usize {
  const sizes = alloc(32);
  const factors = alloc(64);
  const cuts = allocZero(32);
  const meshDims = alloc(32);
  let dims: u32 = 0;
  let strided = false;
  for (let meshDim: u32 = 0; meshDim < ndim; meshDim++) {
    if (i32At(side.shards, meshDim) != dim) continue;
    const kind = i64At(words, 9 + meshDim);
    setU32(sizes, dims, u32At(side.shape, meshDim));
    setI64(factors, dims, kind == STRIDED ? i64At(words, 25 + meshDim) : 0);
    if (kind == SIZED) setU32(cuts, dims, <u32>image + <u32>i64At(words, 25 + meshDim));
    if (kind == STRIDED) strided = true;
    setU32(meshDims, dims++, meshDim);
  }
  const length = i64At(pattern.shape, dim);
  const reading = <i32>i64At(words, 0);
  const first = reading == 0 || !strided ? SPLIT : reading;
  const unit = <u32>dim + 1 == pattern.ndim ? pattern.unit : 1;
  const axis = internAxis(length, first, dims, sizes, factors, cuts, unit);
  const isBoth = strided && reading == 0 && misfit < 0 && amid < 0;
  const other = isBoth ? internAxis(length, ORDER, dims, sizes, factors, cuts, unit) : axis;
  if (misfit >= 0) fail(TB_PLACEMENT, pattern.index, which, u32At(meshDims, misfit), misfitLength);
  if (amid >= 0) fail(TB_DTYPE, pattern.index, which, dim, amid);
  if (axis == 0 || other == 0) fail(TB_STRIDED_SHARD, pattern.index, which, dim, 1);
  if (axis != other && !sameRuns(changetype<Axis>(axis), changetype<Axis>(other))) {
    fail(TB_STRIDED_SHARD, pattern.index, which, dim, 0);
  }
  return axis;
}

/** The axis of these properties, made once; 0 if its reading has no meaning. */
function internAxis(
  length: i64,
  reading: i32,
  dims: u32,
  sizes: usize,
  factors: usize,
  cuts: usize,
  unit: i64,
): usize {
  for (let at = axisList; at != 0; at = changetype<Axis>(at).next) {
    const axis = changetype<Axis>(at);
    if (
      axis.length == length &&
      axis.reading == reading &&
      axis.dims == dims &&
      axis.unit == unit &&
      memory.compare(axis.sizes, sizes, (<usize>dims) << 2) == 0 &&
      memory.compare(axis.factors, factors, (<usize>dims) << 3) == 0 &&
      memory.compare(axis.cuts, cuts, (<usize>dims) << 2) == 0
    ) {
      return at;
    }
  }
  const axis = changetype<Axis>(alloc(offsetof<Axis>()));
  axis.length = length;
  axis.reading = reading;
  axis.dims = dims;
  axis.sizes = sizes;
  axis.factors = factors;
  axis.cuts = cuts;
  axis.unit = unit;
  if (!layOut(axis)) return 0;
  axis.next = axisList;
  axisList = changetype<usize>(axis);
  return axisList;
}

function findOverlap(source: usize, target: usize): usize {
  for (let at = overlapList; at != 0; at = changetype<Overlap>(at).next) {
    const overlap = changetype<Overlap>(at);
    if (overlap.source == source && overlap.target == target) return at;
  }
  const overlap = changetype<Overlap>(alloc(offsetof<Overlap>()));
  overlap.source = source;
  overlap.target = target;
  sweep(overlap);
  overlap.next = overlapList;
  overlapList = changetype<usize>(overlap);
  return overlapList;
}

export function patternAt(index: u32): Pattern {
  return changetype<Pattern>(u32At(patterns, index));
}
/**
 * The tensor that is walked at a place: those that replicas hand on to each other come first, so that the buckets that
 * others wait for are the first of their channels.
 */
export function tensorAt(place: u32): u32 {
  return walkOrder == 0 ? place : u32At(walkOrder, place);
}
export function tensorPattern(tensor: u32): u32 {
  return load<u32>(tensors + <usize>tensor * TENSOR_BYTES);
}
export function tensorSourceBase(tensor: u32): u32 {
  return load<u32>(tensors + <usize>tensor * TENSOR_BYTES, 4);
}
export function tensorTargetBase(tensor: u32): u32 {
  return load<u32>(tensors + <usize>tensor * TENSOR_BYTES, 8);
}
/** The tensor's number among those of its pattern and source sub-mesh. */
export function tensorOrdinal(tensor: u32): u32 {
  return load<u32>(tensors + <usize>tensor * TENSOR_BYTES, 12);
}
/** Grows by one when the source layout changes from one tensor to the next. */
export function tensorRun(tensor: u32): u32 {
  return load<u32>(tensors + <usize>tensor * TENSOR_BYTES, 16);
}
/** The class that a tensor belongs to. */
export function tensorClass(tensor: u32): u32 {
  return load<u32>(tensors + <usize>tensor * TENSOR_BYTES, 20);
}
/** Tensors of one pattern and one sub-mesh on each side are a class; these are its tensors, ascending. */
export function classFirst(index: u32): u32 {
  return u32At(classes, index);
}
export function classTensor(at: u32): u32 {
  return u32At(classTensors, at);
}
