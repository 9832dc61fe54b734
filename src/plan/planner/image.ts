import {
  type DeviceMesh,
  type DType,
  dtypeNumber,
  itemSize,
  maxRanks,
  movedAs,
  partialOps,
  unitOf,
} from "../../layout/index.ts";
import type { Decisions } from "../input/decisions.ts";
import { type NormalInput, type Pattern, readingNumber } from "../input/normalize.ts";
import { groupings, type Routing } from "../input/routing.ts";
import { type NormalSide, subMeshBase } from "../input/sides.ts";
import { hostOf } from "../input/topology.ts";

const headerWords = 16;
const patternWords = 88;
const sideAt = 20;
const sideWords = 33;
const tensorWords = 6;
const placementNumbers = { replicate: 0, shard: 1, stridedShard: 2, partial: 3 } as const;
/** A shard with sizes: in place of a split factor stands where its sizes begin in the image. */
const sizedShard = 4n;

/** What `assembly/model.ts` reads: the plan's input as words. */
export interface Image {
  readonly bytes: Uint8Array;
  /** For each pattern, the contributions that one reduced value has; 1: nothing is partial. */
  readonly contributions: readonly number[];
}

/**
 * Lays the input out for the planner: tensors by class (pattern and sub-meshes), numbered within pattern and source
 * sub-mesh, with a run number that grows when the source layout changes from one tensor to the next that is walked.
 */
export function makeImage(input: NormalInput, { routing, order }: Decisions): Image {
  const tensorCount = input.names.length;
  const tensors = new Uint32Array(tensorCount * tensorWords);
  const { classes, classTensors } = fillTensors(input, tensors);
  numberRuns(input, order, tensors);
  const at = {
    mesh: headerWords * 4,
    hosts: 0,
    sizes: 0,
    pattern: 0,
    tensor: 0,
    classes: 0,
    classTensors: 0,
    order: 0,
  };
  let end = input.meshes.reduce((sum, mesh) => sum + meshWords(mesh) * 4, at.mesh);
  const section = (bytes: number) => {
    const start = end;
    end += Math.ceil(bytes / 8) * 8;
    return start;
  };
  at.hosts = input.topology === undefined ? 0 : section(input.world * 4);
  const sizes = new SizeLists(input.patterns);
  at.sizes = section(sizes.words.length * 8);
  at.pattern = section(input.patterns.length * patternWords * 8);
  at.tensor = section(tensors.byteLength);
  at.classes = section(classes.byteLength);
  at.classTensors = section(classTensors.byteLength);
  at.order = order === undefined ? 0 : section(order.byteLength);

  // All sections begin at multiples of 8 bytes; one buffer, since small plans are made by the thousand.
  const words = new Uint32Array(end / 4);
  words[0] = input.world;
  words[1] = input.meshes.length;
  words[2] = input.patterns.length;
  words[3] = tensorCount;
  words[4] = input.bucketBytes;
  words[5] = input.bucketsInFlight;
  words[6] = input.peersInFlight;
  words[7] = classes.length - 1;
  words[8] = at.mesh;
  words[9] = at.hosts;
  words[10] = at.pattern;
  words[11] = at.tensor;
  words[12] = at.classes;
  words[13] = at.classTensors;
  words[14] = at.order;
  let meshAt = at.mesh / 4;
  for (const mesh of input.meshes) {
    putMesh(words, meshAt, mesh);
    meshAt += meshWords(mesh);
  }
  const { topology } = input;
  if (topology !== undefined) {
    const numbers = new Numbering();
    for (let rank = 0; rank < input.world; rank++)
      words[at.hosts / 4 + rank] = numbers.of(hostOf(topology, rank));
  }
  const longs = new BigInt64Array(words.buffer);
  longs.set(sizes.words, at.sizes / 8);
  const sizesAt = (list: readonly number[]) => at.sizes + sizes.placeOf(list) * 8;
  input.patterns.forEach((pattern, index) => {
    putPattern(longs, at.pattern / 8 + index * patternWords, pattern, routing[index]!, sizesAt);
  });
  words.set(tensors, at.tensor / 4);
  words.set(classes, at.classes / 4);
  words.set(classTensors, at.classTensors / 4);
  if (order !== undefined) words.set(order, at.order / 4);
  const bytes = new Uint8Array(words.buffer);
  return { bytes, contributions: input.patterns.map(({ source }) => contributionsOf(source)) };
}

/** How many words a mesh has in the image: an even number, since records of 8 bytes follow. */
function meshWords(mesh: DeviceMesh): number {
  return 10 + Math.ceil(mesh.size / 2) * 2;
}

function putMesh(words: Uint32Array, at: number, mesh: DeviceMesh): void {
  words[at] = mesh.ndim;
  words[at + 1] = mesh.size;
  words.set(mesh.shape, at + 2);
  words.set(mesh.ranks, at + 10);
}

type SizesAt = (sizes: readonly number[]) => number;

