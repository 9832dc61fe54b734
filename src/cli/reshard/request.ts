/** What the command line asks of a reshard, as a spec: which rule takes each tensor, and which of them are cast. */
import type { CheckpointSource } from "../../checkpoint/source.ts";
import { TensorBusError } from "../../errors.ts";
import { arithmeticTypes, type DType, formatPlacement, isDType, itemSize } from "../../layout/index.ts";
import { findUnfit } from "../../model/spec-dimensions.ts";
import type { SpecPath, SpecPlaces } from "../../model/spec-places.ts";
import { checkSpec, type ResolvedSpec, resolveSpec } from "../../model/spec-resolve.ts";
import type { PlanInput } from "../../plan/input/types.ts";

/** What the command line says of a layout: `4:S(0)`, `2x4:R,S(0)`, with `@order` or `@split` for strided shards. */
interface LayoutText {
  readonly mesh: number[];
  readonly placements: string[];
  readonly stridedShard?: string;
}

export interface ReshardFlags {
  readonly source: string;
  readonly target: string;
  /** `REGEX=SOURCE->TARGET[:TYPE]`, first match wins; what none matches has the layouts of `source` and `target`. */
  readonly rules: readonly string[];
  readonly targetDtype?: string;
}

/** The spec that a checkpoint and the flags make. Errors name the flag. */
export function requestOfFlags(checkpoint: CheckpointSource, flags: ReshardFlags): ResolvedSpec {
  const source = parseLayout("--source", flags.source);
  const target = parseLayout("--target", flags.target);
  const rules = flags.rules.map(parseRule);
  const places = new FlagPlaces(flags);
  const { path, tensors } = checkpoint;
  if (tensors.length === 0) {
    throw new TensorBusError("TB_SAFETENSORS", `${path} holds 0 tensors: there is nothing to move`, {
      details: { path },
    });
  }
  const value = checkSpec(places, {
    version: 1,
    model: { safetensors: path },
    source: { mesh: source.mesh, ...(source.stridedShard && { stridedShard: source.stridedShard }) },
    target: { mesh: target.mesh, ...(target.stridedShard && { stridedShard: target.stridedShard }) },
    placements: [
      ...rules.map(({ dtype, ...rule }) => ({ ...rule, ...(dtype && { targetDtype: dtype }) })),
      { match: ".*", source: source.placements, target: target.placements },
    ],
  });
  const spec = resolveSpec(places, value, tensors);
  requireReshardable(spec);
  requireDimensions(spec, rules.length, flags);
  const isTyped = (tensor: number) => rules[spec.ruleOf[tensor]!]?.dtype !== undefined;
  const input =
    flags.targetDtype === undefined
      ? spec.input
      : castMain(spec.input, parseDType(flags.targetDtype), isTyped);
  return { ...spec, input };
}

/** Errors of a spec that was made from flags name the flag, and the rule as it was typed. */
class FlagPlaces implements SpecPlaces {
  readonly #flags: ReshardFlags;

  constructor(flags: ReshardFlags) {
    this.#flags = flags;
  }

  error(
    path: SpecPath,
    what: string,
    details: Readonly<Record<string, unknown>> = {},
    cause?: unknown,
  ): TensorBusError {
    const flag = this.#flagAt(path);
    return new TensorBusError("TB_SPEC", `${flag}: ${what}`, { details: { ...details, flag }, cause });
  }

  at<T>(path: SpecPath, make: () => T): T {
    try {
      return make();
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code === "TB_SPEC") throw error;
      throw this.error(path, error.message, { ...error.details, code: error.code }, error);
    }
  }

  #flagAt([first, second, third]: SpecPath): string {
    const { source, target, rules } = this.#flags;
    const rule = first === "placements" ? rules[Number(second)] : undefined;
    if (rule !== undefined) return `--rule ${JSON.stringify(rule)}`;
    if (first === "source" || third === "source") return `--source ${JSON.stringify(source)}`;
    return `--target ${JSON.stringify(target)}`;
  }
}

/** A checkpoint holds values, not contributions to them. */
function requireReshardable({ input }: ResolvedSpec): void {
  for (const [pair, { source }] of Object.entries(input.pairs)) {
    const partial = source.placements.find((placement) => placement.kind === "partial");
    if (partial === undefined) continue;
    throw new TensorBusError(
      "TB_SPEC",
      `${pair}: a checkpoint holds values, but ${formatPlacement(partial)} is a contribution to one`,
      { details: { pair } },
    );
  }
}

