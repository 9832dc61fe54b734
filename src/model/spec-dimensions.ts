import type { Placement } from "../layout/index.ts";
import { collapseNames } from "./names.ts";
import type { SpecPlaces } from "./spec-places.ts";
import { type ResolvedSpec, resolveSpec } from "./spec-resolve.ts";
import type { SpecInput } from "./spec-schema.ts";
import type { ModelTensor } from "./tensor.ts";

/** Tensors of a rule that have too few dimensions for what it says of a side. */
interface UnfitTensors {
  readonly side: "source" | "target";
  readonly names: readonly string[];
  /** What the rule does, and the rule that would be missing. */
  readonly what: string;
}

/** `resolveSpec` of a spec with rules of placements. A rule that does not fit all of its tensors is `TB_SPEC`, and names the one to add. */
export function resolveFitting(
  places: SpecPlaces,
  spec: SpecInput,
  tensors: readonly ModelTensor[],
): ResolvedSpec {
  const resolved = resolveSpec(places, spec, tensors);
  for (const rule of (spec.placements ?? []).keys()) {
    const unfit = findUnfit(resolved, rule, exampleRule);
    if (unfit === undefined) continue;
    throw places.error(["placements", rule, unfit.side], unfit.what, { tensors: unfit.names });
  }
  return resolved;
}

/** It stands before the rule that does not fit: the first that matches takes a tensor. */
function exampleRule(match: string, source: string, target: string): string {
  return `{match: "${match}", source: [${source}], target: [${target}]} before this one`;
}

/** The first side of a rule that does not fit all of its tensors; `example` writes a rule that fits the others. */
export function findUnfit(
  { input, ruleOf }: Pick<ResolvedSpec, "input" | "ruleOf">,
  rule: number,
  example: (match: string, source: string, target: string) => string,
): UnfitTensors | undefined {
  const taken = input.tensors.filter((_, tensor) => ruleOf[tensor] === rule);
  for (const side of ["source", "target"] as const) {
    const odd = taken.filter(({ pair, shape }) =>
      input.pairs[pair]![side].placements.some((placement) => cuts(placement, shape.length)),
    );
    if (odd.length === 0) continue;
    const names = odd.map(({ name }) => name);
    const takesAll = taken.length === input.tensors.length;
    if (odd.length === taken.length) {
      const most = odd.reduce((dimensions, { shape }) => Math.max(dimensions, shape.length), 0);
      const none = takesAll ? "no tensor" : "no tensor that it takes";
      const what = `cuts a dimension that ${none} has: they have ${most} at the most, numbered from 0`;
      return { side, names, what };
    }
    const pair = input.pairs[odd[0]!.pair]!;
    const suits = (each: "source" | "target") => pair[each].placements.map(() => "R").join(",");
    const what =
      `cuts a dimension that ${odd.length} of ${takesAll ? `${taken.length} tensors` : `the ${taken.length} tensors that it takes`} do not have: ` +
      `${collapseNames(names)}. Add a rule for them, such as ${example(expressionFor(names), suits("source"), suits("target"))}`;
    return { side, names, what };
  }
  return undefined;
}

function cuts(placement: Placement, ndim: number): boolean {
  if (placement.kind !== "shard" && placement.kind !== "stridedShard") return false;
  return placement.dim >= ndim || placement.dim < -ndim;
}

/** The words that tell these names from others: `norm|bias`. */
function expressionFor(names: readonly string[]): string {
  const words = names.map((name) => {
    const parts = name.split(".");
    return parts.length > 1 && parts.at(-1) === "weight" ? parts.at(-2)! : parts.at(-1)!;
  });
  const distinct = [...new Set(words)].sort();
  return distinct.length <= 6 ? distinct.join("|") : `^${names[0]}$`;
}
