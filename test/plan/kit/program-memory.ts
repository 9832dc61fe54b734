import { type DType, itemSize } from "../../../src/layout/index.ts";
import type { LocalStrides, PlanInput } from "../../../src/plan/input/types.ts";
import type { Random } from "../../kit/random.ts";
import type { NaiveHolding, NaiveSide } from "./naive-holdings.ts";
import type { NaiveTensor } from "./naive-planner.ts";
import { fold } from "./simulator.ts";
import { cast, decode, encode } from "./values.ts";

type Kind = "source" | "target";

/** What no tensor holds: bytes of it between the elements of a strided target must stay. */
const untouched = 0xcc;

/** The bytes of a wire: narrower of both types, at equal width the target's. */
export function wireType(source: DType, target: DType): DType {
  return itemSize(source) < itemSize(target) ? source : target;
}

function contiguousStrides(shape: readonly number[]): number[] {
  return shape.map((_, dim) => shape.slice(dim + 1).reduce((a, b) => a * b, 1));
}

/** Strides of a tensor whose dimensions lie in any order, with gaps. */
function randomStrides(shape: readonly number[], random: Random): number[] {
  const order = random.shuffle(shape.map((_, dim) => dim));
  const strides = shape.map(() => 0);
  let step = 1 + random.below(2);
  for (const dim of order) {
    strides[dim] = step;
    step = step * Math.max(1, shape[dim]!) + random.below(3);
  }
  return strides;
}

/** The local tensors of all ranks, strided or not, sources filled. */
export class LocalMemory {
  readonly #input: PlanInput;
  readonly #tensors: readonly NaiveTensor[];
  readonly #salt: number;
  readonly #bytes = new Map<string, Uint8Array>();
  readonly #strides = new Map<string, readonly number[]>();

  constructor(input: PlanInput, tensors: readonly NaiveTensor[], random: Random) {
    this.#input = input;
    this.#tensors = tensors;
    this.#salt = random.below(1 << 20);
    for (const [tensor, sides] of tensors.entries()) {
      for (const kind of ["source", "target"] as const) {
        for (const holding of sides[kind].byRank.values()) this.#allocate(tensor, kind, holding, random);
      }
    }
  }

  of(rank: number, tensor: number, kind: Kind): Uint8Array {
    const bytes = this.#bytes.get(`${rank}:${tensor}:${kind}`);
    if (bytes === undefined) throw new Error(`rank ${rank} has no ${kind} of tensor ${tensor}`);
    return bytes;
  }

  /** In the form that `plan.program` takes; what is contiguous is left out. */
  stridesOf(rank: number): Map<number, LocalStrides> {
    const strides = new Map<number, LocalStrides>();
    this.#tensors.forEach((_, tensor) => {
      const source = this.#strides.get(`${rank}:${tensor}:source`);
      const target = this.#strides.get(`${rank}:${tensor}:target`);
      if (source === undefined && target === undefined) return;
      strides.set(tensor, { ...(source && { source }), ...(target && { target }) });
    });
    return strides;
  }

  /** The strides in use, contiguous ones too. */
  strides(rank: number, tensor: number, kind: Kind): readonly number[] {
    const { localShape } = this.#tensors[tensor]![kind].byRank.get(rank)!;
    return this.#strides.get(`${rank}:${tensor}:${kind}`) ?? contiguousStrides(localShape);
  }

  /** Throws if a target differs from what it should hold, or a byte between its elements was written. */
  checkTargets(): void {
    for (const [tensor, { source, target }] of this.#tensors.entries()) {
      for (const holding of target.byRank.values()) {
        const bytes = this.of(holding.rank, tensor, "target");
        const expected = new Uint8Array(bytes.length).fill(untouched);
        this.#places(tensor, "target", holding).forEach((at, element) => {
          expected.set(this.#expected(source, tensor, holding.ids[element]!), at);
        });
        const wrong = bytes.findIndex((byte, at) => byte !== expected[at]);
        if (wrong >= 0)
          throw new Error(
            `byte ${wrong} of tensor ${tensor} on rank ${holding.rank} is ${bytes[wrong]}, not ${expected[wrong]}`,
          );
      }
    }
  }

  #allocate(tensor: number, kind: Kind, holding: NaiveHolding, random: Random): void {
    const key = `${holding.rank}:${tensor}:${kind}`;
    if (random.below(3) > 0) this.#strides.set(key, randomStrides(holding.localShape, random));
    const places = this.#places(tensor, kind, holding);
    const size = itemSize(this.#type(tensor, kind));
    const bytes = new Uint8Array(places.length === 0 ? 0 : Math.max(...places) + size).fill(untouched);
    this.#bytes.set(key, bytes);
    if (kind === "target") return;
    const member = holding.group.indexOf(holding.rank);
    places.forEach((at, element) => {
      bytes.set(this.#sourceValue(tensor, holding.ids[element]!, member), at);
    });
  }

  #places(tensor: number, kind: Kind, { rank, localShape }: NaiveHolding): number[] {
    const size = itemSize(this.#type(tensor, kind));
    let places = [0];
    this.strides(rank, tensor, kind).forEach((stride, dim) => {
      places = places.flatMap((at) =>
        Array.from({ length: localShape[dim]! }, (_, index) => at + index * stride * size),
      );
    });
    return places;
  }

  #type(tensor: number, kind: Kind): DType {
    const { dtype, targetDtype } = this.#input.tensors[tensor]!;
    return kind === "source" ? dtype : (targetDtype ?? dtype);
  }

  /** Any bytes where no value is formed on the way, else a small number. */
  #sourceValue(tensor: number, id: number, member: number): Uint8Array {
    const type = this.#type(tensor, "source");
    const hash = Math.imul(id + 1, 0x9e3779b1) ^ Math.imul(tensor + this.#salt, 0x85ebca6b);
    if (this.#tensors[tensor]!.source.op !== undefined) {
      const mixed = (hash ^ Math.imul(member + 1, 0xc2b2ae35)) >>> 16;
      return encode(type, mixed % 5 === 0 ? 2 : 1);
    }
    if (type !== this.#type(tensor, "target")) return encode(type, (hash >>> 16) % 8);
    return new Uint8Array(new Int32Array([hash, id]).buffer).slice(0, itemSize(type));
  }

  #expected(source: NaiveSide, tensor: number, id: number): Uint8Array {
    const from = this.#type(tensor, "source");
    const to = this.#type(tensor, "target");
    const wire = wireType(from, to);
    if (source.op === undefined) return cast(wire, to, cast(from, wire, this.#sourceValue(tensor, id, 0)));
    const { group } = source.byRank.values().next().value!;
    const values = group.map((_, member) => decode(from, this.#sourceValue(tensor, id, member)));
    return cast(wire, to, cast(from, wire, encode(from, fold(source.op, values, source.divisor))));
  }
}
