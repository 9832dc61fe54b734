/** The memory of one rank of a case: filled with source values and guard bytes, compared byte for byte afterwards. */
import type { BatchTensor } from "../../../src/exec/bind-batch.ts";
import type { Memory } from "../../../src/memory/index.ts";
import { Random } from "../../kit/random.ts";
import {
  coordinateOfRank,
  positionsOf,
  sourceValues,
  type TransferCase,
  targetValues,
} from "../compliance/cases.ts";
import { indicesAt } from "./holdings.ts";
import { mix } from "./mix.ts";
import { formats, isFloat, type TestType } from "./numbers.ts";
import { allocate, type TestMemory, type TestMemoryKind, testDevices } from "./test-memory.ts";

interface LocalTensor {
  readonly tensor: number;
  readonly kind: "source" | "target";
  readonly type: TestType;
  readonly lists: readonly (readonly number[])[];
  readonly strides: readonly number[];
  readonly offset: number;
  readonly span: number;
  readonly position: number;
}

const guard = 0xa5;

export class RankMemory {
  readonly memory: Memory;
  readonly tensors: ReadonlyMap<number, BatchTensor>;
  readonly #case: TransferCase;
  readonly #locals: readonly LocalTensor[];
  readonly #local: TestMemory;
  readonly #bytes: Uint8Array;
  #expected = new Uint8Array(0);

  constructor(transfer: TransferCase, rank: number, kind: TestMemoryKind = "host") {
    this.#case = transfer;
    this.#locals = localTensors(transfer, rank);
    const end = this.#locals.reduce((most, { offset, span }) => Math.max(most, offset + span), 0);
    this.#local = allocate(kind, end + 64, testDevices.of(rank));
    this.memory = this.#local.memory;
    this.#bytes = this.#local.bytes;
    const tensors = new Map<number, Record<string, unknown>>();
    for (const { tensor, kind, offset, strides } of this.#locals) {
      const entry = tensors.get(tensor) ?? {};
      tensors.set(tensor, entry);
      entry[kind] = { memory: this.memory, offset: BigInt(offset) };
      if (transfer.strided) entry["strides"] = { ...(entry["strides"] as object), [kind]: strides };
    }
    this.tensors = tensors as ReadonlyMap<number, BatchTensor>;
  }

  /** Sources get the values of the round, all else guard bytes. */
  fill(round: number): void {
    this.#bytes.fill(guard);
    const view = new DataView(this.#bytes.buffer);
    for (const local of this.#locals) {
      if (local.kind !== "source") continue;
      const valueAt = sourceValues(this.#case, round, local.tensor, local.position);
      eachElement(local, (global, at) => formats[local.type].write(view, at, valueAt(global)));
    }
    this.#expected = new Uint8Array(this.#bytes);
    const expected = new DataView(this.#expected.buffer);
    for (const local of this.#locals) {
      if (local.kind !== "target") continue;
      const valueAt = targetValues(this.#case, round, local.tensor);
      eachElement(local, (global, at) => formats[local.type].write(expected, at, valueAt(global)));
    }
    this.#local.push();
  }

  /** Every byte: targets hold what they must, and nothing else changed. */
  check(): void {
    this.#local.pull();
    if (Buffer.compare(this.#bytes, this.#expected) === 0) return;
    const view = new DataView(this.#bytes.buffer);
    const expected = new DataView(this.#expected.buffer);
    for (const local of this.#locals) {
      const format = formats[local.type];
      eachElement(local, (global, at) => {
        const [is, must] = [format.read(view, at), format.read(expected, at)];
        const equalNaN = isFloat(local.type) && Number.isNaN(is) && Number.isNaN(must);
        if (!equalNaN && !Object.is(is, must)) {
          throw new Error(
            `${this.#case.name}: ${local.kind} of tensor ${local.tensor} at [${global}]: ${is}, not ${must}`,
          );
        }
        if (equalNaN)
          for (let byte = 0; byte < format.bytes; byte++) this.#expected[at + byte] = this.#bytes[at + byte]!;
      });
    }
    if (Buffer.compare(this.#bytes, this.#expected) !== 0) {
      throw new Error(`${this.#case.name}: bytes outside of tensors have changed`);
    }
  }

  close(): void {
    this.#local.close();
  }

  snapshot(): Uint8Array {
    this.#local.pull();
    return new Uint8Array(this.#bytes);
  }
  isUnchangedSince(snapshot: Uint8Array): boolean {
    this.#local.pull();
    return Buffer.compare(snapshot, this.#bytes) === 0;
  }
}

function localTensors(transfer: TransferCase, rank: number): LocalTensor[] {
  const random = new Random(mix(transfer.seed, 77, rank));
  const locals: LocalTensor[] = [];
  let end = 0;
  transfer.input.tensors.forEach(({ pair, shape, dtype, targetDtype }, tensor) => {
    for (const kind of ["source", "target"] as const) {
      const layout = transfer.input.pairs[pair]![kind];
      const coordinate = coordinateOfRank(layout, rank);
      if (coordinate === undefined) continue;
      const type = (kind === "source" ? dtype : (targetDtype ?? dtype)) as TestType;
      const lists = indicesAt(layout, shape, coordinate);
      const extents = lists.map(({ length }) => length);
      const strides = transfer.strided ? randomStrides(random, extents) : contiguous(extents);
      const elements = extents.includes(0)
        ? 0
        : extents.reduce((last, extent, dim) => last + (extent - 1) * strides[dim]!, 1);
      const { bytes } = formats[type];
      const offset = Math.ceil((end + random.integer(0, 40)) / bytes) * bytes;
      end = offset + elements * bytes;
      const position = kind === "source" ? positionsOf(layout).at(coordinate) : 0;
      locals.push({ tensor, kind, type, lists, strides, offset, span: elements * bytes, position });
    }
  });
  return locals;
}

/** Dimensions in a random order of nesting, with gaps between their steps. */
function randomStrides(random: Random, extents: readonly number[]): number[] {
  const strides = new Array<number>(extents.length);
  let step = random.chance(50) ? 1 : random.integer(2, 3);
  for (const dim of random.shuffle(extents.map((_, dim) => dim))) {
    strides[dim] = step;
    step = step * Math.max(1, extents[dim]!) + (random.chance(50) ? 0 : random.integer(1, 5));
  }
  return strides;
}

function contiguous(extents: readonly number[]): number[] {
  return extents.map((_, dim) => extents.slice(dim + 1).reduce((step, extent) => step * extent, 1));
}

/** In row-major order. `global` is the same array each time, since there are a hundred thousand elements. */
function eachElement(
  { lists, strides, offset, type }: LocalTensor,
  visit: (global: readonly number[], at: number) => void,
): void {
  const { bytes } = formats[type];
  const global = lists.map(() => 0);
  const visitFrom = (dim: number, element: number): void => {
    const list = lists[dim];
    if (list === undefined) {
      visit(global, offset + element * bytes);
      return;
    }
    for (let index = 0; index < list.length; index++) {
      global[dim] = list[index]!;
      visitFrom(dim + 1, element + index * strides[dim]!);
    }
  };
  visitFrom(0, 0);
}
