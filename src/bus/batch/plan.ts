/** From a batch's subject to a plan for each direction, the same on every rank. */
import { TensorBusError } from "../../errors.ts";
import { DeviceMesh, type Layout, Replicate } from "../../layout/index.ts";
import { type PairInput, Plan, type PlanInput, type TensorInput } from "../../plan/index.ts";
import { type BatchSubject, missingNames, type PlanPair } from "./subject.ts";
import type { TensorKind } from "./tensor-kinds.ts";

/** What was planned for a direction, or why it cannot be. */
export type PlannedDirection =
  | {
      readonly plan: Plan;
      /** How many of the target's tensors travel. */
      readonly tensors: number;
      /** The planned tensor of one of a side's tensors, from a rank of that side; `undefined` if it does not travel. */
      readonly plannedOf: (tensor: number, rank: number, side: 0 | 1) => number | undefined;
    }
  | { readonly refused: TensorBusError };

/** Plans the direction from one side (by its index in the subject) to the other. */
export function planDirection(subject: BatchSubject, source: 0 | 1): PlannedDirection {
  const target = source === 0 ? 1 : 0;
  const { sides, pairs, match } = subject;
  const { refusal } = sides[target];
  if (refusal !== undefined) {
    const message = `rank ${refusal.rank} cannot receive: ${refusal.message}`;
    return { refused: new TensorBusError("TB_ALIAS", message, { details: { rank: refusal.rank } }) };
  }
  const missing =
    match === "target" ? missingNames(subject, pairs[0]!.ranks[source][0]!, [target]) : undefined;
  if (missing !== undefined) return { refused: missing };
  const input = new DirectionInput(subject, source, target);
  try {
    const plan = Plan.of(input.planned());
    return {
      plan,
      tensors: input.count,
      plannedOf: (tensor, rank, side) => {
        const first = input.firstOf[side === source ? sides[side].otherOf[tensor]! : tensor];
        if (first === undefined || first < 0) return undefined;
        const { whole, ranks } = pairs[sides[side].tensors[tensor]!.pair]!;
        return first + (whole ? ranks[side].indexOf(rank) : 0);
      },
    };
  } catch (error) {
    if (error instanceof TensorBusError) return { refused: error };
    throw error;
  }
}

/** The planner's input for one direction, put together tensor by tensor in the order of the target's. */
class DirectionInput {
  /** For each of the target's tensors the first planned one, -1 if it does not travel. */
  readonly firstOf: Int32Array;
  /** How many of them travel. */
  count = 0;
  readonly #subject: BatchSubject;
  readonly #source: 0 | 1;
  readonly #target: 0 | 1;
  readonly #pairs: Record<string, PairInput> = {};
  /** Names of planned pairs, by pair of the batch and the numbers of both layouts. */
  readonly #names = new Map<string, string>();
  readonly #tensors: TensorInput[] = [];

  constructor(subject: BatchSubject, source: 0 | 1, target: 0 | 1) {
    this.#subject = subject;
    this.#source = source;
    this.#target = target;
    this.firstOf = new Int32Array(subject.sides[target].tensors.length).fill(-1);
  }

  /** `TB_BATCH_MISMATCH` if the sides have no tensor in common. */
  planned(): PlanInput {
    const { sides, batch, bucketBytes, planning } = this.#subject;
    const { tensors, otherOf } = sides[this.#target];
    tensors.forEach((_, tensor) => {
      if (otherOf[tensor]! < 0) return;
      this.firstOf[tensor] = this.#tensors.length;
      this.count += 1;
      this.#add(tensor, otherOf[tensor]!);
    });
    if (this.count === 0) {
      const names = sides.map(({ name }) => name).join(" and ");
      throw new TensorBusError("TB_BATCH_MISMATCH", `batch ${batch}: ${names} have no tensor in common`, {
        details: { batch },
      });
    }
    return { pairs: this.#pairs, tensors: this.#tensors, bucketBytes, ...planning };
  }

  /** One of the target's tensors, which is that one of the source's. */
  #add(tensor: number, from: number): void {
    const { sides, pairs } = this.#subject;
    const { pair: index, name } = sides[this.#target].tensors[tensor]!;
    const pair = pairs[index]!;
    const kindOf = (side: 0 | 1, at: number): TensorKind => {
      const table = sides[side].tableOf(pair.ranks[side][at]!);
      return table.kinds[table.kindOf[side === this.#source ? from : tensor]!]!;
    };
    if (!pair.whole) {
      const [source, target] = [kindOf(this.#source, 0), kindOf(this.#target, 0)];
      this.#tensors.push(tensorInput(name, this.#pairOf(index, source, target), source, target));
      return;
    }
    pair.ranks[0].forEach((_, at) => {
      const [source, target] = [kindOf(this.#source, at), kindOf(this.#target, at)];
      this.#tensors.push(tensorInput(`${name}#${at}`, this.#wholePair(pair, at), source, target));
    });
  }

  /** The planned pair of two layouts: called as the batch's pair, or numbered from the second one on. */
  #pairOf(index: number, source: TensorKind, target: TensorKind): string {
    const key = `${index} ${source.layout} ${target.layout}`;
    let name = this.#names.get(key);
    if (name === undefined) {
      const { sides, pairs } = this.#subject;
      const layoutOf = (side: 0 | 1, { layout }: TensorKind): Layout => {
        const found = layout === undefined ? undefined : sides[side].layouts[layout];
        if (found !== undefined) return found;
        throw new TensorBusError(
          "TB_VERSION",
          `the record of side ${sides[side].name} is malformed: a tensor of pair ${pairs[index]!.pair} has no layout`,
          { details: { side: sides[side].name, pair: pairs[index]!.pair } },
        );
      };
      name = this.#freeName(pairs[index]!.pair);
      this.#names.set(key, name);
      this.#pairs[name] = { source: layoutOf(this.#source, source), target: layoutOf(this.#target, target) };
    }
    return name;
  }

  #wholePair({ pair, ranks }: PlanPair, at: number): string {
    const name = `${pair}#${at}`;
    this.#pairs[name] ??= {
      source: whole(ranks[this.#source][at]!),
      target: whole(ranks[this.#target][at]!),
    };
    return name;
  }

  #freeName(pair: string): string {
    if (!(pair in this.#pairs)) return pair;
    const isTaken = (name: string) =>
      name in this.#pairs || this.#subject.pairs.some((each) => each.pair === name);
    for (let number = 2; ; number++) if (!isTaken(`${pair}~${number}`)) return `${pair}~${number}`;
  }
}

function tensorInput(name: string, pair: string, source: TensorKind, target: TensorKind): TensorInput {
  const { shape, dtype } = source;
  return { name, pair, shape, dtype, ...(dtype === target.dtype ? {} : { targetDtype: target.dtype }) };
}

function whole(rank: number): Layout {
  return { mesh: new DeviceMesh([1], { ranks: [rank] }), placements: [Replicate()] };
}
