import type { DeviceMesh, Placement } from "../../layout/index.ts";
import type { ModelTensor } from "../tensor.ts";
import { partsError, someNames } from "./errors.ts";
import type { Parameter, Part, PartedSide, PartKind, PartLayout } from "./parted.ts";
import type { PartRule, SideRules } from "./rule.ts";
import { type Deal, firstSlot, slotsOf } from "./slots.ts";
import { type Captures, fillTemplate, parseTemplate, placeholders, type Template } from "./template.ts";

export interface ApplyOptions {
  /** The type of a parameter for which no rule or tensor names another. */
  readonly modelDtype?: string;
  /** True if a rule that takes no tensor is an error: a misspelt name, in what a person wrote. */
  readonly allUsed?: boolean;
}

/** Applies a side's rules to a model's tensors. `TB_PARTS` names the tensor and the rule that do not fit. */
export function applyParts(
  side: SideRules,
  tensors: readonly ModelTensor[],
  options: ApplyOptions = {},
): PartedSide {
  const builder = new PartedBuilder(side, tensors, options);
  const unmatched: string[] = [];
  for (let index = 0; index < tensors.length; index++) {
    if (!builder.take(index)) unmatched.push(tensors[index]!.name);
  }
  if (unmatched.length > 0) {
    throw partsError(
      `${unmatched.length} of ${tensors.length} tensors match no rule: ${someNames(unmatched)}; add a rule, or drop them by one`,
      { unmatched },
    );
  }
  if (options.allUsed === true) builder.checkUsed();
  return builder.side();
}

interface CompiledRule {
  readonly rule: PartRule;
  readonly number: number;
  readonly template: Template;
  /** Kinds of its parts by the tensor's shape (and range of slots). */
  readonly kinds: Map<string, PartKind>;
  /** The last of those that stand for whole tensors on all ranks of the layout. */
  lastKind: { readonly kind: PartKind; readonly isScale: boolean } | undefined;
  readonly group: number;
  used: boolean;
  /** What it filled last: experts of a layer follow each other, and lie in one parameter. */
  last: { readonly captures: Captures; readonly dtype: string; readonly parameter: number } | undefined;
}

/** The range of a dimension that runs over slots: from which slot on, and from which thing. */
interface SlotRange {
  readonly axis: number;
  readonly start: number;
  readonly length: number;
  readonly slot: number;
}

class PartedBuilder {
  readonly #side: SideRules;
  readonly #tensors: readonly ModelTensor[];
  readonly #options: ApplyOptions;
  readonly #rules: readonly CompiledRule[];
  readonly #byKey = new Map<string | undefined, readonly CompiledRule[]>();
  readonly #layouts = new Map<string, PartLayout>();
  readonly #groups = new Map<DeviceMesh, number>();
  readonly #groupNumbers = new Map<string, number>();
  readonly #parameters: Parameter[] = [];
  /** Parameters by their names, for each group of ranks. */
  readonly #byName: Map<string, number>[] = [];
  readonly #parts: Part[] = [];
  readonly #dropped = new Map<string, string>();
  #kinds = 0;

