import { TensorBusError } from "../../errors.ts";
import { formatPlacement, type ShardPlacement, sumOf, unitOf } from "../../layout/index.ts";
import type { NormalInput } from "../input/normalize.ts";
import type { Image } from "./image.ts";
import { borrowPlanner, giveBack, type Planner, PlannerFault, plainError } from "./wasm.ts";

/** What a plan keeps to put questions to the planner. */
export interface Subject {
  readonly input: NormalInput;
  readonly image: Image;
  /** The channels of the world, once they were found. */
  table: Uint8Array | undefined;
}

/**
 * A planner that holds a plan, for one question; the next one about the same plan finds it there as a rule. `end` must be
 * called when the answer was read: it gives the memory back. After a failure it is dropped with its instance.
 */
export class Question {
  readonly planner: Planner;
  readonly #subject: Subject;
  #ended = false;

  constructor(subject: Subject) {
    this.#subject = subject;
    this.planner = borrowPlanner(subject);
    this.ask((planner) => {
      if (this.planner.holds(subject)) {
        this.planner.questions++;
        planner.resume();
        return;
      }
      const at = planner.begin(subject.image.bytes.length);
      this.planner.write(subject.image.bytes, at);
      planner.open(at);
      planner.keep();
      this.planner.nowHolds(subject);
    });
  }

  /** Finds the channels, or takes them from the last question. */
  withChannels(): this {
    if (this.planner.hasChannels) return this;
    this.ask((planner) => {
      let { table } = this.#subject;
      if (table === undefined) {
        planner.findChannels();
        const length = planner.tableLength() * 4;
        table = new Uint8Array(this.planner.buffer, planner.tableAt(), length).slice();
        this.#subject.table = table;
        planner.resume();
      }
      const at = planner.reserve(table.length);
      this.planner.write(table, at);
      planner.useTable(at);
      planner.keep();
    });
    this.planner.hasChannels = true;
    return this;
  }

  ask<T>(
    question: Parameters<Planner["call"]>[0] extends (exports: infer E) => unknown
      ? (exports: E) => T
      : never,
  ): T {
    try {
      return this.planner.call(question);
    } catch (error) {
      this.#ended = true;
      if (error instanceof PlannerFault) throw named(error, this.#subject.input);
      throw error;
    }
  }

  /** Views on the answers; valid until `end`, as long as nothing more is asked. */
  words(at: number, length: number): Uint32Array {
    return new Uint32Array(this.planner.buffer, at, length);
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    giveBack(this.planner);
  }
}

/** The first value of a `TB_PLAN_TOO_LARGE` that is not about memory: `assembly/arena.ts`. */
const ofChannels = -2n;
const ofChunks = -3n;
const ofRuns = -4n;

/** Puts names to the numbers of a fault. */
function named(fault: PlannerFault, input: NormalInput): TensorBusError {
  if (fault.code === "TB_STRIDED_SHARD") return stridedShardError(fault, input);
  if (fault.code === "TB_DTYPE") return packedError(fault, input);
  if (fault.code === "TB_PLACEMENT") return sizesError(fault, input);
  if (fault.code === "TB_STRIDES") return stridesError(fault, input);
  if (fault.code === "TB_PLAN_TOO_LARGE") {
    const [what, amount] = fault.values;
    const [unit, why] =
      what === ofChannels
        ? ["channels", `a stage has more than ${amount} channels`]
        : what === ofChunks
          ? ["chunks", `it has at least ${amount} chunks`]
          : what === ofRuns
            ? ["runs", `a strided shard cuts a dimension into at least ${amount} runs of indices`]
            : ["bytes", `it needs ${amount} bytes of memory`];
    return new TensorBusError("TB_PLAN_TOO_LARGE", `the plan is too large: ${why}`, {
      details: { [unit]: amount },
      cause: fault,
    });
  }
  return plainError(fault);
}

/** A cut of a packed type falls inside of a byte, or of the bytes that several elements share. */
function packedError(fault: PlannerFault, input: NormalInput): TensorBusError {
  const [index, which, dim, element] = fault.values.map(Number) as [number, number, number, number];
  const { shape, dtype, first } = input.patterns[index]!;
  const side = which === 0 ? "source" : "target";
  const tensor = input.names[first]!;
  const unit = unitOf(dtype);
  const where = element === shape[dim] ? "ends" : "is cut";
  return new TensorBusError(
    "TB_DTYPE",
    `tensor ${JSON.stringify(tensor)}, ${side}: dimension ${dim} of [${shape.join(", ")}] ${where} at element ${element}, inside of a byte: ${unit.elements} elements of ${dtype} lie in ${unit.bytes === 1 ? "a byte" : `${unit.bytes} bytes`}`,
    { details: { tensor, side, dim, element, dtype, shape }, cause: fault },
  );
}

/** The sizes of a shard do not add up to what they cut. */
function sizesError(fault: PlannerFault, input: NormalInput): TensorBusError {
  const [index, which, meshDim, extent] = fault.values.map(Number) as [number, number, number, number];
  const pattern = input.patterns[index]!;
  const side = which === 0 ? "source" : "target";
  const tensor = input.names[pattern.first]!;
  const placement = pattern[side].placements[meshDim] as ShardPlacement;
  const sum = sumOf(placement.sizes ?? []);
  return new TensorBusError(
    "TB_PLACEMENT",
    `tensor ${JSON.stringify(tensor)}, ${side}: the sizes of ${formatPlacement(placement)} on mesh dimension ${meshDim} add up to ${sum}, but what they cut has ${extent} (dimension ${placement.dim} of [${pattern.shape.join(", ")}])`,
    {
      details: {
        tensor,
        side,
        meshDim,
        placement: formatPlacement(placement),
        sum,
        extent,
        shape: pattern.shape,
      },
      cause: fault,
    },
  );
}

function stridedShardError(fault: PlannerFault, input: NormalInput): TensorBusError {
  const [index, which, dim, undecodable] = fault.values.map(Number);
  const pattern = input.patterns[index!]!;
  const side = which === 0 ? "source" : "target";
  const name = input.names[pattern.first]!;
  const readings = pattern[side].reading;
  const why =
    undecodable === 0
      ? 'its two readings differ; name one with stridedShard: "split" or "order"'
      : `no order of shards fits its split factors${readings === undefined ? ', so name stridedShard: "split"' : ""}`;
  return new TensorBusError(
    "TB_STRIDED_SHARD",
    `tensor ${JSON.stringify(name)}, ${side}: strided shards of dimension ${dim} of [${pattern.shape.join(", ")}]: ${why}`,
    { details: { tensor: name, side, dim, shape: pattern.shape, reading: readings }, cause: fault },
  );
}

function stridesError(fault: PlannerFault, input: NormalInput): TensorBusError {
  const [tensor, kind, dim, stride] = fault.values.map(Number);
  const name = input.names[tensor!]!;
  const side = kind === 0 ? "source" : "target";
  return new TensorBusError(
    "TB_STRIDES",
    `tensor ${JSON.stringify(name)}, ${side}: stride ${stride} of dimension ${dim} is out of range`,
    { details: { tensor: name, side, dim, stride }, cause: fault },
  );
}
