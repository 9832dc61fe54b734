import type { Command } from "commander";
import { presetForms } from "../../model/presets/forms.ts";
import { addModelOptions } from "../model/model-options.ts";
import type { PresetSpecOptions } from "../model/preset-spec.ts";

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