  constructor(side: SideRules, tensors: readonly ModelTensor[], options: ApplyOptions) {
    this.#side = side;
    this.#tensors = tensors;
    this.#options = options;
    this.#rules = side.parameters.map((rule, number) => {
      checkRule(rule, number, side);
      const mesh = rule.mesh === undefined ? undefined : side.meshes[rule.mesh];
      const group = mesh === undefined ? -1 : this.#group(mesh);
      const template = parseTemplate(rule.match);
      return {
        rule,
        number,
        template,
        kinds: new Map(),
        lastKind: undefined,
        group,
        used: false,
        last: undefined,
      };
    });
  }

  /** True if a rule takes the tensor. */
  take(index: number): boolean {
    const { name } = this.#tensors[index]!;
    const parts = name.split(".");
    let taken = false;
    let done = false;
    for (const compiled of this.#candidates(parts.at(-2))) {
      const { rule } = compiled;
      if (done && rule.constant === undefined) continue;
      const captures = compiled.template.match(name, parts, rule.layers);
      if (captures === undefined) continue;
      compiled.used = true;
      if (rule.constant !== undefined) {
        this.#parameter(compiled, captures, index);
        continue;
      }
      if (rule.drop !== undefined) this.#dropped.set(name, rule.drop);
      else this.#place(compiled, captures, index);
      taken = true;
      done = rule.also !== true;
    }
    return taken;
  }

  /** The rules that a name may match by its part before the last: few of many. */
  #candidates(key: string | undefined): readonly CompiledRule[] {
    let rules = this.#byKey.get(key);
    if (rules === undefined) {
      rules = this.#rules.filter(({ template }) => template.key === undefined || template.key === key);
      this.#byKey.set(key, rules);
    }
    return rules;
  }

  checkUsed(): void {
    for (const { rule, number, used } of this.#rules) {
      if (!used) throw ruleError(rule, number, `matches none of the ${this.#tensors.length} tensors`);
    }
  }

  side(): PartedSide {
    return {
      ranks: this.#side.ranks,
      tensors: this.#tensors,
      parts: this.#parts,
      parameters: this.#parameters,
      dropped: this.#dropped,
    };
  }

  #place(compiled: CompiledRule, captures: Captures, tensor: number): void {
    const { rule, number } = compiled;
    const { slot } = rule;
    const { name, shape } = this.#tensors[tensor]!;
    const parameter = this.#parameter(compiled, captures, tensor);
    if (slot === undefined) {
      this.#add(this.#kind(compiled, shape, captures), tensor, parameter, 0);
      return;
    }
    const { of, copies = 0 } = slot;
    if (slot.index !== undefined) {
      const thing = captures.expert!;
      if (thing >= of)
        throw ruleError(rule, number, `tensor ${name} is number ${thing} of ${of}`, { tensor: name });
      const kind = this.#kind(compiled, shape, captures);
      for (let at = thing; at < of + copies; at += of) this.#add(kind, tensor, parameter, at);
      return;
    }
    const axis = slot.axis!;
    if (shape[axis] !== of) {
      throw ruleError(
        rule,
        number,
        `tensor ${name} has ${shape[axis] ?? "no"} of ${of} things in dimension ${axis}`,
        {
          tensor: name,
        },
      );
    }
    // What is dealt one by one is cut one by one; runs of slots are one part, and each run of copies another.
    const step = slot.deal === "round_robin" && slot.dim !== undefined ? 1 : of;
    for (let at = 0; at < of + copies; at += step) {
      const length = Math.min(step, of + copies - at);
      const range = { axis, start: at % of, length, slot: at };
      this.#add(this.#kind(compiled, shape, captures, range), tensor, parameter, at);
    }
  }

  #add(kind: PartKind, tensor: number, parameter: number, slot: number): void {
    const part = this.#parts.push({ tensor, parameter, kind, slot }) - 1;
    this.#parameters[parameter]!.parts.push(part);
  }

  #kind(
    compiled: CompiledRule,
    shape: readonly number[],
    { suffix, expert }: Captures,
    range?: SlotRange,
  ): PartKind {
    // A scale has rows of its own: blocks, not those of a head.
    const isScale = suffix?.includes("scale") === true;
    const plain = range === undefined && compiled.rule.select === undefined;
    if (plain && compiled.lastKind?.isScale === isScale && isSame(compiled.lastKind.kind.shape, shape))
      return compiled.lastKind.kind;
    const only = selected(compiled, this.#side, expert);
    const key = `${shape.join()}|${isScale}|${only?.coordinate ?? ""}${range === undefined ? "" : `|${range.start},${range.length},${range.slot}`}`;
    let kind = compiled.kinds.get(key);
    if (kind !== undefined) {
      if (plain) compiled.lastKind = { kind, isScale };
      return kind;
    }
    const { rule, number } = compiled;
    const start = shape.map(() => 0);
    const length = [...shape];
    if (range !== undefined) {
      start[range.axis] = range.start;
      length[range.axis] = range.length;
    }
    if (rule.slice !== undefined) {
      const { dim } = rule.slice;
      if (dim >= shape.length || rule.slice.start + rule.slice.length > shape[dim]!) {
        throw ruleError(
          rule,
          number,
          `the slice of dimension ${dim} does not fit shape [${shape.join(", ")}]`,
          {
            shape,
          },
        );
      }
      start[dim] = rule.slice.start;
      length[dim] = rule.slice.length;
    }
    kind = {
      id: this.#kinds++,
      rule,
      ruleNumber: number,
      layout: this.#layout(rule, length, range),
      shape,
      start,
      length,
      order: rule.order ?? 0,
      slotAxis: rule.slot?.axis ?? -1,
      axes: axesOf(rule, number, shape.length),
      on: rule.on,
      only,
    };
    if (!isScale) checkUnit(kind);
    compiled.kinds.set(key, kind);
    return kind;
  }

  #layout(rule: PartRule, length: readonly number[], range?: SlotRange): PartLayout {
    const mesh = this.#side.meshes[rule.mesh!]!;
    // A cut of a dimension that the tensor does not have leaves all of it on each rank: a bias under a row cut, a scale.
    const placements = rule.placements!.map(
      (placement): Placement =>
        (placement.kind === "shard" || placement.kind === "stridedShard") && placement.dim >= length.length
          ? { kind: "replicate" }
          : placement,
    );
    const deal = dealOf(rule, mesh);
    if (range !== undefined && deal !== undefined && rule.slot?.dim !== undefined && !deal.roundRobin) {
      const sizes = Array.from({ length: deal.owners }, (_, owner) =>
        overlap(deal, owner, range.slot, range.length),
      );
      placements[rule.slot.dim] = isEven(sizes)
        ? { kind: "shard", dim: range.axis }
        : { kind: "shard", dim: range.axis, sizes };
    }
    const key = JSON.stringify([rule.mesh, placements, rule.stridedShard]);
    let layout = this.#layouts.get(key);
    if (layout === undefined) {
      layout = {
        id: this.#layouts.size,
        meshName: rule.mesh!,
        mesh,
        placements,
        stridedShard: rule.stridedShard,
      };
      this.#layouts.set(key, layout);
    }
    return layout;
  }

  #parameter(compiled: CompiledRule, captures: Captures, tensor: number): number {
    const { rule, last } = compiled;
    const { dtype: own } = this.#tensors[tensor]!;
    const dtype = rule.dtype ?? (rule.constant === undefined ? own : (this.#options.modelDtype ?? own));
    if (last?.dtype === dtype && isSameParameter(rule, last.captures, captures)) return last.parameter;
    const parameter = this.#findParameter(compiled, captures, dtype);
    compiled.last = { captures, dtype, parameter };
    return parameter;
  }

  #findParameter({ rule, number, group }: CompiledRule, captures: Captures, dtype: string): number {
    const name = fillTemplate(rule.into!, captures);
    const mesh = this.#side.meshes[rule.mesh!]!;
    this.#byName[group] ??= new Map();
    const byName = this.#byName[group]!;
    const known = byName.get(name);
    const deal = dealOf(rule, mesh);
    if (known !== undefined) {
      const parameter = this.#parameters[known]!;
      if (parameter.dtype !== dtype) {
        throw ruleError(
          rule,
          number,
          `parameter ${name} is ${parameter.dtype} by other parts, ${dtype} by this one`,
          {
            parameter: name,
          },
        );
      }
      if (parameter.deal?.count !== deal?.count || parameter.extent !== rule.extent) {
        throw ruleError(
          rule,
          number,
          `parameter ${name} has other slots, or another extent, by other parts`,
          {
            parameter: name,
          },
        );
      }
      return known;
    }
    const index = this.#parameters.length;
    this.#parameters.push({
      name,
      aliases: rule.aliases?.map((alias) => fillTemplate(alias, captures)) ?? noAliases,
      dtype: dtype as Parameter["dtype"],
      fixedDtype: rule.dtype !== undefined || dtype !== (this.#options.modelDtype ?? dtype),
      mesh,
      deal,
      dealDim: rule.slot?.dim,
      extent: rule.extent,
      constant: rule.constant,
      only: selected({ rule, number }, this.#side, captures.expert),
      parts: [],
    });
    byName.set(name, index);
    return index;
  }

  /** Meshes of the same ranks are of one group: a parameter's parts may lie on several of them. */
  #group(mesh: DeviceMesh): number {
    let group = this.#groups.get(mesh);
    if (group === undefined) {
      const ranks = Array.from(mesh.ranks)
        .sort((a, b) => a - b)
        .join();
      group = this.#groupNumbers.get(ranks) ?? this.#groupNumbers.size;
      this.#groupNumbers.set(ranks, group);
      this.#groups.set(mesh, group);
    }
    return group;
  }
}

