import { describe, expect, it } from "vitest";
import {
  DeviceMesh,
  Partial,
  type Placement,
  type PlanInput,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
  type TensorInput,
} from "../../src/plan/index.ts";

const range = (first: number, count: number) => Array.from({ length: count }, (_, index) => first + index);
const on = (shape: readonly number[], placements: readonly Placement[], first = 0) => ({
  mesh: new DeviceMesh(shape, {
    ranks: range(
      first,
      shape.reduce((a, b) => a * b, 1),
    ),
  }),
  placements,
});
const weight = (shape: readonly number[], changes: object = {}): TensorInput => ({
  name: "w",
  pair: "p",
  shape,
  dtype: "float32",
  ...changes,
});
const pair = (
  source: PlanInput["pairs"][string]["source"],
  target: PlanInput["pairs"][string]["target"],
) => ({
  p: { source, target },
});

/** An input, its digest, and a hash of its chunks and buckets: what no engine, machine or change of code may alter. */
const pinned: readonly (readonly [string, PlanInput])[] = [
  [
    "rows to columns",
    { pairs: pair(on([4], [Shard(0)]), on([2], [Shard(1)], 4)), tensors: [weight([100, 37])] },
  ],
  [
    "a scalar to everyone",
    { pairs: pair(on([2], [Replicate()]), on([3], [Replicate()], 2)), tensors: [weight([])] },
  ],
  ["nothing", { pairs: {}, tensors: [] }],
  ["empty tensors", { pairs: pair(on([4], [Shard(0)]), on([2], [Shard(0)], 4)), tensors: [weight([0, 3])] }],
  [
    "uneven nested shards",
    { pairs: pair(on([2, 2], [Shard(0), Shard(0)]), on([3], [Shard(0)], 4)), tensors: [weight([5, 7])] },
  ],
  [
    "strided shards, split",
    {
      pairs: pair(
        { ...on([3, 2], [StridedShard(0, 2), Shard(0)]), stridedShard: "split" },
        on([2], [Shard(0)], 6),
      ),
      tensors: [weight([7, 4])],
    },
  ],
  [
    "strided shards, order",
    {
      pairs: pair(
        { ...on([3, 2], [StridedShard(0, 2), Shard(0)]), stridedShard: "order" },
        on([2], [Shard(0)], 6),
      ),
      tensors: [weight([7, 4])],
    },
  ],
  [
    "partial sums and averages",
    {
      pairs: pair(on([2, 3], [Partial("sum"), Partial("avg")]), on([4], [Shard(0)], 4)),
      tensors: [weight([64, 33]), weight([10], { dtype: "bfloat16", targetDtype: "float32" })],
    },
  ],
  [
    "replicas that share a large tensor",
    {
      pairs: pair(on([4], [Replicate()]), on([3], [Replicate()], 4)),
      tensors: range(0, 5).map(() => weight([1024, 1024])),
    },
  ],
  [
    "colocated sides",
    { pairs: pair(on([2, 4], [Shard(0), Replicate()]), on([8], [Shard(1)])), tensors: [weight([48, 96])] },
  ],
  [
    "cuts by size",
    {
      pairs: pair(on([4], [Shard(0, { sizes: [3, 0, 5, 2] })]), on([2, 2], [Shard(1), Replicate()], 4)),
      tensors: range(0, 3).map((index) =>
        weight([10, 9], { name: `w${index}`, target: { select: { dim: 1, index, of: 3, sizes: [2, 1] } } }),
      ),
    },
  ],
  [
    "selected experts",
    {
      pairs: pair(on([8], [Shard(0)]), on([4, 2], [Replicate(), Shard(0)], 8)),
      tensors: range(0, 16).map((index) =>
        weight([32, 16], { name: `experts.${index}`, target: { select: { dim: 0, index, of: 16 } } }),
      ),
    },
  ],
  [
    "hosts",
    {
      pairs: pair(on([4], [Replicate()]), on([4], [Replicate()], 4)),
      tensors: range(0, 7).map(() => weight([100])),
      strategy: "direct",
      topology: { hosts: [0, 0, 1, 1, 0, 1, 1, 2], hostMBps: 1000, networkMBps: 100, latencyUs: 5 },
    },
  ],
  [
    "small buckets, one peer at a time",
    {
      pairs: pair(on([3, 2], [Shard(1), Partial("max")]), on([5], [Shard(0)], 2)),
      tensors: [weight([200, 90]), weight([3, 5, 7], { dtype: "int16" }), weight([200, 90])],
      bucketBytes: 4096,
      peersInFlight: 1,
    },
  ],
  [
    "stripes over all replicas",
    {
      pairs: pair(on([4], [Shard(0)]), on([3, 2], [Replicate(), Shard(1)], 4)),
      tensors: [
        weight([500, 77]),
        weight([1, 3]),
        weight([100, 5], { targetDtype: "bfloat16" }),
        weight([0, 2]),
      ],
      strategy: "striped",
      bucketBytes: 8192,
    },
  ],
  [
    "stripes within hosts, sums first",
    {
      pairs: pair(on([2, 2], [Partial("sum"), Replicate()]), on([7], [Replicate()], 2)),
      tensors: range(0, 5).map(() => weight([90, 91])),
      strategy: "striped",
      topology: { hosts: [0, 0, 1, 1, 1, 2, 2, 2, 2], hostMBps: 1000, networkMBps: 100, latencyUs: 5 },
    },
  ],
  [
    "whatever costs least",
    {
      pairs: pair(on([8], [Shard(0)]), on([8, 2], [Replicate(), Shard(0)], 8)),
      tensors: [weight([4096, 512]), weight([2, 2]), weight([8192, 512], { dtype: "bfloat16" })],
      topology: { ranksPerHost: 8, hostMBps: 400_000, networkMBps: 50_000, latencyUs: 5 },
    },
  ],
];

describe("digests", () => {
  it.each(pinned)("are pinned: %s", async (_, input) => {
    const plan = await planTransfer(input);
    expect(plan.digest).toMatchSnapshot();
    const lists = [...plan.chunks(), ...plan.buckets()].map((one) =>
      JSON.stringify(one, (_, value: unknown) => (typeof value === "bigint" ? String(value) : value)),
    );
    expect(fnv(lists.join("\n"))).toMatchSnapshot();
    expect((await planTransfer(structuredInput(input))).digest).toBe(plan.digest);
  });
});

/** The same input from other objects. */
function structuredInput(input: PlanInput): PlanInput {
  const side = ({ mesh, ...rest }: PlanInput["pairs"][string]["source"]) => ({
    ...structuredClone(rest),
    mesh: new DeviceMesh(mesh.shape, { ranks: [...mesh.ranks] }),
  });
  return {
    ...structuredClone({ ...input, pairs: {} }),
    pairs: Object.fromEntries(
      Object.entries(input.pairs).map(([name, { source, target }]) => [
        name,
        { source: side(source), target: side(target) },
      ]),
    ),
  };
}

function fnv(text: string): string {
  let hash = 0xcbf29ce484222325n;
  for (let index = 0; index < text.length; index++) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(text.charCodeAt(index))) * 0x100000001b3n);
  }
  return hash.toString(16).padStart(16, "0");
}
