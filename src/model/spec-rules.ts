import type { DType, Placement } from "../layout/index.ts";
import { formatPlacement } from "../layout/index.ts";
import type { PairInput, SelectInput, TensorInput, TensorSideInput } from "../plan/input/types.ts";
import { NameExpression } from "./expression.ts";
import type { SpecPath, SpecPlaces } from "./spec-places.ts";
import type { SpecSide } from "./spec-resolve.ts";
import type { DtypeRule, RuleSide, SpecInput } from "./spec-schema.ts";
import type { ModelTensor } from "./tensor.ts";

type SideName = "source" | "target";

interface Rule {
  readonly match: NameExpression;
  readonly pair: string;
  readonly source: RuleSide;
  readonly target: RuleSide;
  readonly targetDtype?: DType | undefined;
  readonly path: SpecPath;
}

interface AppliedRules {
  readonly pairs: Record<string, PairInput>;
  readonly tensors: TensorInput[];
  /** For each tensor the index of the rule that takes it. */
  readonly ruleOf: readonly number[];
}

/** The pairs and tensors of a plan: each tensor by the first rule whose expression is found in its name. */
export function applyRules(
  places: SpecPlaces,
  spec: SpecInput,
  tensors: readonly ModelTensor[],
  sides: Readonly<Record<SideName, SpecSide>>,
): AppliedRules {
  const pairs: Record<string, PairInput> = {};
  const rules = (spec.placements ?? []).map((rule, index): Rule => {
    const path = ["placements", index];
    const pair = pairName(rule);
    pairs[pair] ??= {
      source: layout(places, [...path, "source"], rule.source.placements, sides.source),
      target: layout(places, [...path, "target"], rule.target.placements, sides.target),
    };
    return { ...rule, match: expression(places, [...path, "match"], rule.match), pair, path };
  });
  const targetDtype = dtypeRule(places, spec.targetDtype, tensors);
  const ruleOf: number[] = [];
  const unmatched: string[] = [];
  const planned = tensors.flatMap(({ name, shape, dtype }): TensorInput[] => {
    const rule = firstMatch(rules, name);
    if (rule === undefined) {
      unmatched.push(name);
      return [];
    }
    ruleOf.push(rules.indexOf(rule));
    const source = tensorSide(places, rule, "source", sides.source, name);
    const target = tensorSide(places, rule, "target", sides.target, name);
    return [
      {
        name,
        pair: rule.pair,
        shape,
        dtype,
        targetDtype: rule.targetDtype ?? targetDtype(name) ?? dtype,
        ...(source && { source }),
        ...(target && { target }),
      },
    ];
  });
  if (unmatched.length > 0) {
    throw places.error(
      ["placements"],
      `${unmatched.length} of ${tensors.length} tensors match no rule: ${someNames(unmatched)}`,
      {
        unmatched,
      },
    );
  }
  const used = new Set(ruleOf);
  rules.forEach((rule, index) => {
    // A last rule for whatever is left may find nothing left.
    const isRest = index === rules.length - 1 && rule.match.source === ".*";
    if (!used.has(index) && !(isRest && tensors.length > 0)) throw unusedError(places, rule, tensors);
  });
  return { pairs: usedPairs(pairs, planned), tensors: planned, ruleOf };
}

/** Without those of a last rule that found nothing left. */
function usedPairs(
  pairs: Readonly<Record<string, PairInput>>,
  tensors: readonly TensorInput[],
): Record<string, PairInput> {
  const used = new Set(tensors.map(({ pair }) => pair));
  return Object.fromEntries(Object.entries(pairs).filter(([name]) => used.has(name)));
}

/** Rules with the same placements share a pair. */
export function pairName({ source, target }: Readonly<Record<SideName, RuleSide>>): string {
  return `${formatSide(source.placements)} -> ${formatSide(target.placements)}`;
}

function firstMatch<R extends { readonly match: NameExpression }>(
  rules: readonly R[],
  name: string,
): R | undefined {
  return rules.find(({ match }) => match.test(name));
}

