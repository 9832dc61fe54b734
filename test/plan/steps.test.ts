import { describe, expect, it } from "vitest";
import { holdingOf } from "../../src/layout/index.ts";
import {
  DeviceMesh,
  type Layout,
  Partial as PartialSum,
  type Placement,
  type PlanInput,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
} from "../../src/plan/index.ts";
import { Random } from "../kit/random.ts";
import { CountedPlan } from "./kit/counted-planner.ts";

/** A layout for a world of any size. */
type Layouts = (n: number) => readonly [source: Layout, target: Layout];

function layout(shape: readonly number[], placements: readonly Placement[], first = 0): Layout {
  const size = shape.reduce((a, b) => a * b, 1);
  const ranks = Array.from({ length: size }, (_, index) => first + index);
  return { mesh: new DeviceMesh(shape, { ranks }), placements, stridedShard: "split" };
}

const [R, P] = [Replicate(), PartialSum("sum")];

function inputOf(layouts: Layouts, n: number, options: Partial<PlanInput> = {}): PlanInput {
  const [source, target] = layouts(n);
  const tensors = [0, 1, 2].map((index) => ({
    name: `w${index}`,
    pair: "p",
    shape: [n * 2, 64 + index * 64],
    dtype: "float32" as const,
  }));
  return { pairs: { p: { source, target } }, tensors, bucketBytes: 1 << 20, ...options };
}

/** Steps for each chunk, channel and rank of the answers: all chunks, one rank's, its program. */
function stepsPerAnswer(input: PlanInput): readonly number[] {
  const plan = new CountedPlan(input);
  const { steps: ofChannels, channels } = plan.channels();
  const { steps, chunks } = plan.stats();
  const known = channels + plan.world + input.tensors.length;
  return [
    // They are found by the chunks of a tensor of each class.
    ofChannels / (known + chunks / input.tensors.length),
    steps / (chunks + known),
    ...stepsOfRank(plan, known),
  ];
}

function stepsOfRank(plan: CountedPlan, known: number): readonly number[] {
  const rank = Math.floor(plan.world / 3);
  const { steps, chunks } = plan.chunks(rank);
  return [steps / (chunks + known), plan.program(rank) / (chunks + known)];
}

/** The same of what one rank asks alone, which is little even of the largest world. */
function stepsPerRankAnswer(input: PlanInput): readonly number[] {
  const plan = new CountedPlan(input).findChannels();
  return stepsOfRank(plan, plan.world);
}

/** Several times the world must not make an answer dearer by more than what sorting and searching take. */
function expectFlat(small: PlanInput, large: PlanInput, ask = stepsPerAnswer): void {
  const [few, many] = [ask(small), ask(large)];
  many.forEach((steps, question) => {
    const most = few[question]! * 2.4 + 30;
    expect(steps, `question ${question}: ${few} steps, then ${many}`).toBeLessThan(most);
  });
}

const topologies = {
  "no topology": undefined,
  "8 ranks a host": { ranksPerHost: 8 },
  "one host": { ranksPerHost: 2 ** 20 },
};

const named: Record<string, Layouts> = {
  "replicas to shards, colocated": (n) => [layout([n], [R]), layout([n], [Shard(0)])],
  "replicas to shards, apart": (n) => [layout([n], [R]), layout([n], [Shard(0)], n)],
  "shards to shards": (n) => [layout([n], [Shard(0)]), layout([n], [Shard(0)], n)],
  "replicas to replicas": (n) => [layout([n], [R]), layout([n], [R], n)],
  "replicas to replicas, colocated": (n) => [layout([n], [R]), layout([n], [R])],
  "replicas to a few replicas": (n) => [layout([n], [R]), layout([8], [R], n)],
  "replicas to a grid": (n) => [layout([n], [R]), layout([16, n / 16], [Shard(1), Shard(0)], n)],
  "replicas of shards to shards": (n) => [layout([8, n / 8], [Shard(0), R]), layout([n], [Shard(0)])],
  "replicas to replicas of shards": (n) => [layout([n], [R]), layout([n / 8, 8], [Shard(0), R])],
  "replicas that are partial, to shards": (n) => [layout([n / 4, 4], [R, P]), layout([n], [Shard(0)], n)],
  "replicas that are partial, colocated": (n) => [layout([n / 4, 4], [R, P]), layout([n], [Shard(0)])],
  "a small all-reduce": (n) => [layout([n], [P]), layout([n], [R])],
};

