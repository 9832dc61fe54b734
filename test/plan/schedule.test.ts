import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type Channels,
  DeviceMesh,
  type Placement,
  type PlanInput,
  planTransfer,
  Replicate,
  type Schedule,
  Shard,
  type Strategy,
  type TopologyInput,
} from "../../src/plan/index.ts";
import { planInputs } from "./kit/arbitrary.ts";
import { dtensorCases, type GoldenPair, goldenLayout } from "./kit/golden.ts";

const range = (first: number, count: number) => Array.from({ length: count }, (_, index) => first + index);
const hostIn = ({ ranksPerHost, hosts }: TopologyInput, rank: number) =>
  ranksPerHost === undefined ? hosts![rank]! : Math.floor(rank / ranksPerHost);

/** Megabytes a second between two ranks: a byte takes a thousand nanoseconds less so many. */
function speedIn(topology: TopologyInput, from: number, to: number): number {
  const [a, b] = [hostIn(topology, from), hostIn(topology, to)];
  const named = topology.links?.find(({ hosts: [x, y] }) => (x === a && y === b) || (x === b && y === a));
  return named?.MBps ?? (a === b ? topology.hostMBps : topology.networkMBps);
}

interface Row {
  readonly stage: number;
  readonly from: number;
  readonly to: number;
  readonly bytes: number;
  readonly start: number;
  readonly end: number;
}

function rowsOf({ channels, start, end }: Schedule): Row[] {
  return range(0, channels.count).map((row) => ({
    stage: channels.stage[row]!,
    from: channels.srcRank[row]!,
    to: channels.dstRank[row]!,
    bytes: channels.wireBytes[row]!,
    start: start[row]!,
    end: end[row]!,
  }));
}

/** What any schedule has to keep to, worked out from its channels. */
function checkSchedule(schedule: Schedule, topology: TopologyInput): void {
  const latency = topology.latencyUs * 1000;
  const rows = rowsOf(schedule);
  const moved = rows.filter(({ from, to }) => from !== to);
  const ends = new Map<string, Row[]>();
  for (const row of moved) {
    const time = (row.bytes * 1000) / speedIn(topology, row.from, row.to);
    expect(row.end - row.start).toBeGreaterThanOrEqual(Math.floor(time) + latency);
    const reach = hostIn(topology, row.from) === hostIn(topology, row.to);
    for (const end of [`out ${row.from} ${reach}`, `in ${row.to} ${reach}`]) {
      ends.set(end, [...(ends.get(end) ?? []), row]);
    }
  }
  let busiest = 0;
  for (const own of ends.values()) {
    const busy = own.reduce(
      (sum, one) => sum + Math.floor((one.bytes * 1000) / speedIn(topology, one.from, one.to)),
      0,
    );
    const [first, last] = [
      Math.min(...own.map(({ start }) => start)),
      Math.max(...own.map(({ end }) => end)),
    ];
    expect(last - first).toBeGreaterThanOrEqual(busy + latency);
    busiest = Math.max(busiest, busy + latency);
  }
  expect(schedule.makespan).toBe(Math.max(0, ...rows.map(({ end }) => end)));
  expect(schedule.lowerBound).toBeGreaterThanOrEqual(busiest);
  if (schedule.boundBy === "link") expect(schedule.lowerBound).toBe(busiest);
  expect(schedule.makespan).toBeGreaterThanOrEqual(schedule.lowerBound);
  // What a rank hands on it was brought before.
  for (const row of rows.filter(({ stage }) => stage === 2)) {
    const brought = rows.filter(({ stage, to }) => stage === 1 && to === row.from);
    expect(row.start).toBeGreaterThanOrEqual(Math.min(...brought.map(({ start }) => start)) + latency);
  }
  const bytes = moved.reduce((sum, row) => sum + row.bytes, 0);
  expect(schedule.hostBytes + schedule.networkBytes).toBeLessThanOrEqual(BigInt(bytes));
}

describe("the schedule of random plans", () => {
  it("keeps to links, latency and order, and never beats the bound", {
    timeout: 60_000,
  }, async () => {
    let found = 0;
    const inputs = planInputs({ extent: 9, readings: ["split"] });
    const topologies = fc.record({
      ranksPerHost: fc.integer({ min: 1, max: 9 }),
      hostMBps: fc.integer({ min: 1, max: 5000 }),
      networkMBps: fc.integer({ min: 1, max: 500 }),
      latencyUs: fc.constantFrom(0, 3),
      links: fc.constantFrom(
        [],
        [{ hosts: [1, 0] as const, MBps: 7 }],
        [{ hosts: [1, 1] as const, MBps: 3 }],
      ),
    });
    const property = fc.asyncProperty(inputs, topologies, async (input, topology) => {
      const plan = await planTransfer({ ...input, topology });
      const schedule = plan.schedule()!;
      checkSchedule(schedule, topology);
      found += schedule.makespan > 0 ? 1 : 0;
    });
    await fc.assert(property, { seed: 11, numRuns: 1000 });
    expect(found).toBeGreaterThan(750);
  });

  it("is none without a topology, and nothing where nothing moves", async () => {
    const one = { mesh: new DeviceMesh([1]), placements: [Replicate()] };
    const input: PlanInput = {
      pairs: { p: { source: one, target: one } },
      tensors: [{ name: "w", pair: "p", shape: [4], dtype: "int8" }],
    };
    expect((await planTransfer(input)).schedule()).toBeUndefined();
    const topology = { ranksPerHost: 1, hostMBps: 1, networkMBps: 1, latencyUs: 1 };
    const schedule = (await planTransfer({ ...input, topology })).schedule();
    expect(schedule).toMatchObject({ makespan: 0, lowerBound: 0, ratio: 1, busiest: undefined });
  });
});