function putPattern(
  words: BigInt64Array,
  at: number,
  pattern: Pattern,
  routing: Routing,
  sizesAt: SizesAt,
): void {
  const { source, target } = pattern;
  // Packed types are planned in units of whole bytes, along the last dimension.
  const unit = unitOf(pattern.dtype);
  const moved = [pattern.dtype, pattern.targetDtype].map(movedAs) as [DType, DType];
  const numbers = [
    source.layout.meshNumber,
    target.layout.meshNumber,
    pattern.shape.length,
    ...moved.map(dtypeNumber),
    unit.bytes,
    unitOf(pattern.targetDtype).bytes,
    groupings.indexOf(routing.groups),
    source.layout.op === undefined ? 0 : partialOps.indexOf(source.layout.op),
    divisorOf(source),
    unit.elements,
    unit.bytes / itemSize(moved[0]),
  ];
  numbers.forEach((number, index) => {
    words[at + index] = BigInt(number);
  });
  pattern.shape.forEach((size, dim) => {
    words[at + 12 + dim] = BigInt(size);
  });
  putSide(words, at + sideAt, source, sizesAt);
  putSide(words, at + sideAt + sideWords, target, sizesAt);
}

function putSide(words: BigInt64Array, at: number, side: NormalSide, sizesAt: SizesAt): void {
  words[at] = BigInt(readingNumber(side.reading));
  side.placements.forEach((placement, dim) => {
    words[at + 1 + dim] = BigInt(side.subShape[dim]!);
    words[at + 9 + dim] = BigInt(placementNumbers[placement.kind]);
    if (placement.kind === "shard" || placement.kind === "stridedShard") {
      words[at + 17 + dim] = BigInt(placement.dim);
    }
    if (placement.kind === "stridedShard") words[at + 25 + dim] = BigInt(placement.splitFactor);
    if (placement.kind === "shard" && placement.sizes !== undefined) {
      words[at + 9 + dim] = sizedShard;
      words[at + 25 + dim] = BigInt(sizesAt(placement.sizes));
    }
  });
}

/** The sizes by which patterns cut, one after the other; equal lists are one. */
class SizeLists {
  readonly words: BigInt64Array;
  readonly #places = new Map<string, number>();

  constructor(patterns: readonly Pattern[]) {
    const words: bigint[] = [];
    for (const { source, target } of patterns) {
      for (const placement of [...source.placements, ...target.placements]) {
        if (placement.kind !== "shard" || placement.sizes === undefined) continue;
        const key = placement.sizes.join();
        if (this.#places.has(key)) continue;
        this.#places.set(key, words.length);
        for (const size of placement.sizes) words.push(BigInt(size));
      }
    }
    this.words = BigInt64Array.from(words);
  }

  placeOf(sizes: readonly number[]): number {
    return this.#places.get(sizes.join())!;
  }
}

function contributionsOf(side: NormalSide): number {
  return side.placements.reduce(
    (product, placement, dim) => (placement.kind === "partial" ? product * side.subShape[dim]! : product),
    1,
  );
}

/** The product of the avg dimensions: what a fold is divided by. */
function divisorOf(side: NormalSide): number {
  return side.placements.reduce(
    (product, placement, dim) =>
      placement.kind === "partial" && placement.op === "avg" ? product * side.subShape[dim]! : product,
    1,
  );
}

function fillTensors(input: NormalInput, words: Uint32Array) {
  const { kinds, tensorKinds, sourceIndices, targetIndices } = input;
  const sources = new Numbering();
  const ordinals: number[] = [];
  const classNumbers = new Numbering();
  const classSizes: number[] = [];
  const classOf = new Uint32Array(tensorKinds.length);
  for (let tensor = 0; tensor < tensorKinds.length; tensor++) {
    const { pattern, source: side, target } = kinds[tensorKinds[tensor]!]!;
    const base = subMeshBase(side, sourceIndices[tensor]!);
    const targetBase = subMeshBase(target, targetIndices[tensor]!);
    const source = sources.of(pattern * maxRanks + base);
    const number = classNumbers.of(source * maxRanks + targetBase);
    const at = tensor * tensorWords;
    words[at] = pattern;
    words[at + 1] = base;
    words[at + 2] = targetBase;
    words[at + 3] = ordinals[source] ?? 0;
    words[at + 5] = number;
    ordinals[source] = (ordinals[source] ?? 0) + 1;
    classSizes[number] = (classSizes[number] ?? 0) + 1;
    classOf[tensor] = number;
  }
  const classes = new Uint32Array(classSizes.length + 1);
  classSizes.forEach((size, index) => {
    classes[index + 1] = classes[index]! + size;
  });
  const filled = classes.slice();
  const classTensors = new Uint32Array(tensorKinds.length);
  classOf.forEach((number, tensor) => {
    classTensors[filled[number]!++] = tensor;
  });
  return { classes, classTensors };
}

/** Numbers the runs of tensors of one source layout, as they are walked. */
function numberRuns(
  { kinds, tensorKinds }: NormalInput,
  order: Decisions["order"],
  words: Uint32Array,
): void {
  let run = 0;
  let last: { readonly side: NormalSide; readonly base: number } | undefined;
  for (let place = 0; place < tensorKinds.length; place++) {
    const tensor = order?.[place] ?? place;
    const side = kinds[tensorKinds[tensor]!]!.source;
    const base = words[tensor * tensorWords + 1]!;
    if (last === undefined || !isSameLayout(last.side, side) || base !== last.base) {
      if (last !== undefined) run++;
      last = { side, base };
    }
    words[tensor * tensorWords + 4] = run;
  }
}

function isSameLayout(a: NormalSide, b: NormalSide): boolean {
  return a === b || (a.layout === b.layout && a.key === b.key);
}

/** Numbers keys in the order in which they come. */
class Numbering {
  readonly #numbers = new Map<number, number>();

  of(key: number): number {
    let number = this.#numbers.get(key);
    if (number === undefined) {
      number = this.#numbers.size;
      this.#numbers.set(key, number);
    }
    return number;
  }
}
