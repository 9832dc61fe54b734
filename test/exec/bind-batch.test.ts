import { describe, expect, test } from "vitest";
import { type BatchTensors, bindBatch } from "../../src/exec/bind-batch.ts";
import { trafficOf } from "../../src/exec/program-chunks.ts";
import { HostMemory } from "../../src/memory/index.ts";
import {
  DeviceMesh,
  type Placement,
  planTransfer,
  Replicate,
  Shard,
  type TensorInput,
} from "../../src/plan/index.ts";

/** The batch of rank 0 of two colocated sides. */
async function bind(
  placements: readonly [Placement, Placement],
  tensors: BatchTensors,
  inputs: readonly Partial<TensorInput>[] = [{}],
) {
  const mesh = new DeviceMesh([2]);
  const plan = await planTransfer({
    pairs: {
      all: {
        source: { mesh, placements: [placements[0]] },
        target: { mesh, placements: [placements[1]] },
      },
    },
    tensors: inputs.map((input, index) => ({
      name: `tensor${index}`,
      pair: "all",
      shape: [8, 8],
      dtype: "float32",
      ...input,
    })),
  });
  const strides = new Map([...tensors].map(([tensor, { strides }]) => [tensor, strides ?? {}]));
  return bindBatch(plan.input, plan.program(0, { strides }), tensors);
}

const memory = HostMemory.allocate(1 << 16);
const at = (offset: number) => ({ memory, offset: BigInt(offset) });
const alias = { code: "TB_ALIAS" };

describe("a batch's aliases", () => {
  test("gathering in place is allowed: what is local stands where it belongs", async () => {
    const gather = (source: number) =>
      bind([Shard(0), Replicate()], new Map([[0, { source: at(source), target: at(0) }]]));
    expect(await gather(0)).toEqual([{ tensor: 0, source: at(0), target: at(0) }]);
    await expect(gather(4)).rejects.toMatchObject(alias);
    await expect(gather(128)).rejects.toMatchObject(alias);
    await expect(gather(252)).rejects.toMatchObject(alias);
    expect(await gather(256)).toHaveLength(1);
  });

  test("gathering columns in place is allowed with the strides of the whole", async () => {
    const strides = { source: [8, 1], target: [8, 1] };
    const gather = (source: number) =>
      bind([Shard(1), Replicate()], new Map([[0, { source: at(source), target: at(0), strides }]]));
    expect(await gather(0)).toHaveLength(1);
    await expect(gather(16)).rejects.toMatchObject(alias);
  });

  test("the same addresses in another type, or another order, are not nothing", async () => {
    const place = new Map([[0, { source: at(0), target: at(0) }]]);
    const same = [Shard(0), Shard(0)] as const;
    expect(await bind(same, place)).toHaveLength(1);
    await expect(bind(same, place, [{ targetDtype: "int32" }])).rejects.toMatchObject(alias);
    const strides = { source: [8, 1], target: [1, 4] };
    const turned = new Map([[0, { source: at(0), target: at(0), strides }]]);
    await expect(bind(same, turned)).rejects.toMatchObject(alias);
  });

  test("columns of two tensors interleave in one matrix, and tied tensors share what is not written", async () => {
    const strides = { source: [4, 1], target: [16, 1] };
    const columns = (second: number): BatchTensors =>
      new Map([
        [0, { source: at(4096), target: at(0), strides }],
        [1, { source: at(4096), target: at(second), strides }],
      ]);
    const two = [{ shape: [8, 8] }, { shape: [8, 8] }];
    expect(await bind([Shard(1), Replicate()], columns(32), two)).toHaveLength(2);
    await expect(bind([Shard(1), Replicate()], columns(28), two)).rejects.toMatchObject({
      ...alias,
      details: { otherKind: "target" },
    });
    const tied: BatchTensors = new Map([
      [0, { source: at(0), target: at(0) }],
      [1, { source: at(0), target: at(0) }],
    ]);
    expect(await bind([Shard(0), Shard(0)], tied, two)).toHaveLength(2);
  });

  test("a source that this plan does not read here is memory of the batch all the same", async () => {
    const unread = (source: number) =>
      bind(
        [Replicate(), Replicate()],
        new Map([
          [0, { source: at(0), target: at(4096) }],
          [1, { source: at(source), target: at(8192) }],
        ]),
        [{}, {}],
      );
    expect(await unread(512)).toHaveLength(2);
    await expect(unread(4096 + 252)).rejects.toMatchObject({
      ...alias,
      details: { target: "tensor0", other: "tensor1", otherKind: "source" },
    });
  });

  test("70,000 colocated tensors in place bind at once", async () => {
    const count = 70_000;
    const big = HostMemory.allocate(count * 128);
    const tensors = new Map(
      Array.from({ length: count }, (_, index) => {
        const place = { memory: big, offset: BigInt(index * 128) };
        return [index, { source: place, target: place }];
      }),
    );
    const inputs = Array.from({ length: count }, () => ({ shape: [8, 8], dtype: "float32" as const }));
    const bindings = await bind([Shard(0), Shard(0)], tensors, inputs);
    expect(bindings).toHaveLength(count);
  });
});

test("traffic is told by direction", async () => {
  const mesh = new DeviceMesh([2]);
  const plan = await planTransfer({
    pairs: { all: { source: { mesh, placements: [Shard(0)] }, target: { mesh, placements: [Shard(1)] } } },
    tensors: [{ name: "matrix", pair: "all", shape: [8, 8], dtype: "float32" }],
  });
  expect(trafficOf(plan.program(0))).toMatchObject({ bytesSent: 64n, bytesReceived: 64n, bytesCopied: 64n });
});
