import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { TensorBusError } from "../../src/errors.ts";
import { DeviceMesh, Partial, Replicate, Shard, StridedShard } from "../../src/layout/index.ts";
import { planTransfer } from "../../src/plan/index.ts";
import type { PlanInput } from "../../src/plan/input/types.ts";

async function failureOf(input: unknown): Promise<unknown> {
  try {
    const plan = await planTransfer(input as PlanInput);
    for (const _ of plan.chunks()) break;
    return undefined;
  } catch (error) {
    return error;
  }
}

const good = {
  pairs: {
    p: {
      source: { mesh: new DeviceMesh([2, 2]), placements: [Shard(0), Replicate()], stridedShard: "split" },
      target: { mesh: new DeviceMesh([3], { ranks: [9, 7, 8] }), placements: [Shard(1)] },
    },
  },
  tensors: [
    { name: "a", pair: "p", shape: [4, 6], dtype: "float32", targetDtype: "bfloat16" },
    { name: "b", pair: "p", shape: [5, 5], dtype: "int8", source: { select: { dim: 1, index: 3, of: 4 } } },
  ],
  bucketBytes: 4096,
  bucketsInFlight: 2,
  peersInFlight: 4,
  strategy: "direct",
  topology: { ranksPerHost: 2, hostMBps: 10, networkMBps: 5, latencyUs: 1 },
  maxChunks: 1000,
} as const;

type Path = readonly string[];

/** Everything but what is inside a mesh, which its own constructor checks. */
function pathsOf(value: unknown, path: Path = []): Path[] {
  if (typeof value !== "object" || value === null || value instanceof DeviceMesh) return [path];
  return [
    path,
    ...Object.keys(value).flatMap((key) => pathsOf((value as Record<string, unknown>)[key], [...path, key])),
  ];
}

function withValue(value: unknown, [key, ...rest]: Path, replacement: unknown): unknown {
  if (key === undefined) return replacement;
  const copy = Array.isArray(value) ? [...value] : { ...(value as Record<string, unknown>) };
  const record = copy as Record<string, unknown>;
  record[key] = withValue(record[key], rest, replacement);
  return copy;
}

/** What a specification in JSON or YAML may hold in any place. */
const garbage = fc.oneof(
  fc.constantFrom<unknown>(undefined, null, "", "p", [], {}, true, "__proto__", { kind: "shard" }),
  fc.constantFrom(
    0,
    -1,
    0.5,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    2 ** 31,
    2 ** 32,
    2 ** 53,
    2 ** 63,
    1e300,
  ),
  fc.jsonValue({ maxDepth: 2 }),
);

describe("malformed input", () => {
  it("is good where nothing is malformed", async () => {
    expect(await failureOf(good)).toBeUndefined();
  });

  it("is always a TensorBusError that says bad input", async () => {
    const paths = pathsOf(good);
    let refused = 0;
    const property = fc.asyncProperty(fc.constantFrom(...paths), garbage, async (path, value) => {
      const failure = await failureOf(withValue(good, path, value));
      if (failure === undefined) return;
      refused++;
      const where = `${path.join(".")} = ${fc.stringify(value)}: ${String(failure)}`;
      expect(failure instanceof TensorBusError && failure.exitCode === 2, where).toBe(true);
    });
    await fc.assert(property, { seed: 9, numRuns: 4000 });
    expect(refused).toBeGreaterThan(2000);
  });

  const layout = (placements: readonly unknown[], shape = [2, 2]) => ({
    mesh: new DeviceMesh(shape),
    placements,
  });
  const wrong: Readonly<Record<string, readonly [code: string, input: unknown]>> = {
    "an unknown pair": ["TB_PLAN_INPUT", withValue(good, ["tensors", "0", "pair"], "q")],
    "a pair of Object's own": ["TB_PLAN_INPUT", withValue(good, ["tensors", "0", "pair"], "toString")],
    "too few placements": ["TB_PLACEMENT", withValue(good, ["pairs", "p", "source"], layout([Shard(0)]))],
    "a dimension that is not there": [
      "TB_PLACEMENT",
      withValue(good, ["pairs", "p", "source"], layout([Shard(2), Replicate()])),
    ],
    "a strided shard that PyTorch lets alias another": [
      "TB_PLACEMENT",
      withValue(good, ["pairs", "p", "source"], {
        ...layout([StridedShard(-3, 2), Replicate()]),
        stridedShard: "split",
      }),
    ],
    "a shard that PyTorch accepts beside a strided one": [
      "TB_PLACEMENT",
      withValue(good, ["pairs", "p", "source"], {
        ...layout([Shard(-3), StridedShard(0, 2)]),
        stridedShard: "split",
      }),
    ],
    "mixed operators": [
      "TB_PARTIAL_OP",
      withValue(good, ["pairs", "p", "source"], layout([Partial("max"), Partial("sum")])),
    ],
    "an average of integers": [
      "TB_PARTIAL_OP",
      withValue(good, ["pairs", "p", "source"], layout([Partial("avg"), Replicate()])),
    ],
    "a Partial target": [
      "TB_PARTIAL_TARGET",
      withValue(good, ["pairs", "p", "target"], layout([Partial("sum"), Replicate()])),
    ],
    "an unknown type": ["TB_DTYPE", withValue(good, ["tensors", "0", "dtype"], "complex128")],
    "nine dimensions": ["TB_SHAPE", withValue(good, ["tensors", "0", "shape"], [1, 1, 1, 1, 1, 1, 1, 1, 1])],
    "more than 2^62 bytes": ["TB_SHAPE", withValue(good, ["tensors", "0", "shape"], [2 ** 31, 2 ** 31])],
    "a negative size": ["TB_SHAPE", withValue(good, ["tensors", "0", "shape"], [4, -6])],
    "a selection outside of its mesh": [
      "TB_MESH",
      withValue(good, ["tensors", "1", "source"], { select: { dim: 2, index: 0, of: 4 } }),
    ],
    "a selection of nothing": [
      "TB_MESH",
      withValue(good, ["tensors", "1", "source"], { select: { dim: 0, index: 4, of: 4 } }),
    ],
    "a bucket that is too small": ["TB_PLAN_INPUT", withValue(good, ["bucketBytes"], 4095)],
    "a host list that is too short": [
      "TB_TOPOLOGY",
      withValue(good, ["topology"], { hosts: [0, 1], hostMBps: 1, networkMBps: 1, latencyUs: 1 }),
    ],
  };
  for (const [name, [code, input]] of Object.entries(wrong)) {
    it(`refuses ${name}`, async () => {
      expect(await failureOf(input)).toMatchObject({ code });
    });
  }
});
