/** One rank of a transfer case, in a process of its own: takes its memory, prepares all cases, and runs rounds. */
import { createExecutor, type Execution } from "../../src/exec/executor.ts";
import { holdingOf } from "../../src/layout/index.ts";
import { HostMemory, type NativeMemory, SharedMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { tcpStore } from "../../src/store/tcp-store.ts";
import { shm } from "../../transports/shm/index.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { ucx } from "../../transports/ucx/index.ts";
import { serve } from "../children.ts";
import {
  type BenchMemory,
  groups,
  matrix,
  type TransferCase,
  type TransferGroup,
  ucxTransports,
} from "./cases.ts";

export type Command =
  | {
      readonly kind: "prepare";
      readonly group: number;
      readonly rank: number;
      readonly tensors: number;
      readonly storePort: number;
    }
  | { readonly kind: "run"; readonly index: number; readonly check: boolean };

export type Answer =
  | { readonly kind: "prepared" }
  | { readonly kind: "done"; readonly stagingHighWater: number; readonly stagingBytes: number };

/** Small integers, whose sums are exact: what arrives can be compared. */
const valueAt = (tensor: number, element: number) => (tensor * 7919 + element) % 16_381;

/** A float32 as bfloat16, to the nearest, ties to even. */
const bits = new DataView(new ArrayBuffer(4));
function bfloat16(value: number): number {
  bits.setFloat32(0, value);
  const whole = bits.getUint32(0);
  return ((whole + 0x7fff + ((whole >>> 16) & 1)) >>> 16) & 0xffff;
}

type Values = Float32Array | Uint16Array;

class Rank {
  readonly #memories = new Map<BenchMemory, NativeMemory>();
  readonly #group: TransferGroup;
  readonly #cases: readonly TransferCase[];
  readonly #rank: number;
  readonly #tensors: number;
  readonly #executions: Execution[] = [];

  constructor(command: Command & { readonly kind: "prepare" }) {
    this.#group = groups[command.group]!;
    this.#cases = this.#group.cases;
    this.#rank = command.rank;
    this.#tensors = command.tensors;
    const bytes = BigInt(this.#localBytes(this.#cases[0]!)) * BigInt(command.tensors);
    for (const one of this.#cases) {
      const kind = this.#kindOf(one);
      if (this.#memories.has(kind)) continue;
      this.#memories.set(kind, kind === "host" ? HostMemory.allocate(bytes) : SharedMemory.create(bytes));
      this.#fill(one);
    }
  }

  async prepare(command: Command & { readonly kind: "prepare" }): Promise<void> {
    const { sources, targets, transport } = this.#group;
    const store = await tcpStore({
      host: "127.0.0.1",
      port: command.storePort,
      namespace: `bench${command.group}`,
    });
    const factories = { tcp, shm, ucx: () => ucx({ transports: ucxTransports }) };
    const session = await factories[transport]().open({ rank: this.#rank, world: sources + targets, store });
    for (const memory of this.#memories.values()) session.register(memory);
    for (const one of this.#cases) {
      const { name, pair, targetDtype = "float32" } = one;
      const memory = this.#memoryOf(one);
      const plan = await planTransfer({
        pairs: { all: pair },
        tensors: Array.from({ length: this.#tensors }, (_, tensor) => ({
          name: `tensor${tensor}`,
          pair: "all",
          shape: [matrix.rows, matrix.columns],
          dtype: "float32",
          targetDtype,
        })),
      });
      const side = this.#holding(pair.source) === undefined ? "target" : "source";
      const bytes = BigInt(this.#localBytes(this.#cases[0]!));
      const tensors = new Map(
        Array.from({ length: this.#tensors }, (_, tensor) => [
          tensor,
          { [side]: { memory, offset: BigInt(tensor) * bytes } },
        ]),
      );
      this.#executions.push(await createExecutor(session).prepare(plan, { key: name, tensors }));
    }
  }

  async run(index: number, check: boolean): Promise<Answer> {
    const execution = this.#executions[index]!;
    const report = await execution.run({ timeoutMs: 120_000 });
    if (check) this.#check(this.#cases[index]!);
    return {
      kind: "done",
      stagingHighWater: Number(report.stagingHighWater),
      stagingBytes: Number(execution.stats.stagingBytes),
    };
  }

  #kindOf({ memory }: TransferCase): BenchMemory {
    return memory ?? (this.#group.transport === "shm" ? "shared" : "host");
  }

  #memoryOf(one: TransferCase): NativeMemory {
    return this.#memories.get(this.#kindOf(one))!;
  }

  #holding(layout: TransferCase["pair"]["source"]) {
    return holdingOf(layout, [matrix.rows, matrix.columns], this.#rank);
  }

  #localBytes({ pair }: TransferCase): number {
    const holding = this.#holding(pair.source) ?? this.#holding(pair.target)!;
    return holding.localShape.reduce((product, extent) => product * extent, 4);
  }

  /** Sources hold their values; targets are touched. */
  #fill(one: TransferCase): void {
    const source = this.#holding(one.pair.source) !== undefined;
    this.#visit(one, Float32Array, (values, index, tensor, element) => {
      values[index] = source ? valueAt(tensor, element) : -1;
    });
  }

  #check(one: TransferCase): void {
    if (this.#holding(one.pair.target) === undefined) return;
    const contributions = one.pair.source.placements.some(({ kind }) => kind === "partial") ? 2 : 1;
    const cast = one.targetDtype === "bfloat16";
    this.#visit(one, cast ? Uint16Array : Float32Array, (values, index, tensor, element) => {
      const value = contributions * valueAt(tensor, element);
      const expected = cast ? bfloat16(value) : value;
      if (values[index] !== expected) {
        throw new Error(
          `${one.name}: element ${element} of tensor ${tensor} is ${values[index]}, not ${expected}`,
        );
      }
      values[index] = -1;
    });
  }

  #visit(
    one: TransferCase,
    type: typeof Float32Array | typeof Uint16Array,
    each: (values: Values, index: number, tensor: number, element: number) => void,
  ): void {
    const { pair } = one;
    const holding = this.#holding(pair.source) ?? this.#holding(pair.target)!;
    const [rowRuns, columnRuns] = holding.runs as [(typeof holding.runs)[0], (typeof holding.runs)[0]];
    const bytes = this.#localBytes(this.#cases[0]!);
    for (let tensor = 0; tensor < this.#tensors; tensor++) {
      const values: Values = this.#memoryOf(one).view(type, BigInt(tensor) * BigInt(bytes), bytes / 4);
      let index = 0;
      for (const rows of rowRuns) {
        for (let row = rows.start; row < rows.start + rows.length; row++) {
          for (const columns of columnRuns) {
            const first = row * matrix.columns + columns.start;
            for (let column = 0; column < columns.length; column++)
              each(values, index++, tensor, first + column);
          }
        }
      }
    }
  }
}

let rank: Rank;

async function obey(command: Command): Promise<Answer> {
  if (command.kind === "run") return rank.run(command.index, command.check);
  rank = new Rank(command);
  await rank.prepare(command);
  return { kind: "prepared" };
}

serve(obey);
