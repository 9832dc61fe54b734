/**
 * The planner benchmark: what planning costs, warm, in this process; each case beside the most that it may take. A plan
 * is made from its input and its digest taken; `plan/` and `pattern/` cases also iterate over all chunks, `program/`
 * cases lower the part of one rank.
 */
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

export interface PlannerOptions {
  /** Measured runs of a case, after a third as many to warm up; default 15. */
  readonly pairs?: number | undefined;
  /** Only cases whose name contains this. */
  readonly filter?: string | undefined;
  readonly log?: (line: string) => void;
}

export interface PlannerResult {
  readonly name: string;
  readonly runs: number;
  /** Medians. */
  readonly milliseconds: number;
  /** The most that is promised; `null` where nothing is yet. */
  readonly ceilingMilliseconds: number | null;
  readonly holds: boolean;
}

interface Case {
  readonly name: string;
  readonly limit: number | null;
  readonly run: () => Promise<unknown>;
}

const range = (first: number, count: number) => Array.from({ length: count }, (_, index) => first + index);

const rows: PlanInput = {
  pairs: {
    p: {
      source: { mesh: new DeviceMesh([2048]), placements: [Shard(0)] },
      target: { mesh: new DeviceMesh([16], { ranks: range(2048, 16) }), placements: [Shard(1)] },
    },
  },
  tensors: [{ name: "w", pair: "p", shape: [8192, 4096], dtype: "float32" }],
};

/** Source mesh, target mesh, split factor of the target's strided shard. */
const meshPairs: readonly (readonly [readonly number[], readonly number[], number])[] = [
  [[1, 1, 4, 2], [4, 2, 1, 1], 1],
  [[8, 1, 1, 1], [1, 2, 2, 2], 2],
  [[1, 2, 4, 1], [8, 1, 1, 1], 1],
  [[2, 2, 2, 1], [1, 1, 4, 2], 2],
  [[2, 4, 1, 1], [1, 2, 4, 1], 1],
  [[4, 1, 1, 2], [2, 1, 1, 4], 4],
  [[4, 1, 2, 1], [1, 1, 1, 8], 8],
  [[4, 2, 1, 1], [1, 1, 2, 4], 4],
];
const sources: Readonly<Record<string, readonly Placement[]>> = {
  no_partial: [Replicate(), Shard(0), Replicate(), Shard(1)],
  replicate_dp: [Replicate(), Replicate(), Replicate(), Shard(1)],
  partial_dp: [Replicate(), Partial("sum"), Replicate(), Shard(1)],
};

function patternCases(): Case[] {
  return meshPairs.flatMap(([sourceMesh, targetMesh, factor], index) =>
    Object.entries(sources).map(([name, placements]) => {
      const input: PlanInput = {
        pairs: {
          p: {
            source: { mesh: new DeviceMesh(sourceMesh), placements },
            target: {
              mesh: new DeviceMesh(targetMesh, { ranks: range(8, 8) }),
              placements: [Replicate(), Replicate(), StridedShard(0, factor), Shard(0)],
            },
          },
        },
        tensors: [{ name: "w", pair: "p", shape: [4096, 4096], dtype: "float32" }],
      };
      return { name: `pattern/bench${index + 1}_${name}`, limit: 0.2, run: () => drain(input) };
    }),
  );
}

async function drain(input: PlanInput): Promise<number> {
  let count = 0;
  for (const _ of (await planTransfer(input)).chunks()) count++;
  return count;
}

/** Weights of a DeepSeek-V3 layer besides its routed experts. */
const layer: Readonly<Record<string, readonly number[]>> = {
  "self_attn.q_a_proj": [1536, 7168],
  "self_attn.q_b_proj": [24576, 1536],
  "self_attn.kv_a_proj_with_mqa": [576, 7168],
  "self_attn.kv_b_proj": [32768, 512],
  "self_attn.o_proj": [7168, 16384],
  input_layernorm: [7168],
  post_attention_layernorm: [7168],
  "mlp.gate": [256, 7168],
  "mlp.shared_experts.gate_proj": [2048, 7168],
  "mlp.shared_experts.up_proj": [2048, 7168],
  "mlp.shared_experts.down_proj": [7168, 2048],
};

function mixtureOfExperts(sourceRanks: number, targetRanks: number, experts: number): PlanInput {
  const tensors: TensorInput[] = [];
  for (let index = 0; index < 61; index++) {
    for (const [name, shape] of Object.entries(layer)) {
      tensors.push({ name: `model.layers.${index}.${name}.weight`, pair: "p", shape, dtype: "bfloat16" });
    }
    for (let expert = 0; index >= 3 && expert < experts; expert++) {
      for (const name of ["gate_proj", "up_proj", "down_proj"]) {
        tensors.push({
          name: `model.layers.${index}.mlp.experts.${expert}.${name}.weight`,
          pair: "p",
          shape: name === "down_proj" ? [7168, 2048] : [2048, 7168],
          dtype: "bfloat16",
          target: { select: { dim: 0, index: expert, of: experts } },
        });
      }
    }
  }
  return {
    pairs: {
      p: {
        source: { mesh: new DeviceMesh([sourceRanks]), placements: [Shard(0)] },
        target: {
          mesh: new DeviceMesh([targetRanks], { ranks: range(sourceRanks, targetRanks) }),
          placements: [Replicate()],
        },
      },
    },
    tensors,
  };
}

const deepseek = mixtureOfExperts(256, 128, 256);
const trillion = mixtureOfExperts(1024, 384, 384);
const cases: readonly Case[] = [
  { name: "plan/rows2048_to_columns16_chunks", limit: 30, run: () => drain(rows) },
  ...patternCases(),
  {
    name: "program/deepseek_v3_source",
    limit: 300,
    run: async () => (await planTransfer(deepseek)).program(0),
  },
  {
    name: "program/deepseek_v3_target",
    limit: 300,
    run: async () => (await planTransfer(deepseek)).program(256),
  },
  {
    name: "program/trillion_source",
    limit: null,
    run: async () => (await planTransfer(trillion)).program(0),
  },
  {
    name: "program/trillion_target",
    limit: null,
    run: async () => (await planTransfer(trillion)).program(1024),
  },
];

export async function bench({ pairs: runs = 15, filter = "", log = () => {} }: PlannerOptions) {
  const results: PlannerResult[] = [];
  for (const { name, limit, run } of cases.filter((one) => one.name.includes(filter))) {
    const times: number[] = [];
    for (let count = -Math.ceil(runs / 3); count < runs; count++) {
      const start = performance.now();
      await run();
      if (count >= 0) times.push(performance.now() - start);
    }
    times.sort((a, b) => a - b);
    const milliseconds = Number(times[runs >> 1]!.toFixed(4));
    const holds = limit === null || milliseconds <= limit;
    results.push({ name, runs, milliseconds, ceilingMilliseconds: limit, holds });
    log(`${name}: ${milliseconds} ms${limit === null ? "" : ` of ${limit} ms${holds ? "" : ", too slow"}`}`);
  }
  return results;
}
