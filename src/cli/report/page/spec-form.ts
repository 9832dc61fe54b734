import type { SpecPath } from "../../../model/spec-places.ts";
import type { SpecValues } from "../embed.ts";

/** A spec as the fields of a form: texts, as they are typed. What is not in it is kept as it stands in the spec. */
export interface SpecForm {
  readonly source: SideForm;
  readonly target: SideForm;
  readonly colocated: boolean;
  readonly rules: readonly RuleForm[];
  readonly options: Readonly<Record<OptionName, string>>;
  /** Empty if there is no topology. */
  readonly topology: Readonly<Record<TopologyName, string>>;
}

export interface SideForm {
  readonly mesh: string;
  readonly ranks: string;
  readonly stridedShard: string;
}

export interface RuleForm {
  /** Stays with the rule when others move. */
  readonly key: number;
  readonly match: string;
  readonly source: RuleSideForm;
  readonly target: RuleSideForm;
}

export interface RuleSideForm {
  readonly placements: string;
  readonly stridedShard: string;
  /** Empty if the whole mesh holds the tensors. */
  readonly dim: string;
  readonly index: string;
  readonly of: string;
  readonly sizes: string;
}

export const optionNames = ["strategy", "bucketBytes", "bucketsInFlight", "peersInFlight"] as const;
type OptionName = (typeof optionNames)[number];
export const topologyNames = ["ranksPerHost", "hosts", "hostMBps", "networkMBps", "latencyUs"] as const;
type TopologyName = (typeof topologyNames)[number];

type Values = Readonly<Record<string, unknown>>;
const selectNames = ["dim", "index", "of", "sizes"] as const;

export function formOf(spec: SpecValues): SpecForm {
  const topology = (spec["topology"] ?? {}) as Values;
  return {
    source: sideForm(spec["source"] as Values),
    target: sideForm(spec["target"] as Values),
    colocated: spec["colocated"] === true,
    rules: (spec["placements"] as readonly Values[]).map((rule, key) => ({
      key,
      match: textOf(rule["match"]),
      source: ruleSideForm(rule["source"]),
      target: ruleSideForm(rule["target"]),
    })),
    options: Object.fromEntries(optionNames.map((name) => [name, textOf(spec[name])])) as SpecForm["options"],
    topology: Object.fromEntries(
      topologyNames.map((name) => [name, textOf(topology[name])]),
    ) as SpecForm["topology"],
  };
}

/** The spec that a form describes; not yet checked. */
export function valuesOf(form: SpecForm, spec: SpecValues): SpecValues {
  const { strategy, colocated, topology, ...rest } = spec;
  for (const name of optionNames) delete (rest as Record<string, unknown>)[name];
  const options = optionNames.flatMap((name) => {
    const text = form.options[name].trim();
    return text === "" ? [] : [[name, numberOrText(text)] as const];
  });
  const links = topologyNames.flatMap((name) => {
    const text = form.topology[name].trim();
    return text === "" ? [] : [[name, name === "hosts" ? listOf(text) : numberOrText(text)] as const];
  });
  return {
    ...rest,
    source: sideValues(form.source, spec["source"] as Values),
    target: sideValues(form.target, spec["target"] as Values),
    ...(form.colocated && { colocated: true }),
    placements: form.rules.map(({ match, source, target }) => ({
      match,
      source: ruleSideValues(source),
      target: ruleSideValues(target),
    })),
    ...Object.fromEntries(options),
    ...(links.length > 0 && {
      topology: { ...(topology as Values | undefined), ...emptied, ...Object.fromEntries(links) },
    }),
  };
}

/** What the form leaves out is not kept from the spec. */
const emptied = Object.fromEntries(topologyNames.map((name) => [name, undefined]));

/** The field that an error belongs to; `undefined` if the form has no such field. */
export function fieldOf(path: SpecPath, form: SpecForm): string | undefined {
  const [first, second, third, ...rest] = path;
  if (first === "source" || first === "target")
    return `${first}.${second === "mesh" || second === "stridedShard" ? second : second === "ranks" ? "ranks" : "mesh"}`;
  if (first === "colocated") return first;
  if (first === "placements") {
    // What is wrong with all rules together stands at the last of them.
    const rule = second === undefined ? form.rules.at(-1) : form.rules[Number(second)];
    if (rule === undefined) return undefined;
    if (third !== "source" && third !== "target") return `${rule.key}.match`;
    const [part, detail] = rest;
    if (part === "stridedShard") return `${rule.key}.${third}.${part}`;
    if (part !== "select") return `${rule.key}.${third}.placements`;
    return `${rule.key}.${third}.${selectNames.find((name) => name === detail) ?? "index"}`;
  }
  if (first === "topology")
    return topologyNames.includes(second as TopologyName) ? `topology.${second}` : "topology.ranksPerHost";
  return optionNames.includes(first as OptionName) ? String(first) : undefined;
}

function sideForm(side: Values): SideForm {
  return {
    mesh: textOf(side["mesh"]),
    ranks: textOf(side["ranks"]),
    stridedShard: textOf(side["stridedShard"]),
  };
}

function sideValues(form: SideForm, { ranks, stridedShard, ...rest }: Values): Values {
  return {
    ...rest,
    mesh: listOf(form.mesh),
    ...(form.ranks.trim() !== "" && { ranks: listOf(form.ranks) }),
    ...(form.stridedShard !== "" && { stridedShard: form.stridedShard }),
  };
}

/** A side of a rule is a list of placements, or a map that has them. */
function ruleSideForm(side: unknown): RuleSideForm {
  const values = (Array.isArray(side) ? { placements: side } : side) as Values;
  const select = (values["select"] ?? {}) as Values;
  return {
    placements: textOf(values["placements"]),
    stridedShard: textOf(values["stridedShard"]),
    dim: textOf(select["dim"]),
    index: textOf(select["index"]),
    of: textOf(select["of"]),
    sizes: textOf(select["sizes"]),
  };
}

function ruleSideValues(form: RuleSideForm): unknown {
  const placements = listOf(form.placements);
  const selects = selectNames.some((name) => form[name].trim() !== "");
  if (!selects && form.stridedShard === "") return placements;
  return {
    placements,
    ...(selects && {
      select: {
        ...Object.fromEntries(selectNames.map((name) => [name, numberOrText(form[name].trim())])),
        sizes: form.sizes.trim() === "" ? undefined : listOf(form.sizes),
      },
    }),
    ...(form.stridedShard !== "" && { stridedShard: form.stridedShard }),
  };
}

/** Lists with commas; in `SS(0,2)` they stand within a text, which the spec puts together again. */
function textOf(value: unknown): string {
  if (value === undefined || value === null) return "";
  return Array.isArray(value)
    ? value
        .map(String)
        .join(", ")
        .replaceAll(/\([^)]*\)/g, (inside) => inside.replaceAll(", ", ","))
    : String(value);
}

function listOf(text: string): unknown[] {
  return text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "")
    .map(numberOrText);
}

function numberOrText(text: string): number | string {
  return /^\d+$/.test(text) ? Number(text) : text;
}
