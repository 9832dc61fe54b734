import { dirname, resolve } from "node:path";
import type { DType } from "../layout/index.ts";
import type { Model } from "./config.ts";
import { readTextFile } from "./files.ts";
import { resolveFitting } from "./spec-dimensions.ts";
import { SpecDocument } from "./spec-document.ts";
import type { PartedSpec } from "./spec-parts.ts";
import { checkSpec, type ResolvedSpec } from "./spec-resolve.ts";
import type { SpecInput } from "./spec-schema.ts";
import type { ModelTensor } from "./tensor.ts";

export type { SpecSide } from "./spec-resolve.ts";
export type { Budget } from "./spec-schema.ts";

/** A spec that was read and checked: what the planner takes, and what the command line adds. */
export interface Spec extends Omit<ResolvedSpec, "ruleOf"> {
  readonly file: string;
  /** The values of the file as they stand there; `undefined` if there is no such file. */
  readonly values?: unknown;
  /** If both sides have parameters: which of them the planned tensors are parts of. */
  readonly parts?: PartedSpec;
}

/** The most bytes of a spec that are read. A model of 70,000 tensors that are listed one by one has a third of this. */
export const maxSpecBytes = 16 * 2 ** 20;

/**
 * Reads a spec, YAML or JSON. `TB_SPEC` names file, line, path and values; what its model says wrong is
 * `TB_MODEL_CONFIG`, `TB_SAFETENSORS` or `TB_FILE`. Paths in it are relative to its own folder.
 */
export async function loadSpec(path: string): Promise<Spec> {
  return parseSpec(await readTextFile(path, maxSpecBytes, { pipes: true }), path);
}

/** `loadSpec` of a text; `file` is its name in messages, and its folder the one of relative paths. */
export async function parseSpec(text: string, file: string): Promise<Spec> {
  const document = new SpecDocument(text, file);
  const spec = checkSpec(document, document.value);
  const { tensors, model } = await readModel(document, spec.model, dirname(resolve(file)));
  // The page of a report plans again by rules of placements alone.
  if (spec.placements === undefined) {
    const { resolvePartedSpec } = await import("./spec-parts.ts");
    return { file, ...resolvePartedSpec(document, spec, tensors, model) };
  }
  const { ruleOf, ...resolved } = resolveFitting(document, spec, tensors);
  return { file, values: document.value, ...resolved };
}

/** What a form of the model needs is loaded for that form: families, presets and checkpoints are most of this folder. */
async function readModel(
  document: SpecDocument,
  model: SpecInput["model"],
  folder: string,
): Promise<{ readonly tensors: readonly ModelTensor[]; readonly model?: Model }> {
  if (model.config !== undefined) {
    const { dtype, mtp, quantized, form } = model;
    const { missingDType, readModel: readConfig } = await import("./config.ts");
    const read = await readConfig(resolve(folder, model.config), {
      ...(dtype !== undefined && { dtype }),
      ...(mtp !== undefined && { mtp }),
      ...(quantized !== undefined && { quantized }),
      ...(form !== undefined && { form }),
    });
    if (!read.hasDtype) throw missingDType(read);
    return { tensors: read.tensors, model: read };
  }
  if (model.safetensors !== undefined) {
    const { openSafetensors } = await import("./safetensors.ts");
    await using checkpoint = await openSafetensors(resolve(folder, model.safetensors));
    const tensors = [...checkpoint.tensors.values()].map(({ name, shape, dtype }) => ({
      name,
      shape,
      dtype,
    }));
    return { tensors };
  }
  const tensors: readonly { name: string; shape: number[]; dtype: DType }[] = model.tensors ?? [];
  const names = new Set<string>();
  for (const [index, { name }] of tensors.entries()) {
    if (names.has(name))
      throw document.error(["model", "tensors", index, "name"], `${name} appears twice`, { name });
    names.add(name);
  }
  return { tensors };
}