describe("the planner's steps follow its answers", () => {
  for (const [where, topology] of Object.entries(topologies)) {
    const options = topology && { topology: { ...topology, hostMBps: 900, networkMBps: 100, latencyUs: 1 } };
    it.each(Object.entries(named))(`${where}: %s`, { timeout: 120_000 }, (_, layouts) => {
      // An answer that is the world's square is large enough in smaller ones.
      const chunks = new CountedPlan(inputOf(layouts, 128, options)).findChannels().stats().chunks;
      const small = chunks > 128 ** 2 / 2 ? 64 : 128;
      for (const strategy of ["direct", "striped"] as const) {
        expectFlat(
          inputOf(layouts, small, { ...options, strategy }),
          inputOf(layouts, 4 * small, { ...options, strategy }),
        );
      }
    });
  }

  const reduced: Record<string, Layouts> = {
    apart: (n) => [layout([n / 4, 4], [R, P]), layout([n], [Shard(0)], n)],
    "half apart": (n) => [layout([n / 4, 4], [R, P]), layout([n], [Shard(0)], n / 2)],
    colocated: (n) => [layout([n / 4, 4], [R, P]), layout([n], [Shard(0)])],
    "far from each other": (n) => [layout([4, n / 4], [P, R]), layout([n], [Shard(0)])],
    "to replicas of a host": (n) => [layout([n / 4, 4], [R, P]), layout([n / 8, 8], [Shard(0), R], n / 2)],
    "of shards": (n) => [layout([n / 8, 4, 2], [R, P, Shard(1)]), layout([n], [Shard(0)], n / 2)],
    "to replicas near some holders and far from others": (n) => [
      layout([2, n / 4, 2], [R, R, P]),
      layout([2, n / 2], [R, Shard(0)]),
    ],
  };
  const copied: Record<string, Layouts> = {
    apart: (n) => [layout([n], [R]), layout([n / 4, 4], [Shard(0), Shard(0)], n)],
    "half apart": (n) => [layout([2, n / 2], [R, R]), layout([n / 4, 4], [Shard(1), R], n / 2)],
    "of shards": (n) => [
      layout([2, n / 4, 2], [R, Shard(0), StridedShard(0, 2)]),
      layout([n / 4, 4], [Shard(0), R]),
    ],
    "to replicas near some holders and far from others": (n) => [
      layout([n], [R]),
      layout([2, n / 2], [R, StridedShard(0, 2)], n / 2),
    ],
  };
  const grown = [...Object.entries(reduced), ...Object.entries(copied)];
  it.each(grown)("hosts that grow with the world: %s", (_, layouts) => {
    for (const strategy of ["direct", "striped"] as const) {
      for (const hosts of [4, 16]) {
        const at = (n: number) =>
          inputOf(layouts, n, {
            topology: { ranksPerHost: n / hosts, hostMBps: 900, networkMBps: 100, latencyUs: 1 },
            strategy,
          });
        expectFlat(at(128), at(512));
      }
    }
  });

  it("of layouts by chance, in large worlds", { timeout: 300_000 }, async () => {
    const random = new Random(31);
    let compared = 0;
    for (let run = 0; run < 150; run++) {
      const shapes = [() => [1], () => [2, 1], () => [1, 4], () => [2, 1, 2]];
      const [from, to] = [random.below(4), random.below(4)];
      const choices = [R, Shard(0), Shard(1), StridedShard(0, 2), R];
      const pick = (shape: readonly number[]) => shape.map(() => choices[random.below(choices.length)]!);
      const [source, target] = [pick(shapes[from]!()), pick(shapes[to]!())];
      const [where, first] = [random.below(3), random.below(3)];
      const grown = (shape: readonly number[], n: number) =>
        shape.map((extent) => (extent === 1 ? n / shape.reduce((a, b) => a * b, 1) : extent));
      const layouts: Layouts = (n) => [
        layout(grown(shapes[from]!(), n), source),
        layout(grown(shapes[to]!(), n), target, first === 0 ? 0 : first === 1 ? n / 2 : n),
      ];
      const topology = Object.values(topologies)[where];
      const options = topology && {
        topology: { ...topology, hostMBps: 900, networkMBps: 100, latencyUs: 1 },
      };
      const strategy = random.below(2) === 0 ? "direct" : "striped";
      const large = inputOf(layouts, 512, { ...options, strategy });
      // What has an answer of millions takes as long, and is no case for counting each step.
      if ((await planTransfer(large)).chunkCount() > 30_000n) continue;
      expectFlat(inputOf(layouts, 128, { ...options, strategy }), large);
      compared++;
    }
    expect(compared).toBeGreaterThan(40);
  });

  /** Plans by chance whose answers follow the world; `random` says which. */
  function* growing(random: Random): Generator<(n: number) => PlanInput> {
    const shapes = [(n: number) => [n], (n: number) => [2, n / 2], (n: number) => [n / 4, 4]];
    // What all ranks want of all, or sum up, is an answer of its square.
    const ways: readonly (readonly Placement[][])[] = [
      [[R], [Shard(0)], [P]],
      [
        [R, Shard(0)],
        [Shard(1), R],
        [Shard(1), Shard(0)],
        [P, Shard(0)],
      ],
      [
        [Shard(0), R],
        [R, Shard(1)],
        [R, P],
        [Shard(0), Shard(0)],
      ],
    ];
    for (;;) {
      const [from, to] = [random.below(3), random.below(3)];
      const ofSource = ways[from]![random.below(ways[from]!.length)]!;
      const ofTarget = ways[to]![random.below(ways[to]!.length)]!;
      const isHost = random.below(3);
      const strategy = random.below(2) === 0 ? "direct" : "striped";
      const first = random.below(3);
      if (ofTarget.includes(P)) continue;
      const at = (n: number): PlanInput => {
        const hosts = [n / 16, 8, n / 64][isHost]!;
        const input = inputOf(
          () => [layout(shapes[from]!(n), ofSource), layout(shapes[to]!(n), ofTarget, [0, n / 2, n][first]!)],
          n,
          { strategy, topology: { ranksPerHost: hosts, hostMBps: 900, networkMBps: 100, latencyUs: 1 } },
        );
        return { ...input, tensors: input.tensors.slice(0, 1) };
      };
      const chunksOf = (n: number) => new CountedPlan(at(n)).findChannels().stats().chunks / n;
      if (chunksOf(1024) <= chunksOf(256) * 1.3) yield at;
    }
  }

  it("of layouts by chance, in worlds of 65,536 ranks", { timeout: 300_000 }, () => {
    const plans = growing(new Random(6));
    for (let run = 0; run < 2; run++) {
      const at = plans.next().value;
      expectFlat(at(2 ** 12), at(2 ** 16));
    }
  });

  it("of a layout by chance, in a world of 1,048,576 ranks, for one of them", { timeout: 300_000 }, () => {
    // Seeds whose target stands behind the source need more ranks than there are numbers.
    const at = growing(new Random(9)).next().value;
    expectFlat(at(2 ** 14), at(2 ** 20), stepsPerRankAnswer);
  });

  it("of as many things as ranks, each on a rank of its own", () => {
    const things = (n: number): PlanInput => {
      const [source, target] = [layout([n], [R]), layout([n], [R], n)];
      const tensors = Array.from({ length: n }, (_, index) => {
        const select = { dim: 0, index, of: n };
        return {
          name: `e${index}`,
          pair: "p",
          shape: [8, 8],
          dtype: "float32" as const,
          source: { select },
          target: { select },
        };
      });
      return { pairs: { p: { source, target } }, tensors };
    };
    expectFlat(things(256), things(1024));
  });
});

