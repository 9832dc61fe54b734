import { expect, test } from "vitest";
import type { BatchTensor } from "../../src/exec/bind-batch.ts";
import { createExecutor } from "../../src/exec/executor.ts";
import {
  DeviceMesh,
  type DType,
  dtypes,
  holdingOf,
  isOpaque,
  itemSize,
  unitOf,
} from "../../src/layout/index.ts";
import { HostMemory } from "../../src/memory/index.ts";
import { type PlanInput, planTransfer, Replicate, Shard, StridedShard } from "../../src/plan/index.ts";
import { memoryStores } from "../../src/store/memory-store.ts";
import { memory } from "../../transports/memory/index.ts";
import { Random } from "../kit/random.ts";
import { product } from "../transport/kit/holdings.ts";

const world = 6;
const shape = [6, 48];

function inputOf(dtype: DType, bucketBytes: number): PlanInput {
  const target = {
    mesh: new DeviceMesh([2, 2], { ranks: [2, 3, 4, 5] }),
    placements: [Shard(1), Replicate()],
  };
  const source = {
    mesh: new DeviceMesh([3], { ranks: [0, 1, 2] }),
    placements: [StridedShard(0, 2)],
    stridedShard: "split" as const,
  };
  return {
    pairs: { p: { source, target } },
    tensors: [{ name: "w", pair: "p", shape, dtype }],
    strategy: "striped",
    bucketBytes,
  };
}

/** The bytes of a rank's local tensor, taken unit by unit from those of the whole. */
function localBytes(
  input: PlanInput,
  side: "source" | "target",
  rank: number,
  whole: Uint8Array,
): Uint8Array | undefined {
  const { dtype } = input.tensors[0]!;
  const holding = holdingOf(input.pairs["p"]![side], shape, rank);
  if (holding === undefined) return undefined;
  const { elements, bytes } = unitOf(dtype);
  const lists = holding.runs.map((runs, dim) =>
    runs.flatMap(({ start, length }) => {
      const step = dim === shape.length - 1 ? elements : 1;
      return Array.from({ length: length / step }, (_, index) => (start + index * step) / step);
    }),
  );
  const rowUnits = shape[1]! / elements;
  return Uint8Array.from(
    [...product(lists)].flatMap(([row, unit]) => {
      const at = (row! * rowUnits + unit!) * bytes;
      return [...whole.subarray(at, at + bytes)];
    }),
  );
}

test.each(dtypes.filter(isOpaque))("%s arrives byte for byte", async (dtype) => {
  const input = inputOf(dtype, 4096);
  const plan = await planTransfer(input);
  const random = new Random(dtype.length);
  const whole = Uint8Array.from({ length: shape[0]! * shape[1]! * itemSize(dtype) }, () =>
    random.integer(0, 255),
  );
  const transport = memory();
  const store = memoryStores();
  const ranks = await Promise.all(
    Array.from({ length: world }, async (_, rank) => {
      const session = await transport.open({ rank, world, store: store() });
      const source = localBytes(input, "source", rank, whole);
      const expected = localBytes(input, "target", rank, whole);
      const target = expected && new Uint8Array(expected.length);
      const [from, to] = [source, target].map((bytes) => bytes && HostMemory.over(bytes));
      const tensor: BatchTensor = {
        ...(from && { source: { memory: from, offset: 0n } }),
        ...(to && { target: { memory: to, offset: 0n } }),
      };
      for (const place of [from, to]) if (place !== undefined) session.register(place);
      return { session, tensor, target, expected };
    }),
  );
  const executions = await Promise.all(
    ranks.map(({ session, tensor }) =>
      createExecutor(session).prepare(plan, { key: "k", tensors: new Map([[0, tensor]]) }),
    ),
  );
  await Promise.all(executions.map((execution) => execution.run()));
  for (const { target, expected } of ranks) expect(target).toEqual(expected);
  expect(ranks.filter(({ expected }) => expected !== undefined)).toHaveLength(4);
  await Promise.all(executions.map((execution) => execution.release()));
  await Promise.all(ranks.map(({ session }) => session.close()));
});
