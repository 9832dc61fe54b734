import type { Command } from "commander";
import { presetForms } from "../../model/presets/side.ts";
import { planTransfer } from "../../plan/index.ts";
import { addModelOptions } from "../model/model-options.ts";
import { type PresetSpecOptions, presetSpec } from "../model/preset-spec.ts";
import { loadPlanned, loadSavedPlan, type Planned } from "./load.ts";

/** What names a plan on a command line beside the file of a spec. */
export interface SubjectOptions extends PresetSpecOptions {
  readonly load?: string;
}

/** The options that say a spec: a model between two presets. */
export function addPresetOptions(command: Command): Command {
  command
    .option("--source <preset>", `in place of a spec, with --model: ${presetForms.fsdp2}; ${presetForms.hf}`)
    .option("--target <preset>", presetForms.vllm)
    .option("--target-dtype <type>", "the element type on the target, if the engine does not fix it")
    .option("--topology <values>", "ranksPerHost=N,hostMBps=N,networkMBps=N,latencyUs=N, as in a spec")
    .option("--colocated", "the same processes are on both sides");
  return addModelOptions(command, false);
}

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
  const spec = await presetSpec(options);
  return { spec, plan: await planTransfer(spec.input) };
}
