import { TensorBusError } from "../../../errors.ts";
import { NameExpression } from "../../../model/expression.ts";
import { resolveFitting } from "../../../model/spec-dimensions.ts";
import { formatPath, type SpecPath, type SpecPlaces } from "../../../model/spec-places.ts";
import { checkSpec } from "../../../model/spec-resolve.ts";
import { pairName } from "../../../model/spec-rules.ts";
import type { SpecInput } from "../../../model/spec-schema.ts";
import type { ModelTensor } from "../../../model/tensor.ts";
import { Plan, planTransfer } from "../../../plan/index.ts";
import { collectReport } from "../collect.ts";
import type { SpecValues } from "../embed.ts";
import type { PlanAnswer, PlanFailure, PlanRequest } from "./messages.ts";

/** Plans a spec for the tensors of a plan, like the command line. */
export async function replan({ file, spec, plan: bytes, verify }: PlanRequest): Promise<PlanAnswer> {
  let rules: NonNullable<SpecInput["placements"]> = [];
  try {
    const tensors = Plan.load(bytes).input.tensors.map(
      ({ name, shape, dtype }): ModelTensor => ({ name, shape, dtype }),
    );
    const values = withTensors(spec, tensors);
    const checked = checkSpec(places, values);
    rules = checked.placements ?? [];
    const resolved = resolveFitting(places, checked, tensors);
    const plan = await planTransfer(resolved.input);
    if (verify) plan.verify();
    const report = collectReport({ file, ...resolved, plan, verified: verify });
    return { report, plan: plan.bytes, spec: values };
  } catch (error) {
    return { failure: describe(error, rules) };
  }
}

/** A model that lists its tensors gets them back; the others name their file. */
function withTensors(spec: SpecValues, tensors: readonly ModelTensor[]): SpecValues {
  const model = spec["model"] as Readonly<Record<string, unknown>>;
  return "tensors" in model ? { ...spec, model: { ...model, tensors } } : spec;
}

/** Places in a form: there are paths, but no lines. */
const places: SpecPlaces = {
  error: (path, what, details = {}, cause) =>
    new TensorBusError("TB_SPEC", `${path.length > 0 ? `${formatPath(path)}: ` : ""}${what}`, {
      details: { ...details, path, what },
      cause,
    }),
  at(path, make) {
    try {
      return make();
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code === "TB_SPEC") throw error;
      throw places.error(path, error.message, { ...error.details, code: error.code }, error);
    }
  },
};

function describe(error: unknown, rules: NonNullable<SpecInput["placements"]>): PlanFailure {
  if (!(error instanceof TensorBusError)) return { code: undefined, message: String(error), path: [] };
  const { path, what } = error.details as { path?: unknown; what?: string };
  if (Array.isArray(path))
    return { code: error.code, message: what ?? error.message, path: path as SpecPath };
  return { code: error.code, message: error.message, path: pathOf(error, rules) };
}

/** Says where the planner's own errors belong: the rule of the tensor or of the pair that they name, or the topology. */
function pathOf({ code, details }: TensorBusError, rules: NonNullable<SpecInput["placements"]>): SpecPath {
  if (code === "TB_TOPOLOGY") return ["topology"];
  const {
    tensor,
    place = "",
    side = /\b(source|target)\b(?!.*\b(?:source|target)\b)/.exec(String(place))?.[1],
  } = details as {
    readonly tensor?: unknown;
    readonly place?: unknown;
    readonly side?: unknown;
  };
  const rule =
    typeof tensor === "string"
      ? rules.findIndex(({ match }) => new NameExpression(match).test(tensor))
      : rules.findIndex((one) => String(place).startsWith(`pairs.${pairName(one)}.`));
  if (rule === -1) return [];
  return side === "source" || side === "target" ? ["placements", rule, side] : ["placements", rule];
}
