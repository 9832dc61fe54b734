import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  DeviceMesh,
  type Layout,
  parsePlacement,
  Replicate,
  type StridedShardReading,
} from "../../src/layout/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import type { PlanInput } from "../../src/plan/input/types.ts";
import { verifyChunks } from "../../src/plan/verify/verify.ts";
import { Random } from "../kit/random.ts";
import { naiveSide } from "./kit/naive-holdings.ts";
import { plainValue, simulate } from "./kit/simulator.ts";

interface TorchLocal {
  readonly local_shape: readonly number[];
  readonly ids: readonly number[];
}

interface TorchLayout {
  readonly mesh_shape: readonly number[];
  readonly ranks: readonly number[];
  readonly placements: readonly string[];
  readonly shape: readonly number[];
}

type TorchAnswer = Readonly<Record<StridedShardReading, Readonly<Record<string, TorchLocal>> | null>>;

function python(args: readonly string[], input = ""): string {
  return execFileSync("python3", args, {
    input,
    encoding: "utf8",
    maxBuffer: 1 << 28,
    stdio: ["pipe", "pipe", "pipe"],
  });
}

/** PyTorch's version, or why it cannot be asked. */
function torchVersion(): { readonly version?: string; readonly reason?: string } {
  try {
    return { version: python(["-c", "import torch; print(torch.__version__)"]).trim() };
  } catch {
    return { reason: "python3 with torch is not installed" };
  }
}

function randomLayout(random: Random): TorchLayout {
  const mesh_shape = Array.from({ length: 1 + random.below(3) }, () => 1 + random.below(3));
  const size = mesh_shape.reduce((a, b) => a * b, 1);
  const ranks = random.shuffle(Array.from({ length: 16 }, (_, rank) => rank)).slice(0, size > 16 ? 0 : size);
  if (ranks.length === 0) return randomLayout(random);
  const shape = Array.from({ length: 1 + random.below(3) }, () => random.below(12));
  const placements = mesh_shape.map(() => {
    const dim = random.below(2 * shape.length) - shape.length;
    return [`S(${dim})`, `SS(${dim},${1 + random.below(6)})`, "R"][random.below(3)]!;
  });
  return { mesh_shape, ranks, placements, shape };
}

const { version, reason } = torchVersion();
if (reason !== undefined) console.log(`skipped: the comparison with PyTorch: ${reason}`);

describe(`holdings of PyTorch ${version ?? `(${reason})`}`, () => {
  it.skipIf(version === undefined)("are those of the planner, for random layouts", async () => {
    const random = new Random(20);
    const layouts = Array.from({ length: 300 }, () => randomLayout(random));
    const text = python([join(import.meta.dirname, "../oracle/holdings.py")], JSON.stringify(layouts));
    const answers = JSON.parse(text) as TorchAnswer[];
    let decoded = 0;
    for (const [at, layout] of layouts.entries()) {
      for (const reading of ["split", "order"] as const) {
        const expected = answers[at]![reading];
        if (expected === null) continue;
        if (reading === "order") decoded++;
        await compare(layout, reading, expected);
      }
    }
    expect(decoded).toBeGreaterThan(100);
  });
});

async function compare(
  { mesh_shape, ranks, placements, shape }: TorchLayout,
  stridedShard: StridedShardReading,
  expected: Readonly<Record<string, TorchLocal>>,
): Promise<void> {
  const mesh = new DeviceMesh(mesh_shape, { ranks });
  const target: Layout = { mesh, placements: placements.map(parsePlacement), stridedShard };
  const held = naiveSide(target, undefined, shape);
  const naive = Object.fromEntries(
    [...held.byRank.values()].map(({ rank, localShape, ids }) => [rank, { local_shape: localShape, ids }]),
  );
  expect(naive, `${placements} of ${shape}, ${stridedShard}`).toEqual(expected);
  const source: Layout = { mesh: new DeviceMesh([1], { ranks: [99] }), placements: [Replicate()] };
  const input: PlanInput = {
    pairs: { p: { source, target } },
    tensors: [{ name: "w", pair: "p", shape, dtype: "float32" }],
  };
  const plan = await planTransfer(input);
  const chunks = [...plan.chunks()];
  const buckets = [...plan.buckets()];
  verifyChunks(input, chunks, buckets);
  const [arrived] = simulate(input, chunks, buckets);
  for (const [rank, values] of arrived!)
    expect(values.map((value) => value - plainValue(0, 0))).toEqual(expected[rank]!.ids);
}