/** Tensors of too few dimensions for the layout of all others need a rule, which is named. */
function requireDimensions(spec: ResolvedSpec, fallback: number, flags: ReshardFlags): void {
  const example = (match: string, source: string, target: string) => `--rule "${match}=${source}->${target}"`;
  const unfit = findUnfit(spec, fallback, example);
  if (unfit === undefined) return;
  const { side, names, what } = unfit;
  throw new TensorBusError("TB_SPEC", `--${side} ${JSON.stringify(flags[side])} ${what}`, {
    details: { flag: `--${side}`, tensors: names },
  });
}

/**
 * Casts what the checkpoint mainly is: its floating-point type with the most bytes. What it keeps in another type (routers in
 * float32 beside weights in bfloat16, float8 beside its scales) it keeps for a reason, and only a rule casts it; integers and
 * types without arithmetic stay what they are.
 */
function castMain(input: PlanInput, targetDtype: DType, isTyped: (tensor: number) => boolean): PlanInput {
  const bytes = new Map<DType, number>();
  for (const { dtype, shape } of input.tensors) {
    if (!isFloat(dtype)) continue;
    bytes.set(
      dtype,
      (bytes.get(dtype) ?? 0) + shape.reduce((product, size) => product * size, itemSize(dtype)),
    );
  }
  const main = [...bytes].sort(([, a], [, b]) => b - a)[0]?.[0];
  const scaled = scaledTensors(input);
  const tensors = input.tensors.map((tensor, index) =>
    tensor.dtype === main && !isTyped(index) && !scaled.has(tensor.name)
      ? { ...tensor, targetDtype }
      : tensor,
  );
  return { ...input, tensors };
}

function isFloat(dtype: DType): boolean {
  return /float/.test(dtype) && arithmeticTypes.includes(dtype);
}

/** Tensors that are nothing without another one, and those others: `w` with `w_scale_inv`, `w_scale` or `w_scale_2`. */
function scaledTensors({ tensors }: PlanInput): Set<string> {
  const names = new Set(tensors.map(({ name }) => name));
  const scaled = new Set<string>();
  for (const { name } of tensors) {
    const weight = name.replace(/_scale(_inv|_\d+)?$/, "");
    if (weight === name || !names.has(weight)) continue;
    scaled.add(weight);
    scaled.add(name);
  }
  return scaled;
}

function parseDType(text: string, flag = "--target-dtype"): DType {
  if (isDType(text)) return text;
  throw new TensorBusError("TB_DTYPE", `${flag}: unknown element type ${JSON.stringify(text)}`, {
    details: { dtype: text },
  });
}

function parseLayout(flag: string, text: string): LayoutText {
  const match = /^(\d+(?:x\d+)*):([^@]+)(?:@(split|order))?$/.exec(text.replaceAll(/\s/g, ""));
  if (match === null) {
    throw new TensorBusError(
      "TB_SPEC",
      `${flag} ${JSON.stringify(text)}: expected MESH:PLACEMENTS such as 2x4:R,S(0)`,
      { details: { flag, value: text } },
    );
  }
  const [, mesh, placements, stridedShard] = match;
  return {
    mesh: mesh!.split("x").map(Number),
    placements: splitPlacements(placements!),
    ...(stridedShard !== undefined && { stridedShard }),
  };
}

interface RuleText {
  readonly match: string;
  readonly source: string[];
  readonly target: string[];
  readonly dtype?: DType;
}

function parseRule(text: string): RuleText {
  const match = /^(.+)=([^=]+)->([^=:]+)(?::(\w+))?$/.exec(text);
  const flag = `--rule ${JSON.stringify(text)}`;
  if (match === null) {
    throw new TensorBusError(
      "TB_SPEC",
      `${flag}: expected REGEX=PLACEMENTS->PLACEMENTS, or with :TYPE behind it`,
      {
        details: { flag: "--rule", value: text },
      },
    );
  }
  const [, expression, source, target, dtype] = match;
  return {
    match: expression!,
    source: splitPlacements(source!),
    target: splitPlacements(target!),
    ...(dtype !== undefined && { dtype: parseDType(dtype, flag) }),
  };
}

/** At the commas that stand outside of parentheses. */
function splitPlacements(text: string): string[] {
  return text.split(/,(?![^(]*\))/).map((part) => part.trim());
}
