import { TensorBusError } from "../../errors.ts";
import type { Spec } from "../../model/spec.ts";
import { resolvePartedSpec } from "../../model/spec-parts.ts";
import { formatPath, type SpecPlaces } from "../../model/spec-places.ts";
import { checkSpec } from "../../model/spec-resolve.ts";
import { loadModel } from "./load-model.ts";
import type { ModelOptions } from "./model-options.ts";

/** What a command line says in place of a spec. */
export interface PresetSpecOptions extends ModelOptions {
  readonly source?: string;
  readonly target?: string;
  readonly targetDtype?: string;
  readonly topology?: string;
  readonly colocated?: boolean;
}

/** The spec of `--model`, `--source` and `--target`. `TB_SPEC` names the option; a model's errors are those of `readModel`. */
export async function presetSpec(options: PresetSpecOptions): Promise<Spec> {
  const model = await loadModel(options.model!, options);
  const { dtype, hasDtype } = model;
  if (!hasDtype) {
    throw places.error(
      ["dtype"],
      `${model.file} has no torch_dtype, and bytes are counted: give the element type`,
    );
  }
  const spec = checkSpec(places, {
    version: 1,
    model: { config: model.file, dtype },
    source: { preset: options.source },
    target: { preset: options.target },
    ...(options.colocated !== undefined && { colocated: options.colocated }),
    ...(options.targetDtype !== undefined && { targetDtype: options.targetDtype }),
    ...(options.topology !== undefined && { topology: parseTopology(options.topology) }),
  });
  return { file: model.file, ...resolvePartedSpec(places, spec, model.tensors, model) };
}

/** `ranksPerHost=8,hostMBps=450000,networkMBps=50000,latencyUs=5` as the values of a spec's topology. */
function parseTopology(text: string): Record<string, number> {
  return Object.fromEntries(
    text.split(",").map((part) => {
      const [key = "", value = "", ...more] = part.split("=");
      if (!/^\d{1,15}$/.test(value.trim()) || more.length > 0) {
        throw places.error(
          ["topology"],
          `${JSON.stringify(part)} is not of the form KEY=NUMBER, such as ranksPerHost=8`,
        );
      }
      return [key.trim(), Number(value)];
    }),
  );
}

/** Places in a command line: the option that a value of the spec came by. */
const places: SpecPlaces = {
  error(path, what, details = {}, cause) {
    const [first, ...rest] = path;
    const option =
      first === undefined
        ? ""
        : `--${String(first).replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    const inner = rest.filter((part) => part !== "preset");
    const where = inner.length === 0 ? option : `${option} ${formatPath(inner)}`;
    return new TensorBusError("TB_SPEC", `${where}${where === "" ? "" : ": "}${what}`, {
      details: { ...details, option: option === "" ? undefined : option },
      cause,
    });
  },
  at(path, make) {
    try {
      return make();
    } catch (error) {
      if (!(error instanceof TensorBusError) || error.code === "TB_SPEC") throw error;
      throw places.error(path, error.message, { ...error.details, code: error.code }, error);
    }
  },
};
