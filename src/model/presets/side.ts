import type { Model } from "../config.ts";
import type { SideRules } from "../parts/rule.ts";
import { presetForms } from "./forms.ts";
import { parsePreset, presetError } from "./options.ts";
import { fsdp2Side, hfSide } from "./trainer.ts";
import { vllmSide } from "./vllm.ts";

/**
 * The rules of a preset for a model; its rank 0 has number `firstRank`. `TB_PRESET` for a preset or an option that is not known,
 * and for a model or sizes that it does not serve.
 */
export function presetSide(text: string, model: Model, firstRank = 0): SideRules {
  const preset = parsePreset(text);
  switch (preset.name) {
    case "fsdp2":
      return fsdp2Side(preset, model, firstRank);
    case "hf":
      return hfSide(preset, firstRank);
    case "vllm":
      return vllmSide(preset, model, firstRank);
    default:
      throw presetError(
        `${JSON.stringify(preset.name)} is not a preset; there are ${Object.values(presetForms).join(", ")}`,
        { preset: text, known: Object.keys(presetForms) },
      );
  }
}
