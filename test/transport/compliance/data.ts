import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createExecutor } from "../../../src/exec/executor.ts";
import { DeviceMesh, partialOps, Replicate, Shard } from "../../../src/layout/index.ts";
import { HostMemory } from "../../../src/memory/index.ts";
import { planTransfer } from "../../../src/plan/index.ts";
import type { PlanInput } from "../../../src/plan/input/types.ts";
import { Random } from "../../kit/random.ts";
import type { TestType } from "../kit/numbers.ts";
import { type CaseOptions, castTypes, randomCase, type TransferCase } from "./cases.ts";
import { prepareCase, runCase, type Subject, type World } from "./world.ts";

const seedsEach = 6;

export function testData(subject: Subject): void {
  describe(`${subject.name}: data`, () => {
    let world: World;
    beforeAll(async () => {
      world = await subject.open(6);
    });
    afterAll(() => world?.[Symbol.asyncDispose]());

    const each = (name: string, options: CaseOptions, firstSeed: number, checksum = false) =>
      test(name, async () => {
        for (let seed = firstSeed; seed < firstSeed + seedsEach; seed++) {
          await runCase(world.sessions, randomCase(seed, options), { checksum });
        }
      });

    each("contiguous tensors of random layouts", { strided: false }, 100);
    each("strided tensors, both ends", { strided: true }, 200);
    each("casts", { types: castTypes }, 300);
    for (const [index, op] of partialOps.entries()) {
      const types: CaseOptions["types"] =
        op === "avg"
          ? [same("float32"), same("bfloat16"), ["float32", "bfloat16"]]
          : [same("float32"), same("float16"), same("int32"), ["bfloat16", "float32"]];
      each(`reduces by ${op}, in the order of the mesh`, { partial: op, types }, 400 + index * seedsEach);
    }
    each("one bucket and one peer in flight", { options: tight }, 500);
    each("one bucket and one peer in flight, reducing", { partial: "sum", options: tight }, 600);
    if (subject.capabilities.checksum) {
      each("checksums", {}, 700, true);
      each("checksums of contributions", { partial: "sum" }, 720, true);
    }

    test("many tiny buckets", async () => {
      await runCase(world.sessions, columnsToRows(256, 512, { bucketBytes: 4096 }));
    });

    test("ranks with nothing to do, and tensors without elements", async () => {
      await runCase(world.sessions, {
        ...columnsToRows(0, 7),
        input: {
          pairs: { only: { source: side([4], Shard(0)), target: side([5], Replicate()) } },
          tensors: [
            { name: "empty", pair: "only", shape: [0, 7], dtype: "float32" },
            { name: "scalar-like", pair: "only", shape: [1], dtype: "float32" },
          ],
        },
      });
      await runCase(world.sessions, {
        ...columnsToRows(0, 7),
        input: {
          pairs: { only: { source: side([0, 1], Shard(0)), target: side([1, 2], Shard(1)) } },
          tensors: [{ name: "empty", pair: "only", shape: [0, 3], dtype: "int16" }],
        },
      });
    });

    test("many rounds, posted in any order", async () => {
      const delays = new Random(9);
      await runCase(world.sessions, randomCase(31, { tensors: 3 }), { rounds: 12, delays });
      await runCase(world.sessions, randomCase(32, { partial: "sum" }), { rounds: 12, delays });
    });

    test("several prepared transfers at once", async () => {
      const cases = [randomCase(41), randomCase(42, { partial: "max" }), randomCase(43, { strided: true })];
      const prepared = await Promise.all(cases.map((transfer) => prepareCase(world.sessions, transfer)));
      for (let round = 0; round < 4; round++) {
        await Promise.all(prepared.map((one) => one.round({ delays: new Random(round) })));
      }
      for (const one of prepared) await one[Symbol.asyncDispose]();
    });

    // A copy of the memory in which the rows lie would be as large.
    test.skipIf(!subject.capabilities.memory.includes("host"))("offsets beyond 4 GiB", () => farApart(world));
  });
}

const same = (type: TestType) => [type, type] as const;
const tight = { bucketBytes: 4096, bucketsInFlight: 1, peersInFlight: 1 };

function side(ranks: readonly number[], ...placements: PlanInput["pairs"][string]["source"]["placements"]) {
  return { mesh: new DeviceMesh([ranks.length], { ranks }), placements };
}

/** Every rank of 0 to 5 sends to every other, and itself. */
export function columnsToRows(
  rows: number,
  columns: number,
  options: CaseOptions["options"] = {},
  ranks: readonly number[] = [0, 1, 2, 3, 4, 5],
): TransferCase {
  return {
    name: `${rows} x ${columns}`,
    seed: rows + columns,
    world: ranks.length,
    strided: false,
    input: {
      pairs: { all: { source: side(ranks, Shard(1)), target: side(ranks, Shard(0)) } },
      tensors: [{ name: "matrix", pair: "all", shape: [rows, columns], dtype: "float32" }],
      ...options,
    },
  };
}

/** Rows that lie 3 GiB apart, in memory of which only a few pages are ever touched. */
async function farApart({ sessions }: World): Promise<void> {
  const [columns, rowBytes] = [1500, 3 * 2 ** 30];
  const plan = await planTransfer({
    pairs: { only: { source: side([0], Replicate()), target: side([1], Replicate()) } },
    tensors: [{ name: "far", pair: "only", shape: [3, columns], dtype: "float32" }],
  });
  const strides = { source: [rowBytes / 4, 1], target: [rowBytes / 4, 1] };
  const memories = [0, 1].map(() => HostMemory.allocate(3 * rowBytes));
  const offset = BigInt(rowBytes / 2);
  const [from, to] = memories.map((memory) =>
    [0, 1, 2].map((row) => memory.view(Float32Array, offset + BigInt(row * rowBytes), columns)),
  ) as [Float32Array[], Float32Array[]];
  for (const [index, row] of from.entries()) {
    for (let column = 0; column < columns; column++) row[column] = index * columns + column;
  }
  const executions = await Promise.all(
    sessions.map((session, rank) => {
      const memory = memories[rank];
      if (memory !== undefined) session.register(memory);
      const place = memory === undefined ? undefined : { memory, offset };
      const tensor = rank === 0 ? { source: place!, strides } : { target: place!, strides };
      return createExecutor(session).prepare(plan, {
        key: "far apart",
        tensors: new Map(place === undefined ? [] : [[0, tensor]]),
      });
    }),
  );
  await Promise.all(executions.map((execution) => execution.run()));
  expect(to).toEqual(from);
  await Promise.all(executions.map((execution) => execution.release()));
  memories.forEach((memory, rank) => {
    sessions[rank]!.unregister(memory);
    memory.close();
  });
}
