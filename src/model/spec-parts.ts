import { DeviceMesh } from "../layout/index.ts";
import type { Model } from "./config.ts";
import { applyParts } from "./parts/apply.ts";
import { type JoinedSides, joinSides } from "./parts/join.ts";
import { LocalLayouts } from "./parts/local.ts";
import type { PartedSide } from "./parts/parted.ts";
import { type PartsProof, proveParts } from "./parts/proof.ts";
import type { PartRule, SideRules } from "./parts/rule.ts";
import { presetSide } from "./presets/side.ts";
import type { SpecPlaces } from "./spec-places.ts";
import { checkOverlap, planOptions, type ResolvedSpec, type SpecSide } from "./spec-resolve.ts";
import { dtypeRule } from "./spec-rules.ts";
import type { PartRuleInput, SpecInput, SpecSideInput } from "./spec-schema.ts";
import type { ModelTensor } from "./tensor.ts";

/** Both sides of a spec in parts: what the planner takes, and which parameters its tensors are of. */
export interface PartedSpec {
  readonly source: PartedSide;
  readonly target: PartedSide;
  readonly proofs: { readonly source: PartsProof; readonly target: PartsProof };
  readonly joined: JoinedSides;
}

/** What a spec comes to whose sides are presets or have rules of parts. */
interface ResolvedPartedSpec extends Omit<ResolvedSpec, "ruleOf"> {
  readonly parts: PartedSpec;
}

/** `resolveSpec` for sides in parts. `TB_SPEC` at the place, with the code of what does not fit: `TB_PARTS`, `TB_PRESET`. */
export function resolvePartedSpec(
  places: SpecPlaces,
  spec: SpecInput,
  tensors: readonly ModelTensor[],
  model: Model | undefined,
): ResolvedPartedSpec {
  const parts = resolveParts(places, spec, tensors, model);
  const source = rankSide(spec.source, "source", parts.source);
  const target = rankSide(spec.target, "target", parts.target);
  checkOverlap(places, source, target, spec.colocated === true);
  const { pairs, tensors: planned } = parts.joined;
  return {
    source,
    target,
    input: { pairs, tensors: planned, ...planOptions(spec) },
    budget: spec.budget ?? {},
    parts,
  };
}

/** A side of parameters has meshes of its own for each: what it has as a whole is its ranks. */
function rankSide(side: SpecSideInput, key: "source" | "target", { ranks }: PartedSide): SpecSide {
  const mesh = new DeviceMesh([ranks.length], { ranks });
  return { name: side.name ?? side.preset ?? key, mesh, stridedShard: undefined };
}

function resolveParts(
  places: SpecPlaces,
  spec: SpecInput,
  tensors: readonly ModelTensor[],
  model: Model | undefined,
): PartedSpec {
  const source = partedSide(places, "source", spec.source, tensors, model, 0);
  const first = spec.colocated === true ? 0 : source.ranks.reduce((a, b) => Math.max(a, b)) + 1;
  const target = partedSide(places, "target", spec.target, tensors, model, first);
  const proofs = {
    source: places.at(["source"], () => proveParts(new LocalLayouts(source))),
    target: places.at(["target"], () => proveParts(new LocalLayouts(target))),
  };
  const targetType = dtypeRule(places, spec.targetDtype, tensors);
  const joined = places.at(["target"], () => joinSides(source, target, targetType));
  return { source, target, proofs, joined };
}

function partedSide(
  places: SpecPlaces,
  key: "source" | "target",
  side: SpecSideInput,
  tensors: readonly ModelTensor[],
  model: Model | undefined,
  firstRank: number,
): PartedSide {
  const options = model === undefined ? {} : { modelDtype: model.dtype };
  if (side.preset !== undefined) {
    if (model === undefined)
      throw places.error([key, "preset"], "needs the model's config: give model: { config: FILE }");
    return places.at([key, "preset"], () => {
      const rules = presetSide(side.preset!, model, side.ranks?.[0] ?? firstRank);
      if (side.ranks !== undefined) checkRanks(places, key, side.ranks, rules);
      return applyParts(rules, tensors, options);
    });
  }
  const rules = places.at([key, "meshes"], () => rulesOf(side));
  return places.at([key, "parameters"], () => applyParts(rules, tensors, { ...options, allUsed: true }));
}

/** A preset counts its ranks out from the first: named ones must be those. */
function checkRanks(places: SpecPlaces, key: string, ranks: readonly number[], rules: SideRules): void {
  const same =
    ranks.length === rules.ranks.length && ranks.every((rank, index) => rank === rules.ranks[index]);
  if (same) return;
  throw places.error(
    [key, "ranks"],
    `${ranks.length} ranks for a preset that has ${rules.ranks.length}, from ${rules.ranks[0]} on`,
    { ranks: ranks.length, preset: rules.ranks.length },
  );
}

function rulesOf({ ranks = [], meshes = {}, parameters = [] }: SpecSideInput): SideRules {
  return {
    ranks,
    meshes: Object.fromEntries(
      Object.entries(meshes).map(([name, shape]) => [name, new DeviceMesh(shape, { ranks })]),
    ),
    parameters: parameters.map(ruleOf),
  };
}

/** Optional values of a schema may be there and undefined; those of a rule are not. */
function ruleOf(rule: PartRuleInput): PartRule {
  return JSON.parse(JSON.stringify(rule)) as PartRule;
}
