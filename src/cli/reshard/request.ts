import { resolve } from "node:path";
import { TensorBusError } from "../../errors.ts";
import { type DType, formatPlacement, isDType, isOpaque } from "../../layout/index.ts";
import { parseSpec, type Spec } from "../../model/spec.ts";
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
  /** `REGEX=SOURCE->TARGET`, first match wins; what none matches has the layouts of `source` and `target`. */
  readonly rules: readonly string[];
  readonly targetDtype?: string;
}

/** The spec that a checkpoint and the flags make. `TB_SPEC` names the flag. */
export async function specOfFlags(checkpoint: string, flags: ReshardFlags): Promise<Spec> {
  const source = parseLayout("--source", flags.source);
  const target = parseLayout("--target", flags.target);
  const rules = flags.rules.map(parseRule);
  const text = JSON.stringify({
    version: 1,
    model: { safetensors: resolve(checkpoint) },
    source: { mesh: source.mesh, stridedShard: source.stridedShard },
    target: { mesh: target.mesh, stridedShard: target.stridedShard },
    placements: [...rules, { match: ".*", source: source.placements, target: target.placements }],
  });
  const spec = await parseSpec(text, "the command line");
  return flags.targetDtype === undefined
    ? spec
    : { ...spec, input: castFloats(spec.input, parseDType(flags.targetDtype)) };
}

/** What a checkpoint can be resharded by: values, not contributions, and no process on both sides. */
export function checkReshardable({ input }: Spec): void {
  for (const [pair, { source }] of Object.entries(input.pairs)) {
    const partial = source.placements.find((placement) => placement.kind === "partial");
    if (partial !== undefined) {
      throw new TensorBusError(
        "TB_SPEC",
        `${pair}: a checkpoint holds values, and ${formatPlacement(partial)} is a contribution to one`,
        { details: { pair } },
      );
    }
  }
  const sources = new Set(Object.values(input.pairs).flatMap(({ source }) => [...source.mesh.ranks]));
  const shared = Object.values(input.pairs)
    .flatMap(({ target }) => [...target.mesh.ranks])
    .find((rank) => sources.has(rank));
  if (shared !== undefined) {
    throw new TensorBusError(
      "TB_SPEC",
      `rank ${shared} is on both sides; reshard runs one process a rank and side`,
      {
        details: { rank: shared },
      },
    );
  }
}

/**
 * Integers and booleans stay what they are: a type for weights is not meant for positions. So do types that cannot be cast.
 */
function castFloats(input: PlanInput, targetDtype: DType): PlanInput {
  const tensors = input.tensors.map((tensor) =>
    /float/.test(tensor.dtype) && !isOpaque(tensor.dtype) ? { ...tensor, targetDtype } : tensor,
  );
  return { ...input, tensors };
}

function parseDType(text: string): DType {
  if (isDType(text)) return text;
  throw new TensorBusError("TB_DTYPE", `--target-dtype: unknown element type ${JSON.stringify(text)}`, {
    details: { dtype: text },
  });
}

function parseLayout(flag: string, text: string): LayoutText {
  const match = /^(\d+(?:x\d+)*):([^@]+)(?:@(split|order))?$/.exec(text.replaceAll(/\s/g, ""));
  if (match === null) {
    throw new TensorBusError(
      "TB_SPEC",
      `${flag} ${JSON.stringify(text)}: expected MESH:PLACEMENTS such as 2x4:R,S(0)`,
      {
        details: { flag, value: text },
      },
    );
  }
  const [, mesh, placements, stridedShard] = match;
  return {
    mesh: mesh!.split("x").map(Number),
    placements: splitPlacements(placements!),
    ...(stridedShard !== undefined && { stridedShard }),
  };
}

function parseRule(text: string): { match: string; source: string[]; target: string[] } {
  const match = /^(.+)=([^=]+)->([^=]+)$/.exec(text);
  if (match === null) {
    throw new TensorBusError(
      "TB_SPEC",
      `--rule ${JSON.stringify(text)}: expected REGEX=PLACEMENTS->PLACEMENTS`,
      {
        details: { flag: "--rule", value: text },
      },
    );
  }
  return { match: match[1]!, source: splitPlacements(match[2]!), target: splitPlacements(match[3]!) };
}

/** At the commas that stand outside of parentheses. */
function splitPlacements(text: string): string[] {
  return text.split(/,(?![^(]*\))/).map((part) => part.trim());
}
