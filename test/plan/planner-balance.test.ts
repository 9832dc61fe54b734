import { describe, expect, it } from "vitest";
import {
  type Bucket,
  DeviceMesh,
  Partial,
  type Placement,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
} from "../../src/plan/index.ts";

const range = (first: number, count: number) => Array.from({ length: count }, (_, index) => first + index);

/** Source mesh, target mesh, split factor of the target's strided shard. */
const pairs: readonly (readonly [readonly number[], readonly number[], number])[] = [
  [[1, 1, 4, 2], [4, 2, 1, 1], 1],
  [[8, 1, 1, 1], [1, 2, 2, 2], 2],
  [[1, 2, 4, 1], [8, 1, 1, 1], 1],
  [[2, 2, 2, 1], [1, 1, 4, 2], 2],
  [[2, 4, 1, 1], [1, 2, 4, 1], 1],
  [[4, 1, 1, 2], [2, 1, 1, 4], 4],
  [[4, 1, 2, 1], [1, 1, 1, 8], 8],
  [[4, 2, 1, 1], [1, 1, 2, 4], 4],
];

describe("egress", () => {
  const sources: readonly (readonly Placement[])[] = [
    [Replicate(), Shard(0), Replicate(), Shard(1)],
    [Replicate(), Replicate(), Replicate(), Shard(1)],
    [Replicate(), Partial("sum"), Replicate(), Shard(1)],
  ];
  const sizes = [
    [4096, 4096],
    [96, 64],
  ];
  const cases = pairs.flatMap((pair) =>
    sources.flatMap((source) => sizes.map((shape) => ({ pair, source, shape }))),
  );

  it.each(cases)("of 100 tensors is balanced: $pair $shape", async ({ pair, source, shape }) => {
    const [sourceMesh, targetMesh, factor] = pair;
    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh(sourceMesh), placements: source },
          target: {
            mesh: new DeviceMesh(targetMesh, { ranks: range(8, 8) }),
            placements: [Replicate(), Replicate(), StridedShard(0, factor), Shard(0)],
          },
        },
      },
      tensors: range(0, 100).map((index) => ({ name: `w${index}`, pair: "p", shape, dtype: "float32" })),
    });
    expect(plan.stats().imbalance).toBeLessThanOrEqual(1.05);
  });

  it("is balanced where boxes differ in size and replicas divide their number", async () => {
    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([2]), placements: [Replicate()] },
          target: { mesh: new DeviceMesh([2], { ranks: [2, 3] }), placements: [Shard(0)] },
        },
      },
      // The first shard has 1000 rows, the second one.
      tensors: range(0, 100).map((index) => ({ name: `w${index}`, pair: "p", shape: [2001], dtype: "int8" })),
      bucketBytes: 4096,
    });
    expect(plan.stats().imbalance).toBeLessThanOrEqual(1.01);
  });

  it("is balanced over many patterns of one tensor each", async () => {
    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([4]), placements: [Replicate()] },
          target: { mesh: new DeviceMesh([1], { ranks: [4] }), placements: [Replicate()] },
        },
      },
      tensors: range(0, 400).map((index) => ({
        name: `w${index}`,
        pair: "p",
        shape: [1000 + index],
        dtype: "int8",
      })),
    });
    expect(plan.stats().imbalance).toBeLessThanOrEqual(1.01);
  });

  it("stays on the target's host where a source is there", async () => {
    const plan = await planTransfer({
      pairs: {
        p: {
          source: { mesh: new DeviceMesh([8]), placements: [Replicate()] },
          target: { mesh: new DeviceMesh([4], { ranks: [8, 9, 10, 11] }), placements: [Replicate()] },
        },
      },
      tensors: range(0, 20).map((index) => ({ name: `w${index}`, pair: "p", shape: [64], dtype: "int8" })),
      strategy: "direct",
      topology: {
        hosts: [0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 1, 9],
        hostMBps: 100,
        networkMBps: 10,
        latencyUs: 1,
      },
    });
    const hosts = [0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 1, 9];
    const senders = new Map<number, Set<number>>();
    for (const { srcRank, dstRank } of plan.chunks()) {
      senders.set(dstRank, (senders.get(dstRank) ?? new Set()).add(srcRank));
    }
    for (const rank of [8, 9, 10]) {
      const near = hosts.flatMap((host, source) => (source < 8 && host === hosts[rank] ? [source] : []));
      expect([...senders.get(rank)!].sort()).toEqual(near);
    }
    expect(senders.get(11)!.size).toBe(8);
  });
});

describe("waves", () => {
  it.each([1, 2, 4])("hold at most %i channels of a receiver, and are few", async (peersInFlight) => {
    for (const [sources, targets] of [
      [37, 5],
      [5, 37],
      [300, 3],
      [64, 64],
    ] as const) {
      const plan = await planTransfer({
        pairs: {
          p: {
            source: { mesh: new DeviceMesh([sources]), placements: [Shard(0)] },
            target: {
              mesh: new DeviceMesh([targets], { ranks: range(sources, targets) }),
              placements: [Shard(1)],
            },
          },
        },
        tensors: [{ name: "w", pair: "p", shape: [sources, targets], dtype: "int8" }],
        peersInFlight,
      });
      const buckets = [...plan.buckets()];
      for (const end of ["srcRank", "dstRank"] as const) {
        const most = Math.max(...countBy(buckets, (bucket) => `${bucket.wave}:${bucket[end]}`).values());
        expect(most).toBeLessThanOrEqual(peersInFlight);
      }
      const degree = Math.max(sources, targets);
      expect(plan.stats().waves).toBeLessThanOrEqual(2 * Math.ceil(degree / peersInFlight));
      // Each source meets each target: diagonals fill every wave.
      expect(plan.stats().waves).toBeLessThanOrEqual(Math.ceil(degree / peersInFlight) + 1);
    }
  });
});

function countBy(buckets: readonly Bucket[], key: (bucket: Bucket) => string): Map<string, number> {
  const counts = new Map<string, number>();
  for (const bucket of buckets) counts.set(key(bucket), (counts.get(key(bucket)) ?? 0) + 1);
  return counts;
}
