import type { Placement } from "../layout/index.ts";
import { collapseNames } from "./names.ts";
import type { ResolvedSpec } from "./spec-resolve.ts";

/** Tensors of a rule that have too few dimensions for what it says of a side. */
export interface UnfitTensors {
  readonly side: "source" | "target";
  readonly names: readonly string[];
  /** What the rule does, and the rule that would be missing. */
  readonly what: string;
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
