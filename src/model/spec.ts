import { dirname, resolve } from "node:path";
import { DeviceMesh, type DType, type StridedShardReading } from "../layout/index.ts";
import type { PlanInput, TopologyInput } from "../plan/types.ts";
import { readModelConfig } from "./config.ts";
import { readTextFile } from "./files.ts";
import { describeIssue } from "./issues.ts";
import { openSafetensors } from "./safetensors.ts";
import { SpecDocument } from "./spec-document.ts";
import { applyRules } from "./spec-rules.ts";
import { type Budget, type SpecInput, type SpecSideInput, specSchema } from "./spec-schema.ts";
import type { ModelTensor } from "./tensor.ts";

export type { Budget } from "./spec-schema.ts";

/** One side of a spec. */
export interface SpecSide {
  readonly name: string;
  readonly mesh: DeviceMesh;
  readonly stridedShard: StridedShardReading | undefined;
}

/** A spec that was read and checked: what the planner takes, and what the command line adds. */
export interface Spec {
  readonly file: string;
  readonly source: SpecSide;
  readonly target: SpecSide;
  readonly input: PlanInput;
  readonly budget: Budget;
}

const maxSpecBytes = 64 * 2 ** 20;

/**
 * Reads a spec, YAML or JSON. `TB_SPEC` names file, line, path and values; what its model says wrong is
 * `TB_MODEL_CONFIG`, `TB_SAFETENSORS` or `TB_FILE`. Paths in it are relative to its own folder.
 */
export async function loadSpec(path: string): Promise<Spec> {
  return parseSpec(await readTextFile(path, maxSpecBytes), path);
}

/** `loadSpec` of a text; `file` is its name in messages, and its folder the one of relative paths. */
export async function parseSpec(text: string, file: string): Promise<Spec> {
  const document = new SpecDocument(text, file);
  const result = specSchema.safeParse(document.value, { reportInput: true });
  if (!result.success) {
    const { message, path } = describeIssue(result.error.issues[0]!);
    throw document.error(path, message);
  }
  const spec = result.data;
  const source = readSide(document, "source", spec.source, 0);
  const target = readSide(
    document,
    "target",
    spec.target,
    spec.colocated ? 0 : source.mesh.ranks.reduce((a, b) => Math.max(a, b)) + 1,
  );
  checkOverlap(document, source, target, spec.colocated === true);
  const tensors = await readModel(document, spec.model, dirname(resolve(file)));
  const applied = applyRules(document, spec, tensors, { source, target });
  return { file, source, target, input: { ...applied, ...planOptions(spec) }, budget: spec.budget ?? {} };
}

function readSide(
  document: SpecDocument,
  key: "source" | "target",
  side: SpecSideInput,
  firstRank: number,
): SpecSide {
  const size = side.mesh.reduce((product, extent) => product * extent, 1);
  const mesh = document.at([key, side.ranks === undefined ? "mesh" : "ranks"], () => {
    // A mesh that is too large or no integer is refused before its ranks are counted out.
    const shape = new DeviceMesh(side.mesh).shape;
    const ranks = side.ranks ?? Array.from({ length: size }, (_, index) => firstRank + index);
    return new DeviceMesh(shape, { ranks, ...(side.dimNames !== undefined && { dimNames: side.dimNames }) });
  });
  return { name: side.name ?? key, mesh, stridedShard: side.stridedShard };
}

/** Ranks on both sides move data within a process: an easy mistake in a spec, so that it has to be said. */
function checkOverlap(document: SpecDocument, source: SpecSide, target: SpecSide, colocated: boolean): void {
  const sources = new Set(source.mesh.ranks);
  const shared = [...target.mesh.ranks].filter((rank) => sources.has(rank)).sort((a, b) => a - b);
  if (shared.length === 0 || colocated) return;
  throw document.error(
    ["target", "ranks"],
    `${shared.length === 1 ? `rank ${shared[0]} is` : `${shared.length} ranks, ${shared[0]} the first, are`} on both sides; ` +
      "if the same processes are meant, say `colocated: true`",
    { shared },
  );
}

async function readModel(
  document: SpecDocument,
  model: SpecInput["model"],
  folder: string,
): Promise<readonly ModelTensor[]> {
  if (model.config !== undefined) {
    const { dtype, mtp, quantized } = model;
    return readModelConfig(resolve(folder, model.config), {
      ...(dtype !== undefined && { dtype }),
      ...(mtp !== undefined && { mtp }),
      ...(quantized !== undefined && { quantized }),
    });
  }
  if (model.safetensors !== undefined) {
    await using checkpoint = await openSafetensors(resolve(folder, model.safetensors));
    return [...checkpoint.tensors.values()].map(({ name, shape, dtype }) => ({ name, shape, dtype }));
  }
  const tensors: readonly { name: string; shape: number[]; dtype: DType }[] = model.tensors ?? [];
  const names = new Set<string>();
  for (const [index, { name }] of tensors.entries()) {
    if (names.has(name))
      throw document.error(["model", "tensors", index, "name"], `${name} stands twice`, { name });
    names.add(name);
  }
  return tensors;
}

/** What the spec hands to the planner as it stands. */
function planOptions(spec: SpecInput): Omit<PlanInput, "pairs" | "tensors"> {
  const { bucketBytes, bucketsInFlight, peersInFlight, strategy, topology, maxChunks } = spec;
  return {
    ...(bucketBytes !== undefined && { bucketBytes }),
    ...(bucketsInFlight !== undefined && { bucketsInFlight }),
    ...(peersInFlight !== undefined && { peersInFlight }),
    ...(strategy !== undefined && { strategy }),
    ...(topology !== undefined && { topology: topology as TopologyInput }),
    ...(maxChunks !== undefined && { maxChunks }),
  };
}