const noAliases: readonly string[] = [];

function isSame(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((extent, dim) => extent === other[dim]);
}

/** True if what a rule captured of two names leads to one parameter. */
function isSameParameter({ into, select }: PartRule, one: Captures, other: Captures): boolean {
  return (
    one.prefix === other.prefix &&
    one.suffix === other.suffix &&
    one.rest === other.rest &&
    one.prefix !== undefined &&
    (one.expert === other.expert || (select === undefined && !into!.includes("{e}")))
  );
}

function ruleError(
  rule: PartRule,
  number: number,
  what: string,
  details: Readonly<Record<string, unknown>> = {},
): Error {
  return partsError(`rule ${number + 1}, ${rule.match}: ${what}`, {
    rule: number,
    match: rule.match,
    ...details,
  });
}

function dealOf({ slot }: PartRule, mesh: DeviceMesh): Deal | undefined {
  if (slot === undefined) return undefined;
  return {
    count: slot.of + (slot.copies ?? 0),
    owners: slot.dim === undefined ? 1 : mesh.shape[slot.dim]!,
    roundRobin: slot.deal === "round_robin" && slot.dim !== undefined,
  };
}

/** The coordinate that owns a thing, if only that one has its parameter. */
function selected(
  { rule, number }: Pick<CompiledRule, "rule" | "number">,
  side: SideRules,
  expert: number | undefined,
): { readonly dim: number; readonly coordinate: number } | undefined {
  const { select } = rule;
  if (select === undefined) return undefined;
  if (expert! >= select.of)
    throw ruleError(rule, number, `${expert} is not one of the ${select.of} things`, { expert });
  const count = side.meshes[rule.mesh!]!.shape[select.dim]!;
  return { dim: select.dim, coordinate: Math.floor(expert! / Math.ceil(select.of / count)) };
}

