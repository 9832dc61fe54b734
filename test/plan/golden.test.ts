import { describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import {
  DeviceMesh,
  type Layout,
  Replicate,
  Shard,
  type StridedShardReading,
} from "../../src/layout/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import type { PlanInput, TensorInput } from "../../src/plan/input/types.ts";
import { verifyChunks } from "../../src/plan/verify/verify.ts";
import { Random } from "../kit/random.ts";
import {
  describeIds,
  dtensorCases,
  fsdp2Cases,
  type GoldenLocal,
  type GoldenSide,
  goldenLayout,
} from "./kit/golden.ts";
import { naiveTensors } from "./kit/naive-planner.ts";
import { plainValue, simulate } from "./kit/simulator.ts";

async function codeOf(input: () => PlanInput): Promise<string | undefined> {
  try {
    await planTransfer(input());
    return undefined;
  } catch (error) {
    if (error instanceof TensorBusError) return error.code;
    throw error;
  }
}

function inputOf(
  source: Layout,
  target: Layout,
  tensor: Pick<TensorInput, "shape" | "dtype" | "targetDtype">,
): PlanInput {
  return {
    pairs: { golden: { source, target } },
    tensors: [{ name: "w", pair: "golden", ...tensor }],
    strategy: "direct",
  };
}

/** Plans, proves, runs in two orders, and compares both sides' holdings with what PyTorch recorded. */
async function checkPlan(
  input: PlanInput,
  recorded: {
    readonly source?: GoldenSide["locals"];
    readonly target?: GoldenSide["locals"];
  },
): Promise<void> {
  const plan = await planTransfer(input);
  const chunks = [...plan.chunks()];
  const buckets = [...plan.buckets()];
  verifyChunks(input, chunks, buckets);
  plan.verify();
  const tensors = naiveTensors(input);
  const targets = simulate(input, chunks, buckets, { tensors });
  simulate(input, chunks, buckets, { tensors, random: new Random(chunks.length) });

  const { source, target } = tensors[0]!;
  const held = (side: typeof source): Record<string, GoldenLocal> =>
    Object.fromEntries(
      [...side.byRank.values()].map(({ rank, localShape, ids }) => [rank, describeIds(localShape, ids)]),
    );
  if (recorded.source !== undefined) expect(held(source)).toEqual(recorded.source);
  if (recorded.target === undefined) return;
  // What the simulator left on each target rank, as ids; those of a reduced source are values of another kind.
  const arrived = Object.fromEntries(
    [...targets[0]!].map(([rank, values]) => {
      const { localShape, ids } = target.byRank.get(rank)!;
      const moved = source.op === undefined ? values.map((value) => value - plainValue(0, 0)) : ids;
      return [rank, describeIds(localShape, moved)];
    }),
  );
  expect(arrived).toEqual(recorded.target);
}

/** The layout on the other end of a golden layout: all on one rank, on two as copies, or in two uneven parts. */
function otherSides(ranks: readonly number[], ndim: number): Layout[] {
  const inside = ranks[ranks.length >> 1]!;
  const outside = Math.max(...ranks) + 1;
  const one = new DeviceMesh([1], { ranks: [outside] });
  const two = new DeviceMesh([2], { ranks: [outside, inside] });
  const sides: Layout[] = [
    { mesh: one, placements: [Replicate()] },
    { mesh: two, placements: [Replicate()] },
  ];
  return ndim > 0 ? [...sides, { mesh: two, placements: [Shard(-1)] }] : sides;
}

async function checkLayout(
  side: GoldenSide & { readonly shape: readonly number[] },
  locals: GoldenSide["locals"],
  reading: StridedShardReading,
): Promise<void> {
  const layout = goldenLayout(side, reading);
  const tensor = { shape: side.shape, dtype: "float32" } as const;
  const partial = layout.placements.some(({ kind }) => kind === "partial");
  for (const other of otherSides(side.ranks, side.shape.length)) {
    await checkPlan(inputOf(layout, other, tensor), { source: locals });
    if (partial) expect(await codeOf(() => inputOf(other, layout, tensor))).toBe("TB_PARTIAL_TARGET");
    else await checkPlan(inputOf(other, layout, tensor), { target: locals });
  }
}

describe("recorded layouts, as source and as target", () => {
  for (const golden of dtensorCases) {
    if (golden.kind !== "layout") continue;
    it(`${golden.id} ${golden.placements.join(" ")}`, async () => {
      await checkLayout(golden, golden.locals, "split");
      const { shard_order_reading: order } = golden;
      if (order === undefined) return;
      const [other] = otherSides(golden.ranks, golden.shape.length);
      const input = inputOf(goldenLayout(golden), other!, { shape: golden.shape, dtype: "float32" });
      expect(await codeOf(() => input)).toBe(order === "same" ? undefined : "TB_STRIDED_SHARD");
    });
  }
});

describe("recorded pairs", () => {
  for (const golden of dtensorCases) {
    if (golden.kind !== "pair") continue;
    it(`${golden.id} ${golden.source.placements.join(" ")} to ${golden.target.placements.join(" ")}`, async () => {
      const tensor = { shape: golden.shape, dtype: golden.dtype_src, targetDtype: golden.dtype_dst };
      const source = goldenLayout(golden.source, "split");
      const target = goldenLayout(golden.target, "split");
      expect(Math.min(...golden.source.ranks)).toBe(golden.source.rank_offset);
      expect(Math.min(...golden.target.ranks)).toBe(golden.target.rank_offset);
      await checkPlan(inputOf(source, target, tensor), {
        source: golden.source.locals,
        target: golden.target.locals,
      });
      if (source.placements.some(({ kind }) => kind === "partial")) return;
      const back = { ...tensor, dtype: golden.dtype_dst, targetDtype: golden.dtype_src };
      await checkPlan(inputOf(target, source, back), { target: golden.source.locals });
    });
  }
});

describe("recorded rejections", () => {
  const expected: Readonly<Record<string, string | undefined>> = {
    // Valid as a source: PyTorch only cannot make one.
    reject_product: undefined,
    reject_mixed: "TB_PARTIAL_OP",
    reject_op: "TB_PARTIAL_OP",
  };
  for (const golden of dtensorCases) {
    if (golden.kind !== "reject") continue;
    it(`${golden.id} ${golden.placements.join(" ")} of [${golden.shape}]`, async () => {
      const [other] = otherSides(golden.ranks, golden.shape.length);
      const tensor = { shape: golden.shape, dtype: "float32" } as const;
      const code = golden.tag in expected ? expected[golden.tag] : "TB_PLACEMENT";
      expect(await codeOf(() => inputOf(goldenLayout(golden, "split"), other!, tensor))).toBe(code);
      const asTarget = code === undefined || golden.tag === "reject_mixed" ? "TB_PARTIAL_TARGET" : code;
      expect(await codeOf(() => inputOf(other!, goldenLayout(golden, "split"), tensor))).toBe(asTarget);
    });
  }
});

describe("recorded parameters of real fully_shard models", () => {
  for (const golden of fsdp2Cases) {
    it(`${golden.id} ${golden.placements.join(" ")} of [${golden.shape}]`, async () => {
      await checkLayout(golden, golden.locals_fsdp2, "order");
      await checkLayout(golden, golden.locals, "split");
    });
  }
});
