/** A batch as one client has it: its memory, and which registration of it stands. */
import { encodeTensorTable } from "../../../src/bus/queue/tensor-table.ts";
import type { HostMemory } from "../../../src/memory/host-memory.ts";
import type { SimulatedClient } from "../world/client.ts";
import type { Cluster } from "../world/cluster.ts";
import { type BatchPlan, type Launch, type LocalPart, partOf, ranksOf, type SideName } from "./scenario.ts";

export class Registration {
  readonly plan: BatchPlan;
  readonly client: SimulatedClient;
  readonly side: SideName;
  /** Of both sides. */
  readonly ranks: readonly number[];
  readonly memory: HostMemory;
  /** What it must hold while no call is under way; `undefined` if that is not known. */
  settled: Int32Array | undefined;
  /** A round has ended in doubt, and none has been completed since. */
  inDoubt = false;
  /** Of the agent's; `undefined` while it is not registered. */
  instance: bigint | undefined;
  /** Of the registration that stands, or stood last; unlike its number, of no other. */
  name = "";
  number = 0;
  readonly #key: bigint;
  readonly #part: LocalPart;

  constructor(cluster: Cluster, client: SimulatedClient, plan: BatchPlan) {
    const ranks = cluster.launch.sides[client.side];
    this.plan = plan;
    this.client = client;
    this.side = client.side;
    this.ranks = ranksOf(cluster.launch.sides);
    this.#part = partOf(plan.spreads[client.side], ranks.indexOf(client.rank), ranks.length);
    const { key, memory } = cluster.allocate(4 * plan.tensors * this.#part.globalIndex.length);
    this.memory = memory;
    this.#key = key;
  }

  get values(): Int32Array {
    const { buffer, byteOffset, byteLength } = (this.memory as unknown as { content: Uint8Array }).content;
    return new Int32Array(buffer, byteOffset, byteLength / 4);
  }

  /** Every element says whose call it was written for, and where it belongs. */
  fill(stamp: number): void {
    const { values } = this;
    const { globalIndex } = this.#part;
    for (let tensor = 0; tensor < this.plan.tensors; tensor++) {
      const [base, first] = [(stamp * 2 + tensor) * 256, tensor * globalIndex.length];
      for (let index = 0; index < globalIndex.length; index++)
        values[first + index] = base + globalIndex[index]!;
    }
  }

  /** True if that holds of each element; ends with the first of which it does not. */
  everyElement(holds: (value: number, tensor: number, globalIndex: number) => boolean): boolean {
    const { values } = this;
    const { globalIndex } = this.#part;
    let index = 0;
    for (let tensor = 0; index < values.length; tensor++) {
      for (let place = 0; place < globalIndex.length; place++, index++)
        if (!holds(values[index]!, tensor, globalIndex[place]!)) return false;
    }
    return true;
  }

  /** What RegisterTensors asks. */
  get body() {
    return this.#body(0);
  }

  /** The same of tensors that lie behind the end of their memory. */
  get misfit() {
    return this.#body(4 * 12 ** 4);
  }

  #body(shift: number) {
    const { shape, globalIndex } = this.#part;
    const [rows, columns] = shape.map(BigInt) as [bigint, bigint];
    const tensors = Array.from({ length: this.plan.tensors }, (_, tensor) => ({
      pair: this.plan.pair,
      dtype: "int32" as const,
      shape: [rows, columns],
      strides: [columns, 1n],
      region: 0,
      offset: BigInt(4 * tensor * globalIndex.length + shift),
    }));
    return {
      batch: this.plan.id,
      commit: this.plan.commit,
      regions: [{ kind: "host" as const, key: this.#key, bytes: this.memory.bytes }],
      tensors: encodeTensorTable(tensors),
    };
  }
}

/** Every client that stands on a side of a launch. */
export function* placesOf({ sides }: Launch): Generator<{ readonly side: SideName; readonly rank: number }> {
  for (const side of ["A", "B"] as const) for (const rank of sides[side]) yield { side, rank };
}
