import type { NormalInput } from "./input/normalize.ts";
import type { PlanInput } from "./input/types.ts";
import type { Subject } from "./planner/question.ts";
import { withTensorRows } from "./planner/rows.ts";
import type { PatternStats } from "./planner/stats.ts";
import { verifyRows } from "./verify/verify.ts";

/**
 * Tensors that stand for all others: the first of every pattern; then, as long as their chunks are no more than `most`
 * together, its last one and those between, since from tensor to tensor other replicas send and other sub-meshes are
 * selected.
 */
export function representatives(
  input: NormalInput,
  patterns: readonly PatternStats[],
  most: number,
): number[] {
  const members: number[][] = patterns.map(() => []);
  for (let tensor = 0; tensor < input.tensorKinds.length; tensor++) {
    members[input.kinds[input.tensorKinds[tensor]!]!.pattern]!.push(tensor);
  }
  const chosen = members.map((list) => list[0]!);
  let left = patterns.reduce((rest, { chunks }) => rest - Number(chunks), most);
  for (let depth = 1; ; depth++) {
    const next = members.flatMap((list, pattern) => {
      const tensor = list.at(depth === 1 ? -1 : depth - 1);
      const isMore = tensor !== undefined && depth < list.length;
      const chunks = Number(patterns[pattern]!.chunks);
      if (!isMore || chunks > left) return [];
      left -= chunks;
      return [tensor];
    });
    if (next.length === 0) return chosen;
    chosen.push(...next);
  }
}

/**
 * Proves the chunks of some tensors, each as a plan of that tensor alone in the channels and waves of the whole.
 *
 * @throws TensorBusError as `verifyChunks`.
 */
export function verifyTensors(subject: Subject, input: PlanInput, tensors: Iterable<number>): void {
  for (const tensor of tensors) {
    const alone = { ...input, tensors: [input.tensors[tensor]!] };
    // The tensor is the only one of its list.
    withTensorRows(subject, tensor, (rows) => verifyRows(alone, rows), 0);
  }
}
