import { DeviceMesh, type StridedShardReading } from "../layout/index.ts";
import type { PlanInput, TopologyInput } from "../plan/input/types.ts";
import { describeIssue } from "./issues.ts";
import type { SpecPlaces } from "./spec-places.ts";
import { applyRules } from "./spec-rules.ts";
import { type Budget, onceParsed, type SpecInput, type SpecSideInput, specSchema } from "./spec-schema.ts";
import type { ModelTensor } from "./tensor.ts";

/** One side of a spec. */
export interface SpecSide {
  readonly name: string;
  readonly mesh: DeviceMesh;
  readonly stridedShard: StridedShardReading | undefined;
}

/** What a spec and the tensors of its model come to. */
export interface ResolvedSpec {
  readonly source: SpecSide;
  readonly target: SpecSide;
  readonly input: PlanInput;
  /** For each tensor of the input the index of the rule that took it. */
  readonly ruleOf: readonly number[];
  readonly budget: Budget;
}

/** The values of a spec, checked one by one. */
export function checkSpec(places: SpecPlaces, value: unknown): SpecInput {
  const result = specSchema.safeParse(value, onceParsed);
  if (result.success) return result.data;
  const { message, path } = describeIssue(result.error.issues[0]!);
  throw places.error(path, message);
}

/** Meshes, layouts and options of a spec for these tensors: nothing is read, so that it works in a browser too. */
export function resolveSpec(
  places: SpecPlaces,
  spec: SpecInput,
  tensors: readonly ModelTensor[],
): ResolvedSpec {
  const source = readSide(places, "source", spec.source, 0);
  const target = readSide(
    places,
    "target",
    spec.target,
    spec.colocated ? 0 : source.mesh.ranks.reduce((a, b) => Math.max(a, b)) + 1,
  );
  checkOverlap(places, source, target, spec.colocated === true);
  const { ruleOf, ...applied } = applyRules(places, spec, tensors, { source, target });
  return { source, target, input: { ...applied, ...planOptions(spec) }, ruleOf, budget: spec.budget ?? {} };
}

function readSide(
  places: SpecPlaces,
  key: "source" | "target",
  side: SpecSideInput,
  firstRank: number,
): SpecSide {
  const sizes = side.mesh ?? [];
  const size = sizes.reduce((product, extent) => product * extent, 1);
  const mesh = places.at([key, side.ranks === undefined ? "mesh" : "ranks"], () => {
    // A mesh that is too large or no integer is refused before its ranks are counted out.
    const shape = new DeviceMesh(sizes).shape;
    const ranks = side.ranks ?? Array.from({ length: size }, (_, index) => firstRank + index);
    return new DeviceMesh(shape, { ranks, ...(side.dimNames !== undefined && { dimNames: side.dimNames }) });
  });
  return { name: side.name ?? key, mesh, stridedShard: side.stridedShard };
}

/** Ranks on both sides move data within a process: an easy mistake in a spec, so that it has to be said. */
export function checkOverlap(
  places: SpecPlaces,
  source: SpecSide,
  target: SpecSide,
  colocated: boolean,
): void {
  const sources = new Set(source.mesh.ranks);
  const shared = [...target.mesh.ranks].filter((rank) => sources.has(rank)).sort((a, b) => a - b);
  if (shared.length === 0 || colocated) return;
  throw places.error(
    ["target", "ranks"],
    `${shared.length === 1 ? `rank ${shared[0]} is` : `${shared.length} ranks, ${shared[0]} the first, are`} on both sides; ` +
      "if the same processes are meant, say `colocated: true`",
    { shared },
  );
}

/** What the spec hands to the planner as it stands. */
export function planOptions(spec: SpecInput): Omit<PlanInput, "pairs" | "tensors"> {
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