/** So many ranks hold shards of what so many others all want, or hold shards of another dimension. */
function reshard(sources: number, targets: number, wanted: Placement, rest: Partial<PlanInput>): PlanInput {
  return {
    pairs: {
      p: {
        source: { mesh: new DeviceMesh([sources]), placements: [Shard(0)] },
        target: { mesh: new DeviceMesh([targets], { ranks: range(sources, targets) }), placements: [wanted] },
      },
    },
    tensors: [{ name: "w", pair: "p", shape: [1024, 1024], dtype: "int8" }],
    ...rest,
  };
}

describe("the schedule", () => {
  const topology = { ranksPerHost: 2, hostMBps: 1000, networkMBps: 100, latencyUs: 10 };

  it("of one rank after another is the sum of their times", async () => {
    const plan = await planTransfer(reshard(4, 1, Replicate(), { topology }));
    const schedule = plan.schedule()!;
    const each = (2 ** 18 * 1000) / 100;
    expect(Array.from(schedule.start)).toEqual([0, each, 2 * each, 3 * each]);
    expect(Array.from(schedule.end)).toEqual([1, 2, 3, 4].map((count) => count * each + 10_000));
    expect(schedule).toMatchObject({
      ratio: 1,
      busiest: { rank: 4, direction: "in", reach: "network", wireBytes: 2n ** 20n },
    });
  });

  it("knows links that are slower than others", async () => {
    const links = [{ hosts: [2, 0] as const, MBps: 10 }];
    const schedule = (
      await planTransfer(reshard(4, 1, Replicate(), { topology: { ...topology, links } }))
    ).schedule()!;
    // Two sources of host 0 at 10 MB/s, two of host 1 at 100.
    expect(schedule.makespan).toBe(2 * ((2 ** 18 * 1000) / 10) + 2 * ((2 ** 18 * 1000) / 100) + 10_000);
  });

  it("has such links in the costs that strategies are chosen by", async () => {
    const directly = async (MBps?: number) => {
      const links = MBps === undefined ? [] : [{ hosts: [0, 1] as const, MBps }];
      const hosts = { ranksPerHost: 4, hostMBps: 1000, networkMBps: 100, latencyUs: 0, links };
      return (await planTransfer(reshard(4, 4, Replicate(), { topology: hosts }))).stats().patterns[0]!.costs!
        .direct;
    };
    const usual = await directly();
    expect([await directly(50), await directly(200)]).toEqual([usual * 2n, usual / 2n]);
  });

  it("has the longest chain for a bound where that is longer than any link", async () => {
    const slow = { ...topology, latencyUs: 100_000 };
    const plan = await planTransfer(reshard(8, 8, Replicate(), { topology: slow, strategy: "striped" }));
    const schedule = plan.schedule()!;
    expect(schedule.boundBy).toBe("chain");
    expect(schedule.lowerBound).toBeGreaterThan(200_000_000);
    expect(schedule.ratio).toBeLessThan(1.3);
  });

  it("of a plan of very many chunks is by parts of channels, and near that of its buckets", {
    timeout: 60_000,
  }, async () => {
    const tensors = (count: number) =>
      range(0, count).map((index) => ({
        name: `w${index}`,
        pair: "p",
        shape: [64, 64],
        dtype: "int8" as const,
      }));
    const at = async (count: number) =>
      (
        await planTransfer(
          reshard(64, 8, Replicate(), { topology, strategy: "direct", tensors: tensors(count) }),
        )
      ).schedule()!;
    const [few, many] = [await at(400), await at(800)];
    expect([few.isByBucket, many.isByBucket]).toEqual([true, false]);
    expect(many.makespan / few.makespan).toBeGreaterThan(1.7);
    expect(many.makespan / few.makespan).toBeLessThan(2.3);
    expect(many.makespan).toBeGreaterThanOrEqual(many.lowerBound);
  });
});

const benchPairs = dtensorCases.filter(
  (one): one is GoldenPair => one.kind === "pair" && one.id.includes("-bench"),
);

