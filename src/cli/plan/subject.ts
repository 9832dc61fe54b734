import type { Command } from "commander";
import { planTransfer } from "../../plan/index.ts";
import { loadPlanned, loadSavedPlan, type Planned } from "./load.ts";
import type { SubjectOptions } from "./subject-options.ts";

/** What is reported on: the plan of a spec, of a model between two presets, or a saved one. */
export async function loadSubject(
  command: Command,
  path: string | undefined,
  options: SubjectOptions,
): Promise<Planned> {
  const { load: saved, model, source, target } = options;
  const given = [path, saved, model].filter((one) => one !== undefined).length;
  if (given === 0)
    command.error(
      "error: missing required argument 'spec', or --load and a file, or --model, --source and --target",
    );
  if (given > 1) {
    command.error(
      saved !== undefined
        ? "error: option '--load <file>' takes the place of argument 'spec'"
        : "error: option '--model <path>' takes the place of argument 'spec'",
    );
  }
  if (saved !== undefined) return loadSavedPlan(saved);
  if (path !== undefined) {
    if (source !== undefined || target !== undefined) {
      command.error(
        "error: options '--source' and '--target' belong to '--model <path>': a spec has its own sides",
      );
    }
    return loadPlanned(path);
  }
  if (source === undefined || target === undefined)
    command.error("error: option '--model <path>' needs --source and --target");
  const { presetSpec } = await import("../model/preset-spec.ts");
  const spec = await presetSpec(options);
  return { spec, plan: await planTransfer(spec.input) };
}
