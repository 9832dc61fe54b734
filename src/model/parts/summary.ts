import type { JoinedSides } from "./join.ts";
import type { PartedSide } from "./parted.ts";

/** Parameters of a side that differ by the number of their layer alone, and what they are made of. */
export interface ParameterSummary {
  /** The name with `{}` in place of a layer's number. */
  readonly parameter: string;
  readonly count: number;
  /** Names of tensors with `{}` in place of layers' and experts' numbers, in the order of their places. */
  readonly parts: readonly string[];
  /** Planned tensors that move into them. */
  readonly tensors: number;
}

/** The target's parameters, in the order of the model's tensors. */
export function summarizeParts(target: PartedSide, { parts }: JoinedSides): ParameterSummary[] {
  const forms = target.parameters.map(({ name }) => formOf(name));
  const groups = new Map<string, { count: number; tensors: number; readonly parts: Set<string> }>();
  for (const form of forms) {
    const group = groups.get(form) ?? { count: 0, tensors: 0, parts: new Set<string>() };
    group.count++;
    groups.set(form, group);
  }
  for (const planned of parts) {
    const group = groups.get(forms[target.parts[planned.target]!.parameter]!)!;
    group.tensors++;
    group.parts.add(formOf(planned.name));
  }
  return Array.from(groups, ([parameter, { count, tensors, parts: made }]) => ({
    parameter,
    count,
    parts: [...made],
    tensors,
  }));
}

/** A tensor's name within its layer. */
export function nameWithinLayer(name: string): string {
  return name.replace(/^.*\.layers\.\{\}\./, "");
}

/** Numbers between dots stand for layers and experts, ranges of slots for any of them. */
function formOf(name: string): string {
  return name
    .replace(/\.\d+(?=\.)/g, ".{}")
    .replace(/\[\d+:\d+(?=[,\]])/, "[{}")
    .replace(/ \(copy \d+\)$/, "");
}
