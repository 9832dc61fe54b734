/** `tensorbus/model`: models from their config, parts of parameters, and how trainers and engines lay them out. For Node.js. */
import type { Model } from "./config.ts";
import { applyParts } from "./parts/apply.ts";
import { LocalLayouts } from "./parts/local.ts";
import { proveParts } from "./parts/proof.ts";
import { presetSide } from "./presets/side.ts";

export { type ConfigOptions, type Model, modelOf, modelTypes, readModel } from "./config.ts";
export { type ModelForm, modelForms } from "./families/table.ts";
export { type ApplyOptions, applyParts } from "./parts/apply.ts";
export { describeParameter } from "./parts/describe.ts";
export { type JoinedSides, joinSides, type PlannedPart, type TargetType } from "./parts/join.ts";
export { LocalLayouts, type LocalParameter, type LocalPiece, type Region } from "./parts/local.ts";
export type { Parameter, Part, PartedSide, PartKind, PartLayout } from "./parts/parted.ts";
export { type PartsProof, proveParts } from "./parts/proof.ts";
export { type ParameterBox, type RankParameter, rankParameters } from "./parts/rank.ts";
export type { PartRule, SideRules, SlotRule } from "./parts/rule.ts";
export { type ParameterSummary, summarizeParts } from "./parts/summary.ts";
export { type PartView, partView, partViews } from "./parts/views.ts";
export { presetForms } from "./presets/forms.ts";
export { presetSide } from "./presets/side.ts";
export type { ModelTensor } from "./tensor.ts";

/**
 * A preset's layout of a model, proved whole; its rank 0 has number `firstRank`. `TB_PRESET` for what the preset does not serve.
 */
export function layoutModel(model: Model, preset: string, firstRank = 0): LocalLayouts {
  const side = presetSide(preset, model, firstRank);
  const layouts = new LocalLayouts(applyParts(side, model.tensors, { modelDtype: model.dtype }));
  proveParts(layouts);
  return layouts;
}
