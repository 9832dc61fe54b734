/** What the plan of a batch depends on beside meshes, tensors and the size of buckets: the same for all agents of a batch. */
import type { Plan, PlanOptions } from "../../plan/index.ts";
import { planDefaults } from "../../plan/input/normalize.ts";

/** As agents compare it: options by their names, each as JSON; those that are not given are the planner's. */
type PlanningRecord = Readonly<Record<string, string>>;

/** Checks options and writes them as all agents do. `TB_PLAN_INPUT`, `TB_TOPOLOGY`. */
export function recordPlanning(options: PlanOptions): PlanningRecord {
  const { topology, ...plain } = planDefaults(options);
  const all = { ...plain, ...(topology && named(topology)) };
  return Object.fromEntries(Object.entries(all).map(([name, value]) => [name, JSON.stringify(value)]));
}

function named(topology: object): object {
  return Object.fromEntries(Object.entries(topology).map(([name, value]) => [`topology.${name}`, value]));
}

/** The first option that two agents have otherwise. */
export function differingOption(one: PlanningRecord, other: PlanningRecord): string | undefined {
  const names = new Set([...Object.keys(one), ...Object.keys(other)]);
  return [...names].find((name) => one[name] !== other[name]);
}

const mostText = 80;

/** An option as people are shown it. */
export function showOption(record: PlanningRecord, name: string): string {
  const text = record[name] ?? "none";
  return text.length > mostText ? `${text.slice(0, mostText)}...` : text;
}

/** Predicting a plan of more chunks would hold an agent up for longer than a tenth of a second. */
const predictedChunks = 2n ** 18n;

/** What a topology promises of a round; `undefined` without one, and for plans that are too large. */
export function predictSeconds(plan: Plan, { topology }: PlanOptions): number | undefined {
  // The plan itself could be asked for it, too, but that would decode all of it.
  if (topology === undefined || plan.chunkCount() > predictedChunks) return undefined;
  return plan.schedule()!.makespan / 1e9;
}
