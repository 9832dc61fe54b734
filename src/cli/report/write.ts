import { writeWholeFile } from "../../model/files.ts";
import type { Spec } from "../../model/spec.ts";
import type { Plan } from "../../plan/index.ts";
import { collectReport } from "./collect.ts";
import type { SpecValues } from "./embed.ts";
import { renderPage } from "./html.ts";

/** Writes the page of a plan; answers how many bytes it has. */
export async function writeReport(path: string, spec: Spec, plan: Plan, verified: boolean): Promise<number> {
  const report = collectReport({ ...spec, plan, verified });
  const page = renderPage({ report, plan: plan.bytes, spec: specOf(spec.values) });
  await writeWholeFile(path, page);
  return Buffer.byteLength(page);
}

/** The values of a spec without the tensors that it lists: the plan has them. */
function specOf(values: unknown): SpecValues | undefined {
  if (values === undefined) return undefined;
  const { model, ...rest } = values as { readonly model: Readonly<Record<string, unknown>> };
  return { ...rest, model: model["tensors"] === undefined ? model : { tensors: [] } };
}