function isEven(sizes: readonly number[]): boolean {
  return sizes.every((size) => size === sizes[0]);
}

/** How many of `length` slots from `slot` on a coordinate has. */
function overlap(deal: Deal, owner: number, slot: number, length: number): number {
  const first = firstSlot(deal, owner);
  return Math.max(0, Math.min(first + slotsOf(deal, owner), slot + length) - Math.max(first, slot));
}

/** For each axis of the parameter the tensor's; one that is stacked of slots is none of the tensor's. */
function axesOf(rule: PartRule, number: number, ndim: number): number[] {
  if (rule.axes !== undefined) {
    const sorted = [...rule.axes].sort((a, b) => a - b);
    if (rule.axes.length !== ndim || sorted.some((axis, index) => axis !== index)) {
      throw ruleError(rule, number, `axes [${rule.axes.join(", ")}] are not an order of ${ndim} dimensions`, {
        ndim,
      });
    }
    return [...rule.axes];
  }
  if (ndim === 0) return rule.order === undefined ? [] : [-1];
  return Array.from({ length: ndim }, (_, axis) => axis);
}

function checkRule(rule: PartRule, number: number, side: SideRules): void {
  const no = (what: string, details = {}) => ruleError(rule, number, what, details);
  const known = placeholders(rule.match);
  const strange = known.find((one) => !["{L}", "{e}", "{s}", "{*}"].includes(one));
  if (strange !== undefined) throw no(`${strange} is not one of {L}, {e}, {s} and {*}`);
  if (rule.drop !== undefined) return;
  if (rule.into === undefined) throw no("it needs either into, or drop with a reason");
  for (const text of [rule.into, ...(rule.aliases ?? [])]) {
    const open = placeholders(text).find((one) => !known.includes(one));
    if (open !== undefined) throw no(`${text} has ${open}, which match does not capture`);
  }
  const mesh = rule.mesh === undefined ? undefined : side.meshes[rule.mesh];
  if (mesh === undefined) {
    throw no(`its mesh ${JSON.stringify(rule.mesh)} is not one of ${Object.keys(side.meshes).join(", ")}`);
  }
  if (rule.constant !== undefined) return;
  if (rule.placements?.length !== mesh.ndim) {
    throw no(
      `${rule.placements?.length ?? 0} placements for the ${mesh.ndim} dimensions of mesh ${rule.mesh}`,
    );
  }
  const { slot, on, select } = rule;
  if (select !== undefined) {
    if (!known.includes("{e}")) throw no("select.index is {e}, and match does not capture {e}");
    if (select.dim >= mesh.ndim || rule.placements[select.dim]!.kind !== "replicate") {
      throw no(`select needs a mesh dimension whose placement is R, not ${select.dim}`);
    }
  }
  if (slot !== undefined) {
    if ((slot.index === undefined) === (slot.axis === undefined)) throw no("slot needs either index or axis");
    if (slot.index !== undefined && !known.includes("{e}"))
      throw no("slot.index is {e}, and match does not capture {e}");
    if (slot.dim !== undefined && slot.dim >= mesh.ndim)
      throw no(`mesh ${rule.mesh} has no dimension ${slot.dim}`);
    if (slot.dim !== undefined && rule.placements[slot.dim]!.kind !== "replicate") {
      throw no(`slots are dealt over mesh dimension ${slot.dim}: its placement must be R`);
    }
  }
  if (on !== undefined && (on.dim >= mesh.ndim || on.coordinate >= mesh.shape[on.dim]!)) {
    throw no(`mesh ${rule.mesh} has no coordinate ${on.coordinate} in dimension ${on.dim}`);
  }
}

/** A cut inside of a unit would part a head. */
function checkUnit({ rule, ruleNumber, layout, length }: PartKind): void {
  const { unit } = rule;
  if (unit === undefined) return;
  let extent = length[0];
  if (extent === undefined || extent % unit !== 0) return;
  layout.placements.forEach((placement, dim) => {
    if (placement.kind !== "shard" || placement.dim !== 0) return;
    const count = layout.mesh.shape[dim]!;
    const sizes = placement.sizes ?? [Math.ceil(extent! / count)];
    const parted = sizes.find((size) => size % unit !== 0);
    if (parted !== undefined || (placement.sizes === undefined && extent! % count !== 0)) {
      throw ruleError(
        rule,
        ruleNumber,
        `${extent} rows over ${count} coordinates would split a unit of ${unit} rows`,
        { extent, count, unit },
      );
    }
    extent = Math.ceil(extent! / count);
  });
}
