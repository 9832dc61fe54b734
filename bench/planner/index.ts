/**
 * The planner benchmark: what planning costs, warm, in this process; each case beside its floor, the time of hashing,
 * listing or copying as much without planning, and the most that it may take. A plan is made from its input and its digest taken; `plan/` and `pattern/` cases also iterate over all chunks, `program/`
 * cases lower the part of one rank, `stats/` cases sum up the whole world, `verify/` cases do that and
 * prove it by its patterns, `parts/` cases prove that an engine's parameters hold a model whole.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { modelOf } from "../../src/model/config.ts";
import { applyParts } from "../../src/model/parts/apply.ts";
import { LocalLayouts } from "../../src/model/parts/local.ts";
import type { PartedSide } from "../../src/model/parts/parted.ts";
import { proveParts } from "../../src/model/parts/proof.ts";
import { presetSide } from "../../src/model/presets/side.ts";
import { loadSpec } from "../../src/model/spec.ts";
import {
  DeviceMesh,
  Partial,
  type Placement,
  type Plan,
  type PlanInput,
  planTransfer,
  Replicate,
  Shard,
  StridedShard,
  type TensorInput,
} from "../../src/plan/index.ts";
import { type Made, runFloor } from "./floor.ts";

export interface PlannerOptions {
  /** The folder of the package. */
  readonly root: string;
  /** Measured runs of a case, once it is warm; default 15. */
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
  /** Of `runFloor`, measured in turn with it. */
  readonly floorMilliseconds: number;
  /** The floor's time by ours: 1 is the ceiling. */
  readonly ofCeiling: number;
  /** The most that is promised. */
  readonly limitMilliseconds: number;
  readonly holds: boolean;
}

interface Case {
  readonly name: string;
  readonly limit: number;
  /** Fewer runs than are asked for, if one takes seconds. */
  readonly runs?: number;
  readonly run: () => Promise<Made>;
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

async function drain(input: PlanInput): Promise<Made> {
  const plan = await planTransfer(input);
  let listed = 0;
  for (const _ of plan.chunks()) listed++;
  return { planBytes: plan.bytes, listed };
}

async function sumUp(plan: Promise<Plan>): Promise<Made> {
  const { bytes: planBytes } = await plan;
  return { planBytes, visited: Number((await plan).stats().chunks) };
}

async function lower(plan: Promise<Plan>, rank: number): Promise<Made> {
  const { bytes: programBytes } = (await plan).program(rank);
  return { planBytes: (await plan).bytes, programBytes };
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

/** Kimi-K2 from 1024 ranks to 384, as the example has it; read once, when a case first asks for it. */
let trillion: Promise<PlanInput> | undefined;
async function trillionPlan(root: string): Promise<Plan> {
  trillion ??= loadSpec(join(root, "examples/specs/kimi-k2.yaml")).then(({ input }) => input);
  return planTransfer(await trillion);
}

/** Kimi-K2 as vLLM holds it on 384 ranks: its 400,000 pieces are proved whole, anew each time. */
let parted: PartedSide | undefined;
function proveTrillion(root: string): Made {
  if (parted === undefined) {
    const text = readFileSync(join(root, "examples/specs/kimi-k2.json"), "utf8");
    const model = modelOf(text, { quantized: false });
    parted = applyParts(presetSide("vllm:tp=8,dp=48,ep", model), model.tensors, { modelDtype: model.dtype });
  }
  return { planBytes: new Uint8Array(0), visited: proveParts(new LocalLayouts(parted)).pieces };
}

/** 64 replicas of 16 shards, from 2048 ranks. */
const replicated: PlanInput = {
  pairs: {
    p: {
      source: { mesh: new DeviceMesh([2048]), placements: [Shard(0)] },
      target: {
        mesh: new DeviceMesh([64, 16], { ranks: range(2048, 1024) }),
        placements: [Replicate(), Shard(1)],
      },
    },
  },
  tensors: rows.tensors,
};

const casesOf = (root: string): readonly Case[] => [
  { name: "plan/rows2048_to_columns16_chunks", limit: 30, run: () => drain(rows) },
  {
    name: "plan/rows2048_to_64x16_striped_chunks",
    limit: 60,
    run: () => drain({ ...replicated, strategy: "striped" }),
  },
  {
    name: "plan/rows2048_to_64x16_direct_chunks",
    limit: 1000,
    run: () => drain({ ...replicated, strategy: "direct" }),
  },
  ...patternCases(),
  {
    name: "program/deepseek_v3_source",
    limit: 300,
    run: () => lower(planTransfer(deepseek), 0),
  },
  {
    name: "program/deepseek_v3_target",
    limit: 300,
    run: () => lower(planTransfer(deepseek), 256),
  },
  {
    name: "parts/kimi_k2_proof",
    limit: 1000,
    runs: 5,
    run: async () => proveTrillion(root),
  },
  {
    name: "program/kimi_k2_source",
    limit: 200,
    run: () => lower(trillionPlan(root), 0),
  },
  {
    name: "program/kimi_k2_target",
    limit: 500,
    run: () => lower(trillionPlan(root), 1024),
  },
  {
    name: "stats/kimi_k2_world",
    limit: 10_000,
    runs: 2,
    run: () => sumUp(trillionPlan(root)),
  },
  {
    name: "verify/kimi_k2_patterns",
    limit: 10_000,
    runs: 1,
    run: async () => {
      const plan = trillionPlan(root);
      (await plan).verify();
      return sumUp(plan);
    },
  },
];

export async function bench({ root, pairs: runs = 15, filter = "", log = () => {} }: PlannerOptions) {
  const results: PlannerResult[] = [];
  for (const one of casesOf(root).filter(({ name }) => name.includes(filter))) {
    const result = await benchCase(one, Math.min(runs, one.runs ?? runs));
    results.push(result);
    const { name, milliseconds, floorMilliseconds, limitMilliseconds, holds } = result;
    log(
      `${name}: ${milliseconds} ms, floor ${floorMilliseconds} ms, limit ${limitMilliseconds} ms${holds ? "" : ", too slow"}`,
    );
  }
  return results;
}

/** A case that takes no time is compiled only after hundreds of runs. */
const warmUpMs = 500;

/** The case and its floor in turn, once both are warm: after a third as many runs, and that long. */
async function benchCase({ name, limit, run }: Case, runs: number): Promise<PlannerResult> {
  const times: number[] = [];
  const floors: number[] = [];
  const warmAt = performance.now() + warmUpMs;
  for (let count = 0; count < Math.ceil(runs / 3) || performance.now() < warmAt; count++)
    runFloor(await run());
  for (let count = 0; count < runs; count++) {
    const start = performance.now();
    const made = await run();
    const middle = performance.now();
    runFloor(made);
    const end = performance.now();
    times.push(middle - start);
    floors.push(end - middle);
  }
  const [milliseconds, floorMilliseconds] = [median(times), median(floors)];
  return {
    name,
    runs,
    milliseconds,
    floorMilliseconds,
    ofCeiling: Number((floorMilliseconds / milliseconds).toFixed(4)),
    limitMilliseconds: limit,
    holds: milliseconds <= limit,
  };
}

function median(times: number[]): number {
  return Number(times.toSorted((a, b) => a - b)[times.length >> 1]!.toFixed(4));
}