describe("a strided shard with a large split factor", () => {
  const plan = (extent: number, factor: number) =>
    planTransfer({
      pairs: {
        p: { source: layout([4], [StridedShard(0, factor)]), target: layout([2], [Shard(0)], 4) },
      },
      tensors: [{ name: "w", pair: "p", shape: [extent], dtype: "int8" }],
    });

  it.each([
    [2 ** 28, 2 ** 28],
    [2 ** 33, 2 ** 33],
    [2 ** 33, 2 ** 45],
  ])("of %i elements in %i pieces is all the first rank's", async (extent, factor) => {
    const planned = await plan(extent, factor);
    expect(new Set([...planned.chunks()].map(({ srcRank }) => srcRank))).toEqual(new Set([0]));
    planned.verify({ whole: true });
    const [source] = [layout([4], [StridedShard(0, factor)])];
    expect([0, 1].map((rank) => holdingOf(source, [extent], rank)!.localShape)).toEqual([[extent], [0]]);
  });

  it.each([
    [2 ** 28, 2 ** 27],
    [2 ** 33, 2 ** 32],
    [2 ** 40, 2 ** 23],
  ])("of %i elements in %i pieces has too many runs", async (extent, factor) => {
    const error = { code: "TB_PLAN_TOO_LARGE", details: { runs: expect.anything() } };
    await expect(plan(extent, factor)).rejects.toMatchObject(error);
    const source = layout([4], [StridedShard(0, factor)]);
    expect(() => holdingOf(source, [extent], 0)).toThrow(
      expect.objectContaining({ code: "TB_PLAN_TOO_LARGE" }),
    );
  });
});
