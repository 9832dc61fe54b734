/** One rank of a transfer case, in a process of its own: takes its memory, prepares all cases, and runs rounds. */
import { createExecutor, type Execution } from "../../src/exec/executor.ts";
import { holdingOf } from "../../src/layout/index.ts";
import { HostMemory } from "../../src/memory/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import { tcpStore } from "../../src/store/tcp-store.ts";
import { tcp } from "../../transports/tcp/index.ts";
import { groups, matrix, type TransferCase } from "./cases.ts";

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

class Rank {
  readonly #memory: HostMemory;
  readonly #cases: readonly TransferCase[];
  readonly #rank: number;
  readonly #tensors: number;
  readonly #executions: Execution[] = [];

  constructor(command: Command & { readonly kind: "prepare" }) {
    const group = groups[command.group]!;
    this.#cases = group.cases;
    this.#rank = command.rank;
    this.#tensors = command.tensors;
    this.#memory = HostMemory.allocate(BigInt(this.#localBytes(this.#cases[0]!)) * BigInt(command.tensors));
    this.#fill();
  }

  async prepare(command: Command & { readonly kind: "prepare" }): Promise<void> {
    const { sources, targets } = groups[command.group]!;
    const store = await tcpStore({
      host: "127.0.0.1",
      port: command.storePort,
      namespace: `bench${command.group}`,
    });
    const session = await tcp().open({ rank: this.#rank, world: sources + targets, store });
    session.register(this.#memory);
    for (const { name, pair } of this.#cases) {
      const plan = await planTransfer({
        pairs: { all: pair },
        tensors: Array.from({ length: this.#tensors }, (_, tensor) => ({
          name: `tensor${tensor}`,
          pair: "all",
          shape: [matrix.rows, matrix.columns],
          dtype: "float32",
        })),
      });
      const side = this.#holding(pair.source) === undefined ? "target" : "source";
      const bytes = BigInt(this.#localBytes(this.#cases[0]!));
      const tensors = new Map(
        Array.from({ length: this.#tensors }, (_, tensor) => [
          tensor,
          { [side]: { memory: this.#memory, offset: BigInt(tensor) * bytes } },
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

  #holding(layout: TransferCase["pair"]["source"]) {
    return holdingOf(layout, [matrix.rows, matrix.columns], this.#rank);
  }

  #localBytes({ pair }: TransferCase): number {
    const holding = this.#holding(pair.source) ?? this.#holding(pair.target)!;
    return holding.localShape.reduce((product, extent) => product * extent, 4);
  }

  /** Sources hold their values; targets are touched. */
  #fill(): void {
    const source = this.#holding(this.#cases[0]!.pair.source) !== undefined;
    this.#visit(this.#cases[0]!, (values, index, tensor, element) => {
      values[index] = source ? valueAt(tensor, element) : -1;
    });
  }

  #check(one: TransferCase): void {
    if (this.#holding(one.pair.target) === undefined) return;
    const contributions = one.pair.source.placements.some(({ kind }) => kind === "partial") ? 2 : 1;
    this.#visit(one, (values, index, tensor, element) => {
      const expected = contributions * valueAt(tensor, element);
      if (values[index] !== expected) {
        throw new Error(
          `${one.name}: element ${element} of tensor ${tensor} is ${values[index]}, not ${expected}`,
        );
      }
      values[index] = -1;
    });
  }

  #visit(
    { pair }: TransferCase,
    each: (values: Float32Array, index: number, tensor: number, element: number) => void,
  ): void {
    const holding = this.#holding(pair.source) ?? this.#holding(pair.target)!;
    const [rowRuns, columnRuns] = holding.runs as [(typeof holding.runs)[0], (typeof holding.runs)[0]];
    const bytes = this.#localBytes(this.#cases[0]!);
    for (let tensor = 0; tensor < this.#tensors; tensor++) {
      const values = this.#memory.view(Float32Array, BigInt(tensor) * BigInt(bytes), bytes / 4);
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

process.on("message", (command: Command) => {
  obey(command).then(
    (answer) => process.send!(answer),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
});
process.on("disconnect", () => process.exit());