/** What the larger pairs are benchmarked with: the layouts of the goldens at 100 tensors of 4096 x 4096. */
function benchInput({ source, target }: GoldenPair, strategy: Strategy, topology: TopologyInput): PlanInput {
  return {
    pairs: { p: { source: goldenLayout(source), target: goldenLayout(target) } },
    tensors: range(0, 100).map((index) => ({
      name: `w${index}`,
      pair: "p",
      shape: [4096, 4096],
      dtype: "float32",
    })),
    strategy,
    topology,
  };
}

/** Bytes on the wire that each source sends to others in stages 0 and 1. */
function egress(
  { count, stage, srcRank, dstRank, wireBytes }: Channels,
  sources: readonly number[],
): number[] {
  const sent = new Map(sources.map((rank) => [rank, 0]));
  for (let row = 0; row < count; row++) {
    const from = srcRank[row]!;
    if (stage[row] === 2 || from === dstRank[row] || !sent.has(from)) continue;
    sent.set(from, sent.get(from)! + wireBytes[row]!);
  }
  return [...sent.values()];
}

describe("stages overlap", () => {
  const mixture = (strategy: Strategy): PlanInput => ({
    pairs: {
      p: {
        source: { mesh: new DeviceMesh([16]), placements: [Shard(0)] },
        target: { mesh: new DeviceMesh([8], { ranks: range(16, 8) }), placements: [Replicate()] },
      },
    },
    // Two experts a layer before what all ranks want of it: in the order of the input, stripes would come last.
    tensors: range(0, 96).map((index) => ({
      name: `w${index}`,
      pair: "p",
      shape: [2048, 1024],
      dtype: "bfloat16",
      ...(index % 3 < 2 && { target: { select: { dim: 0, index: index % 8, of: 8 } } }),
    })),
    bucketBytes: 2 ** 18,
    strategy,
    topology: { ranksPerHost: 8, hostMBps: 4000, networkMBps: 1000, latencyUs: 5 },
  });

  it("so that what is handed on comes first, and is handed on while the rest comes", async () => {
    const { channels, start, end, ratio, isByBucket } = (await planTransfer(mixture("auto"))).schedule()!;
    expect(isByBucket).toBe(true);
    const ends = (wanted: number, times: Float64Array) =>
      range(0, channels.count)
        .filter((row) => channels.stage[row] === wanted && channels.srcRank[row] !== channels.dstRank[row])
        .map((row) => times[row]!);
    // In turn, stage 2 would begin when stage 1 is over.
    expect(Math.max(...ends(2, start))).toBeLessThan(Math.max(...ends(1, end)) / 4);
    expect(Math.max(...ends(2, end))).toBeLessThan(Math.max(...ends(1, end)));
    expect(ratio).toBeLessThanOrEqual(1.1);
  });

  it("and auto finds the strategy that takes least", async () => {
    for (const { id, source, target } of benchPairs) {
      for (const ranksPerHost of [1, 4, 8]) {
        const topology = { ranksPerHost, hostMBps: 50_000, networkMBps: 50_000, latencyUs: 5 };
        const of = async (strategy: Strategy) =>
          (await planTransfer(benchInput({ source, target } as GoldenPair, strategy, topology))).schedule()!
            .makespan;
        const least = Math.min(await of("direct"), await of("striped"));
        expect((await of("auto")) / least, `${id}, ${ranksPerHost} ranks a host`).toBeLessThanOrEqual(1.12);
      }
    }
  });
});

describe("bench pairs", () => {
  const speeds = { hostMBps: 450_000, networkMBps: 50_000, latencyUs: 5 };
  const topologies: Record<string, TopologyInput> = {
    "a host a side": { ranksPerHost: 8, ...speeds },
    "two hosts a side": { ranksPerHost: 4, ...speeds },
    "a host a rank": { ranksPerHost: 1, ...speeds },
    "one host": { ranksPerHost: 16, ...speeds },
    "links of one speed": { ranksPerHost: 8, hostMBps: 50_000, networkMBps: 50_000, latencyUs: 5 },
  };

  it("are all there", () => expect(benchPairs).toHaveLength(24));

  for (const strategy of ["direct", "striped", "auto"] as const) {
    it.each(benchPairs.map((pair) => [pair.id, pair] as const))(`${strategy}: %s`, async (_, pair) => {
      for (const [name, topology] of Object.entries(topologies)) {
        const plan = await planTransfer(benchInput(pair, strategy, topology));
        const sent = egress(plan.channels(), pair.source.ranks);
        const mean = sent.reduce((a, b) => a + b, 0) / sent.length;
        // Shards are even here: no layout forces a rank to send more than the mean.
        expect(Math.max(...sent) / mean, name).toBeLessThanOrEqual(1.05);
        const { makespan, lowerBound, ratio } = plan.schedule()!;
        expect(makespan).toBeGreaterThanOrEqual(lowerBound);
        expect(ratio, name).toBeLessThanOrEqual(1.15);
      }
    });
  }
});