/** A rule that takes no tensor is a mistake: a misspelt name, or a rule that an earlier one hides. */
function unusedError(
  places: SpecPlaces,
  rule: { readonly match: NameExpression; readonly path: SpecPath },
  tensors: readonly ModelTensor[],
): Error {
  const hidden = tensors.filter(({ name }) => rule.match.test(name)).length;
  const what =
    hidden === 0
      ? `${rule.match.source} matches none of the ${tensors.length} tensors`
      : `earlier rules take all ${hidden} tensors that ${rule.match.source} matches`;
  return places.error([...rule.path, "match"], what, { match: rule.match.source, hidden });
}

function layout(
  places: SpecPlaces,
  path: SpecPath,
  placements: readonly Placement[],
  { mesh, stridedShard, name }: SpecSide,
): PairInput["source"] {
  if (placements.length !== mesh.ndim) {
    throw places.error(
      path,
      `${placements.length} placements ${formatSide(placements)} for the ${mesh.ndim} dimensions of ${name}'s mesh ${mesh.shape.join(" x ")}`,
      { placements: placements.map(formatPlacement), mesh: mesh.shape },
    );
  }
  return { mesh, placements, ...(stridedShard !== undefined && { stridedShard }) };
}

function tensorSide(
  places: SpecPlaces,
  rule: Rule,
  sideName: SideName,
  side: SpecSide,
  tensor: string,
): TensorSideInput | undefined {
  const { select, stridedShard } = rule[sideName];
  if (select === undefined && stridedShard === undefined) return undefined;
  const path = (...rest: string[]): SpecPath => [...rule.path, sideName, "select", ...rest];
  const number = (key: "dim" | "index" | "of"): number => {
    const value = select![key];
    if (typeof value === "number") return value;
    const text = rule.match.group(tensor, Number(value.slice(1)));
    if (text !== undefined && /^\d{1,15}$/.test(text)) return Number(text);
    const found = text === undefined ? "nothing" : JSON.stringify(text);
    throw places.error(path(key), `${value} captured ${found} in tensor ${tensor}, not a number`, {
      tensor,
      value,
    });
  };
  const selected: SelectInput | undefined = select && {
    dim: number("dim"),
    index: number("index"),
    of: number("of"),
    ...(select.sizes && { sizes: select.sizes }),
  };
  if (selected !== undefined && selected.dim >= side.mesh.ndim) {
    throw places.error(path("dim"), `${side.name}'s mesh has no dimension ${selected.dim}`, {
      tensor,
      ...selected,
    });
  }
  if (selected !== undefined && selected.index >= selected.of) {
    throw places.error(path(), `index ${selected.index} of ${selected.of} for tensor ${tensor}`, {
      tensor,
      ...selected,
    });
  }
  return { ...(selected && { select: selected }), ...(stridedShard && { stridedShard }) };
}

/** The type of a tensor on the target, if the spec names one. */
export function dtypeRule(
  places: SpecPlaces,
  value: DType | readonly DtypeRule[] | undefined,
  tensors: readonly ModelTensor[],
): (name: string) => DType | undefined {
  if (value === undefined || typeof value === "string") return () => value;
  const rules = value.map(({ match, dtype }, index) => {
    const path = ["targetDtype", index];
    return { match: expression(places, [...path, "match"], match), dtype, path };
  });
  const used = new Set(tensors.map(({ name }) => firstMatch(rules, name)));
  for (const rule of rules) if (!used.has(rule)) throw unusedError(places, rule, tensors);
  return (name) => firstMatch(rules, name)?.dtype;
}

function expression(places: SpecPlaces, path: SpecPath, text: string): NameExpression {
  try {
    return new NameExpression(text);
  } catch (cause) {
    throw places.error(path, (cause as Error).message, { match: text }, cause);
  }
}

function formatSide(placements: readonly Placement[]): string {
  return `[${placements.map(formatPlacement).join(", ")}]`;
}

function someNames(names: readonly string[]): string {
  return names.length <= 3 ? names.join(", ") : `${names.slice(0, 3).join(", ")}, …`;
}
